"""Packed weights are kept while the weights do not change, and only then."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from volnet import isa, memory, nn, ops


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    memory.trim()
    yield
    memory.set_packed_weights_limit(2**30)
    memory.trim()


def reused(call: Callable[[], object]) -> int:
    before = memory.stats()["packed_weights_reused"]
    call()
    return memory.stats()["packed_weights_reused"] - before


def kept() -> int:
    return memory.stats()["packed_weights"]


def assert_close(actual: Tensor, expected: Tensor) -> None:
    atol = 2e-5 * float(expected.detach().abs().max())
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=atol)


# Winograd, direct, depthwise, transposed, and the gradient of the data.
FORMS = {
    "winograd": ((1, 32, 8, 9, 10), (32, 32, 3, 3, 3), {"padding": 1}),
    "direct": ((1, 5, 6, 7, 8), (7, 5, 2, 3, 2), {"stride": 2}),
    "depthwise": ((1, 20, 6, 7, 8), (20, 1, 3, 3, 3), {"groups": 20}),
}


def ways_to_change(w: Tensor) -> list[Callable[[], None]]:
    def through_data() -> None:
        w.data[0, 0, 0, 0, 0] += 1  # leaves the version counter alone

    def without_grad() -> None:
        with torch.no_grad():
            w.mul_(-0.5)

    def through_numpy() -> None:
        w.detach().numpy().flat[-1] += 1

    def least_bit() -> None:
        w.detach().numpy().view("int32").flat[w.numel() // 2] ^= 1

    def by_optimizer() -> None:
        w.grad = torch.ones_like(w)
        torch.optim.SGD([w], lr=0.1).step()

    def exchanged() -> None:
        flipped = w.detach().flip(0).clone()
        with torch.no_grad():
            w.copy_(flipped)

    return [through_data, without_grad, through_numpy, least_bit, by_optimizer, exchanged]


@pytest.mark.parametrize("form", FORMS)
def test_every_change_of_the_weights_counts(form: str) -> None:
    size, weight_size, arguments = FORMS[form]
    x, w = torch.randn(*size), torch.randn(*weight_size).requires_grad_()
    for change in [lambda: None, *ways_to_change(w)]:
        change()
        expected = F.conv3d(x.double(), w.double(), **arguments).detach()
        fresh = ops.conv3d(x, w.detach().clone(), **arguments)
        for expected_reuse in (0, 0, 1, 1):
            before = memory.stats()["packed_weights_reused"]
            assert_close(ops.conv3d(x, w, **arguments).detach(), expected)
            assert memory.stats()["packed_weights_reused"] - before == expected_reuse
        assert torch.equal(ops.conv3d(x, w, **arguments), fresh)


def test_gradients_and_transposed_convolutions_keep_theirs() -> None:
    x = torch.randn(1, 16, 6, 7, 8, requires_grad=True)
    w = torch.randn(16, 16, 3, 3, 3)
    for function, theirs in ((ops.conv3d, F.conv3d), (ops.conv_transpose3d, F.conv_transpose3d)):
        for stride in (1, 2):
            expected = theirs(x.double(), w.double(), stride=stride)
            (gradient,) = torch.autograd.grad(expected.square().sum(), x)
            for _ in range(3):
                y = function(x, w, stride=stride)
                assert_close(y, expected)
                assert_close(torch.autograd.grad(y.square().sum(), x)[0], gradient.double())
            assert reused(lambda f=function, s=stride: f(x, w, stride=s)) == 1


def test_one_weight_in_many_forms() -> None:
    """Strides, layouts, levels and kernels are told apart at one address."""
    x, w = torch.randn(1, 16, 9, 8, 8), torch.randn(16, 16, 3, 3, 3)
    views = [
        w,
        w.transpose(0, 1),
        w.flip(2)[:, :, :],
        w[:8],
        w.permute(1, 0, 4, 3, 2),
        w.view(16, 16, 9, 3, 1),
    ]
    for _ in range(3):
        for view in views:
            for level in isa.available():
                with isa.limit(level):
                    assert_close(ops.conv3d(x, view), F.conv3d(x.double(), view.double()))
            dilated = F.conv3d(x.double(), view.double(), dilation=(1, 2, 2))
            assert_close(ops.conv3d(x, view, dilation=(1, 2, 2)), dilated)


def test_weights_with_gaps_are_packed_every_time() -> None:
    x, wide = torch.randn(1, 8, 6, 6, 6), torch.randn(8, 16, 3, 3, 3)
    w = wide[:, ::2]
    for _ in range(3):
        assert_close(ops.conv3d(x, w), F.conv3d(x.double(), w.double()))
        wide[:, 0] += 1
    assert kept() == 0


def test_training_keeps_no_memory_and_learns_as_torch_does() -> None:
    torch.manual_seed(0)
    ours = torch.nn.Sequential(
        nn.Conv3d(4, 16, 3, padding=1), torch.nn.ReLU(), nn.Conv3d(16, 4, 3, padding=1)
    )
    theirs = torch.nn.Sequential(
        torch.nn.Conv3d(4, 16, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv3d(16, 4, 3, padding=1)
    )
    theirs.load_state_dict(ours.state_dict())
    theirs.double()
    x = torch.randn(1, 4, 8, 8, 8)
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.05) for model in (ours, theirs)]
    for _ in range(4):
        for model, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            model(x.to(next(model.parameters()).dtype)).square().mean().backward()
            optimizer.step()
        assert kept() == 0
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-5)


def test_trim_gives_them_back() -> None:
    x, w = torch.randn(1, 32, 6, 6, 6), torch.randn(32, 32, 3, 3, 3)
    used = memory.stats()["in_use"]
    for _ in range(2):
        ops.conv3d(x, w)
    assert kept() >= w.numel() * 4
    assert memory.stats()["in_use"] >= used + kept()
    assert memory.trim() >= w.numel() * 4
    assert kept() == 0
    assert memory.stats()["in_use"] == used
    assert reused(lambda: ops.conv3d(x, w)) == 0


def test_limit_drops_the_least_recently_used() -> None:
    x = torch.randn(1, 16, 5, 5, 5)
    weights = [torch.randn(16, 16, 3, 3, 3) for _ in range(4)]
    with isa.limit("scalar"):  # small and alike
        for w in weights[:2]:
            for _ in range(2):
                ops.conv3d(x, w, dilation=2)
        each = kept() // 2
        memory.set_packed_weights_limit(3 * each)
        ops.conv3d(x, weights[0], dilation=2)
        for w in weights[2:]:
            for _ in range(2):
                ops.conv3d(x, w, dilation=2)
        assert kept() == 3 * each
        assert [reused(lambda w=w: ops.conv3d(x, w, dilation=2)) for w in (weights[0], *weights[2:])] == [
            1
        ] * 3
        assert reused(lambda: ops.conv3d(x, weights[1], dilation=2)) == 0
        memory.set_packed_weights_limit(each - 1)
        assert kept() == 0
        for _ in range(3):
            ops.conv3d(x, weights[0], dilation=2)
        assert kept() == 0
    with pytest.raises(ValueError, match="-1"):
        memory.set_packed_weights_limit(-1)


def test_a_pool_that_runs_short_takes_them_back() -> None:
    x, w = torch.randn(1, 32, 12, 12, 12), torch.randn(32, 32, 3, 3, 3)
    for _ in range(2):
        expected = ops.conv3d(x, w)
    try:
        memory.set_limit(64 * 2**20)
        for _ in range(2):
            ops.conv3d(x, w)
        assert kept() > 0
        with pytest.raises(RuntimeError, match="asked for"):
            ops.conv3d(torch.zeros(1, 1, 256, 256, 256), torch.zeros(1, 1, 1, 1, 1))
        assert kept() == 0
    finally:
        memory.set_limit(None)
    assert torch.equal(ops.conv3d(x, w), expected)


def test_threads_share_and_change_them() -> None:
    x = torch.randn(1, 32, 6, 6, 6)
    shared = torch.randn(32, 32, 3, 3, 3)
    expected = ops.conv3d(x, shared)
    failures = []

    def work(seed: int) -> None:
        own = shared.clone()
        for step in range(20):
            own.data.mul_(1.0 if step % 3 else -1.0)
            sign = -1.0 if step // 3 % 2 == 0 else 1.0
            if not torch.equal(ops.conv3d(x, own), sign * expected):
                failures.append((seed, step))
            if not torch.equal(ops.conv3d(x, shared), expected):
                failures.append((seed, "shared"))
            if step == 10:
                memory.trim()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_a_forked_child_uses_its_parents() -> None:
    code = (
        "import os, torch, volnet\n"
        "x, w = torch.randn(1, 16, 6, 6, 6), torch.randn(16, 16, 3, 3, 3)\n"
        "for _ in range(3): y = volnet.ops.conv3d(x, w)\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    same = torch.equal(volnet.ops.conv3d(x, w), y)\n"
        "    w += 1\n"
        "    changed = not torch.equal(volnet.ops.conv3d(x, w), y)\n"
        "    os._exit(0 if same and changed else 3)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.stdout.strip() == "0", result.stderr
