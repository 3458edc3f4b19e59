"""The pool: what it keeps, gives back, counts and refuses, and that tensors from it are like any others."""

from __future__ import annotations

import io
import math
import os
import random
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.multiprocessing
import torch.nn.functional as F
from torch import Tensor

import volnet
from tests.test_runtime import run_python
from volnet import memory, nn, ops


@pytest.fixture(autouse=True)
def empty_pool() -> Iterator[None]:
    memory.trim()
    yield
    memory.set_limit(None)


def resident() -> int:
    """Bytes of memory that the process has."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) << 10


def tensor(elements: int) -> Tensor:
    """Of zeros in bfloat16, from the pool."""
    copy: Tensor = torch.ops.volnet._to_layout(torch.zeros(1, 1, 1, 1, elements, dtype=torch.bfloat16), False)
    return copy


def test_pool_keeps_and_returns_blocks() -> None:
    x, w = torch.randn(1, 4, 32, 32, 32), torch.randn(8, 4, 3, 3, 3)
    memory.trim()
    used = memory.stats()["in_use"]
    y = ops.conv3d(x, w)
    assert memory.stats()["in_use"] - used >= y.numel() * 4
    del y
    assert memory.stats()["in_use"] == used
    faults = memory.stats()["from_system"]
    y = ops.conv3d(x, w)
    assert memory.stats()["from_system"] == faults
    del y
    assert memory.trim() > 0
    assert memory.stats()["cached"] == 0


def test_blocks_outlive_views_and_trim() -> None:
    x, w = torch.randn(1, 2, 32, 64, 64), torch.randn(8, 2, 3, 3, 3)
    view = ops.conv3d(x, w, padding=1)[:, 3:5]
    memory.trim()
    torch.testing.assert_close(view, F.conv3d(x, w, padding=1)[:, 3:5], rtol=1e-4, atol=1e-4)
    array = ops.conv3d(x, w, padding=1).numpy()
    assert array.shape == (1, 8, 32, 64, 64)


@pytest.mark.parametrize(
    "size", [1, 63, 1000, 40_000, 1_000_000, 1_048_577, 5_000_001, 17_000_001, 90_000_000]
)
def test_blocks_waste_at_most_an_eighth(size: int) -> None:
    before = memory.stats()["in_use"]
    y = tensor(math.ceil(size / 2))
    taken = memory.stats()["in_use"] - before
    assert 2 * y.numel() <= taken <= max(1.125 * (2 * y.numel() + 64), 2 * y.numel() + 192)


def test_free_neighbours_join() -> None:
    """Four blocks side by side become one of four times the size, and that eight of half the size."""
    many = [tensor(16 << 20) for _ in range(4)]
    asked = memory.stats()["from_system"]
    many.clear()
    one = tensor(64 << 20)
    assert memory.stats()["from_system"] == asked
    del one
    many = [tensor(8 << 20) for _ in range(8)]
    assert memory.stats()["from_system"] == asked
    assert len({y.data_ptr() for y in many}) == 8


def test_no_two_blocks_overlap() -> None:
    """Hundreds of blocks of all sizes come and go in random order; each keeps its own pattern."""
    generator = random.Random(0)
    held: list[tuple[Tensor, int]] = []
    for step in range(300):
        if held and generator.random() < 0.5:
            y, value = held.pop(generator.randrange(len(held)))
            assert bool((y.view(torch.int16) == value).all())
        else:
            y = tensor(generator.choice([7, 300, 30_000, 600_000, 3_000_000, 12_000_000]))
            y.view(torch.int16).fill_(step)
            held.append((y, step))
        if sum(y.numel() for y, _ in held) > 100_000_000:
            held.pop(0)
        if step % 75 == 0:
            memory.trim()
    in_use = memory.stats()["in_use"]
    assert in_use >= sum(2 * y.numel() for y, _ in held)
    y = held[0][0]
    held.clear()
    assert memory.stats()["in_use"] < in_use


def test_trimmed_memory_goes_back_to_the_system() -> None:
    y = tensor(64 << 20)
    y.fill_(1.0)
    address, before = y.data_ptr(), resident()
    del y
    assert resident() > before - (16 << 20)  # kept
    memory.trim()
    assert resident() < before - (112 << 20)
    y = tensor(64 << 20)
    assert y.data_ptr() == address
    assert bool((y == 0).all())


def test_operators_are_accounted_for() -> None:
    def of_copies() -> dict[str, int]:
        return dict(memory.stats()["operators"]["_to_layout"])

    tensor(5)
    memory.reset_peak()
    before = of_copies()
    y = tensor(4 << 20)
    z = tensor(1 << 20)
    del y
    after = of_copies()
    assert after["in_use"] - before["in_use"] == pytest.approx(2 << 20, rel=0.01)
    assert after["peak"] - before["peak"] == pytest.approx(10 << 20, rel=0.01)
    assert after["allocations"] - before["allocations"] == 2
    assert memory.stats()["peak"] >= after["peak"]
    del z
    memory.reset_peak()
    assert memory.stats()["peak"] == memory.stats()["in_use"]
    assert of_copies()["peak"] == of_copies()["in_use"]


def test_blocks_are_freed_on_any_thread_and_by_threads_that_end() -> None:
    before = memory.stats()["in_use"]
    held: list[Tensor] = []

    def make() -> None:
        held.extend(tensor(n) for n in (10, 5_000, 300_000, 2_000_000) for _ in range(20))

    makers = [threading.Thread(target=make) for _ in range(4)]
    for thread in makers:
        thread.start()
    for thread in makers:
        thread.join()
    breaker = threading.Thread(target=held.clear)
    breaker.start()
    breaker.join()
    assert memory.stats()["in_use"] == before
    memory.trim()
    assert memory.stats()["cached"] == 0


def test_the_limit_is_kept_and_the_error_says_what_would_help() -> None:
    x, w = torch.zeros(1, 2, 32, 64, 64), torch.zeros(8, 2, 3, 3, 3)
    memory.set_limit(memory.stats()["in_use"] + 2**20)
    with pytest.raises(
        volnet.OutOfMemoryError, match=r"conv3d \[1, 8, 30, 62, 62\] asked for 4 MiB"
    ) as raised:
        ops.conv3d(x, w)
    assert isinstance(raised.value, MemoryError)
    assert "limit is" in str(raised.value)
    assert "set_limit" in str(raised.value)
    assert ops.avg_pool3d(x[..., :9], 2).shape == (1, 2, 16, 32, 4)  # the process goes on
    memory.set_limit(None)
    assert ops.conv3d(x, w).shape == (1, 8, 30, 62, 62)
    with pytest.raises(ValueError, match="-1"):
        memory.set_limit(-1)
    y = tensor(4 << 20)
    with pytest.raises(volnet.OutOfMemoryError, match=r"cannot limit the pool to 1 MiB: \d+ MiB are in use"):
        memory.set_limit(2**20)
    del y


def test_cached_memory_makes_room_under_a_limit() -> None:
    memory.set_limit(memory.stats()["in_use"] + (100 << 20))
    for size in (20 << 20, 45 << 20, 30 << 20):
        assert tensor(size).numel() == size
    assert memory.stats()["cached"] + memory.stats()["in_use"] <= memory.stats()["limit"]


def test_the_gradient_says_so_too() -> None:
    x = torch.zeros(1, 4, 40, 40, 40, requires_grad=True)
    y = ops.avg_pool3d(x, 4)
    memory.set_limit(memory.stats()["in_use"] + 2**18)
    with pytest.raises(volnet.OutOfMemoryError, match=r"avg_pool3d \[1, 4, 40, 40, 40\]"):
        y.sum().backward()


def test_more_than_the_machine_has_is_refused() -> None:
    x, w = torch.zeros(1, 1, 1, 1, 1), torch.zeros(1, 1, 1, 1, 1)
    shape = r"conv3d \[1, 1, 40001, 40001, 40001\] asked for 244[0-9]+ MiB"
    with pytest.raises(volnet.OutOfMemoryError, match=shape):
        ops.conv3d(x, w, padding=20_000)
    assert ops.conv3d(x, w, padding=1).shape == (1, 1, 3, 3, 3)


def test_a_compiled_model_raises_the_same_message() -> None:
    x = torch.zeros(1, 4, 40, 40, 40)
    compiled = torch.compile(lambda x: ops.avg_pool3d(x, 1), backend="eager", fullgraph=True)
    compiled(x)
    memory.trim()
    memory.set_limit(memory.stats()["in_use"] + 2**18)
    with pytest.raises(RuntimeError, match=r"volnet is out of memory: avg_pool3d \[1, 4, 40, 40, 40\]"):
        compiled(x)


class SmallUNet(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = torch.nn.Sequential(
            nn.Conv3d(1, 8, 3, padding=1), nn.InstanceNorm3d(8, affine=True, activation="relu")
        )
        self.bottom = torch.nn.Sequential(
            nn.MaxPool3d(2), nn.Conv3d(8, 16, 3, padding=1), nn.BatchNorm3d(16, activation="relu")
        )
        self.up = nn.Upsample(scale_factor=2, mode="trilinear")
        self.head = nn.Conv3d(24, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        high = self.down(x)
        logits: Tensor = self.head(torch.cat([high, self.up(self.bottom(high))], dim=1))
        return logits


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.skipif("libasan" in os.environ.get("LD_PRELOAD", ""), reason="a sanitizer holds freed memory")
@pytest.mark.usefixtures("one_thread")  # which is quicker for such small volumes
def test_a_thousand_training_steps_take_no_more_memory_than_ten() -> None:
    model = SmallUNet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    x = torch.randn(1, 1, 12, 12, 12)
    target = (x[:, 0] > 0).long()

    def steps(count: int) -> tuple[int, int, int]:
        for _ in range(count):
            optimizer.zero_grad()
            F.cross_entropy(model(x), target).backward()
            optimizer.step()
        stats = memory.stats()
        return resident(), stats["in_use"] + stats["cached"], stats["from_system"]

    memory_of_ten, pool_of_ten, asked = steps(10)
    memory_of_all, pool_of_all, asked_in_all = steps(990)
    assert memory_of_all - memory_of_ten < 8 << 20
    assert (pool_of_all, asked_in_all) == (pool_of_ten, asked)


def test_saved_and_loaded() -> None:
    y = tensor(3_000_000).fill_(3.0)
    file = io.BytesIO()
    torch.save(y, file)
    file.seek(0)
    assert torch.equal(torch.load(file), y)


def test_shared_with_another_process() -> None:
    y = tensor(3_000_000).fill_(3.0)
    queue = torch.multiprocessing.get_context("fork").SimpleQueue()
    queue.put(y)
    assert torch.equal(queue.get(), y)
    z = tensor(1_000_000)
    z.share_memory_()
    assert z.is_shared()
    before = memory.stats()["in_use"]
    del z
    assert memory.stats()["in_use"] == before  # its block had come back when it was shared


def test_handed_to_numpy() -> None:
    x = torch.arange(27.0).reshape(1, 1, 3, 3, 3)
    array = ops.avg_pool3d(x, 1).numpy()
    memory.trim()
    assert array.ravel().tolist() == list(range(27))
    array += 1
    assert array.sum() == 27 * 28 / 2


def test_resized_within_its_memory() -> None:
    y = tensor(1_000_000)
    y.resize_(1, 1, 10, 10, 10)
    assert y.shape == (1, 1, 10, 10, 10)
    with pytest.raises(RuntimeError, match="not resizable"):
        y.resize_(2_000_000)
    assert y.clone().resize_(2_000_000).numel() == 2_000_000


def test_freed_in_a_forked_child_and_at_exit() -> None:
    result = run_python(
        "import os, threading, torch, volnet\n"
        "from volnet import memory, nn, ops\n"
        "def tensor(n): return torch.ops.volnet._to_layout(torch.empty(1, 1, 1, 1, n), False)\n"
        "ended, go = threading.Event(), threading.Event()\n"
        "def other():\n"
        "    kept = tensor(100); del kept; ended.set(); go.wait()\n"
        "thread = threading.Thread(target=other); thread.start(); ended.wait()\n"
        "y, z = tensor(1000), tensor(3_000_000)\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    del y, z\n"
        "    a = [tensor(n) for n in (100, 1000, 3_000_000)]\n"
        "    memory.trim()\n"
        "    os._exit(0 if memory.stats()['cached'] == 0 else 3)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), z.numel())\n"
        "go.set(); thread.join()\n"
        "class Late: pass\n"
        "late = Late(); late.t = tensor(2_000_000); late.self = late\n"
        "threading.t = tensor(5)\n"
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["0", "3000000"]


def test_reserved_huge_pages_are_used_where_there_are_some() -> None:
    reserved = Path("/proc/sys/vm/nr_hugepages")
    before = reserved.read_text()
    try:
        reserved.write_text("40")
    except OSError:
        pytest.skip("huge pages cannot be reserved here")
    free = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")
    try:
        count = int(free.read_text())
        if count < 20:
            pytest.skip("no huge pages could be reserved")
        y = tensor(16 << 20)
        y.fill_(1.0)
        assert int(free.read_text()) == count - 16
        del y
        memory.trim()
        assert int(free.read_text()) == count
    finally:
        reserved.write_text(before)


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_retain_makes_torch_keep_its_memory() -> None:
    code = (
        "import resource, torch, volnet\n"
        "kept = volnet.memory.retain() if {retain} else True\n"
        "for _ in range(10): torch.ones(30_000_000)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "for _ in range(3): torch.ones(30_000_000)\n"
        "print(int(kept), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)\n"
    )
    results = [run_python(code.format(retain=retain)).stdout.split() for retain in (True, False)]
    if results[0][0] == "0":
        pytest.skip("the C library is not glibc")
    assert int(results[0][1]) < 100 < int(results[1][1])


@pytest.mark.skipif("libasan" not in Path("/proc/self/maps").read_text(), reason="for `make sanitize`")
@pytest.mark.parametrize("size", [5, 80], ids=["small", "mapped"])
@pytest.mark.parametrize(
    ("act", "report"),
    [
        ("", ""),
        ("ctypes.memset(address + bytes, 0, 1)", "use-after-poison"),
        ("del y; ctypes.memset(address, 0, 1)", "use-after-poison"),
        ("del y; memory.trim(); z = ops.conv3d(x, w); ctypes.memset(z.data_ptr(), 0, bytes)", ""),
    ],
    ids=["inside", "past_the_end", "freed", "after_trim"],
)
def test_sanitizer_sees_the_bounds_of_a_tensor(size: int, act: str, report: str) -> None:
    result = run_python(
        "import ctypes, torch\n"
        "from volnet import memory, nn, ops\n"
        f"x, w = torch.zeros(1, 1, {size}, {size}, {size}), torch.zeros(1, 1, 1, 1, 1)\n"
        "y = ops.conv3d(x, w)\n"
        "address, bytes = y.data_ptr(), y.numel() * 4\n"
        f"ctypes.memset(address, 0, bytes)\n{act}"
    )
    assert (result.returncode == 0) == (report == ""), result.stderr
    assert report in result.stderr
