"""Whole volumes in slabs against the network in float64 on the volume at once."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import volnet
from tests.networks import NETWORKS, Network, volume

pytestmark = pytest.mark.filterwarnings("ignore")  # Dynamo's and the networks' own


@pytest.fixture(autouse=True)
def _from_scratch() -> Iterator[None]:
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # quicker for such small volumes
    yield
    torch.set_num_threads(threads)
    torch._dynamo.reset()


def difference(result: Any, expected: Any) -> float:
    """Relative L2, the largest of all tensors."""
    results, expectations = (
        [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)] for tree in (result, expected)
    )
    pairs = zip(results, expectations, strict=True)
    return max(float((a.double() - b.double()).norm() / b.double().norm()) for a, b in pairs)


def exact(model: nn.Module, x: Tensor) -> Any:
    with torch.no_grad():
        return copy.deepcopy(model).double().eval()(x.double())


def smallest(model: nn.Module, x: Tensor, **options: Any) -> int:
    """The budget that the error names."""
    with pytest.raises(volnet.OutOfMemoryError) as caught:
        volnet.whole_volume(model, x, memory_budget=1, **options)
    found = re.search(r"smallest that does is (\d+) bytes", str(caught.value))
    assert found
    return int(found[1])


def slabs(plan: Any) -> int:
    return max(one.slabs for graph in plan.graphs for one in graph.passes)


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.name)
def test_a_published_network_gives_the_same_answer(network: Network) -> None:
    model, x = network.make().eval(), volume(network.size)
    expected = exact(model, x)
    plenty = volnet.whole_volume(model, x)
    assert difference(plenty, expected) < 5e-5
    with torch.no_grad():
        plain = model(x)
    assert type(plenty) is type(plain)
    little = smallest(model, x)
    assert difference(volnet.whole_volume(model, x, memory_budget=little), expected) < 5e-5
    most = max(little, volnet.plan_whole_volume(model, x).peak)
    between = (little + most) // 2
    assert difference(volnet.whole_volume(model, x, memory_budget=between), expected) < 5e-5
    assert volnet.plan_whole_volume(model, x, memory_budget=between).peak <= between


class Layer(nn.Module):
    """A function of a volume."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def layers() -> dict[str, nn.Module]:
    c = 4
    found: dict[str, nn.Module] = {
        "dilated": nn.Conv3d(c, c, 3, padding=2, dilation=2),
        "stride 3, kernel 5": nn.Conv3d(c, c, 5, stride=3, padding=1),
        "same": nn.Conv3d(c, c, (4, 3, 3), padding="same"),
        "grouped": nn.Conv3d(c, c, 3, padding=1, groups=c),
        "pointwise": nn.Conv3d(c, 2, 1, stride=2),
        "output padding": nn.ConvTranspose3d(c, c, 3, stride=2, padding=1, output_padding=1),
        "gaps": nn.ConvTranspose3d(c, c, 1, stride=3),
        "dilated, transposed": nn.ConvTranspose3d(c, c, 3, stride=2, padding=2, dilation=2),
        "max pool": nn.MaxPool3d(3, 2, 1),
        "max pool, dilated": nn.MaxPool3d(2, 1, 1, dilation=2),
        "max pool, ceil": nn.MaxPool3d(2, 2, ceil_mode=True),
        "avg pool": nn.AvgPool3d(3, 2, 1),
        "avg pool, not the padding": nn.AvgPool3d(3, 2, 1, count_include_pad=False),
        "instance norm": nn.InstanceNorm3d(c, affine=True),
        "group norm": nn.GroupNorm(2, c),
        "layer norm": nn.LayerNorm([13, 9, 8]),
        "repeat": Layer(lambda x: x.repeat(1, 3, 1, 1, 1)),
        "flip": Layer(lambda x: x.flip(2)),
        "roll": Layer(lambda x: x.roll(3, 2)),
        "gate": Layer(lambda x: x * torch.sigmoid(F.adaptive_avg_pool3d(x, 1))),
        "gate of maxima": Layer(lambda x: x * F.adaptive_max_pool3d(x, (1, 2, 2)).mean((2, 3, 4), True)),
        "mean": Layer(lambda x: x - x.mean((2, 3, 4), keepdim=True)),
        "along D": Layer(lambda x: x + torch.arange(x.shape[2]).reshape(-1, 1, 1)),
        "softmax": Layer(lambda x: x.softmax(1)),
        "cumulated": Layer(lambda x: x.cumsum(2)),
        "half": Layer(lambda x: x[:, :, ::2] + x[:, :, : (x.shape[2] + 1) // 2]),
    }
    for size in ((29, 18, 16), (20, 9, 8), (7, 5, 3), (13, 18, 9)):
        for mode in ("nearest", "nearest-exact", "trilinear", "area"):
            found[f"{mode} to {size}"] = nn.Upsample(size=size, mode=mode)
        found[f"corners to {size}"] = nn.Upsample(size=size, mode="trilinear", align_corners=True)
    for factor in (2, (1.7, 1, 1.3), 0.6):
        found[f"nearest by {factor}"] = nn.Upsample(scale_factor=factor)
        found[f"trilinear by {factor}"] = nn.Upsample(scale_factor=factor, mode="trilinear")
    for mode in ("constant", "replicate", "reflect", "circular"):
        for pads in ((1, 0, 0, 2, 3, 2), (0, 1, -1, 0, -2, -3), (0, 0, 0, 0, 4, 0), (2, 1, 0, 0, 0, 0)):
            if mode == "constant" or min(pads) >= 0:
                found[f"{mode} {pads}"] = Layer(lambda x, p=pads, m=mode: F.pad(x, p, m))
    return found


LAYERS = layers()


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("images", [1, 2])
def test_a_layer_between_convolutions(name: str, images: int) -> None:
    before, after = nn.Conv3d(2, 4, 3, padding=1), nn.LazyConv3d(3, 3, padding=1)
    model, x = (
        nn.Sequential(before, nn.ReLU(), LAYERS[name], nn.LeakyReLU(), after),
        volume((images, 2, 13, 9, 8)),
    )
    with torch.no_grad():
        model(x)
    expected = exact(model, x)
    if "nearest" in name:  # which takes other voxels in float64, now and then
        with torch.no_grad():
            expected = model.eval()(x)
    little = smallest(model, x)
    most = max(volnet.plan_whole_volume(model, x).peak, little)
    for budget in {little, (little + most) // 2, most}:
        assert difference(volnet.whole_volume(model, x, memory_budget=budget), expected) < 5e-5


def network() -> nn.Sequential:
    def block(c: int, k: int, stride: int = 1) -> list[nn.Module]:
        return [nn.Conv3d(c, k, 3, stride, 1), nn.InstanceNorm3d(k, affine=True), nn.LeakyReLU(0.1)]

    up = nn.ConvTranspose3d(12, 8, 2, 2)
    return nn.Sequential(*block(1, 8), *block(8, 12, 2), *block(12, 12), up, *block(8, 8), nn.Conv3d(8, 3, 1))


@pytest.mark.parametrize("depth", [2, 6, 22, 50])
@pytest.mark.parametrize("images", [1, 2])
def test_depths_and_budgets(depth: int, images: int) -> None:
    model, x = network(), volume((images, 1, depth, 12, 10))
    expected = exact(model, x)
    little, most = smallest(model, x), volnet.plan_whole_volume(model, x).peak
    counts = set()
    for share in (0.0, 0.1, 0.3, 0.6, 0.9):
        budget = int(little + share * (most - little))
        plan = volnet.plan_whole_volume(model, x, memory_budget=budget)
        assert plan.peak <= budget
        counts.add(slabs(plan))
        assert difference(volnet.whole_volume(model, x, memory_budget=budget), expected) < 5e-5
    assert depth < 22 or (max(counts) > 4 and len(counts) > 2)


def test_a_large_offset_costs_slabs_no_more_than_the_volume_at_once() -> None:
    model, x = network(), volume((1, 1, 32, 12, 10))
    nn.init.constant_(model[0].bias, 1000.0)
    with torch.no_grad():
        at_once = difference(volnet.optimize(model)(x), exact(model, x))
    result = volnet.whole_volume(model, x, memory_budget=smallest(model, x))
    assert difference(result, exact(model, x)) < 1.5 * at_once


def test_the_mode_of_every_module_stays() -> None:
    model, x = nn.Sequential(network(), nn.BatchNorm3d(3), nn.Dropout(0.5)), volume((1, 1, 12, 12, 10))
    model[0].eval()
    before = [module.training for module in model.modules()]
    statistics = model[1].running_mean.clone()
    assert difference(volnet.whole_volume(model, x), exact(model, x)) < 5e-5
    assert [module.training for module in model.modules()] == before
    assert torch.equal(model[1].running_mean, statistics)


def test_edits_of_weights_are_noticed() -> None:
    model, x = network(), volume((1, 1, 12, 12, 10))
    volnet.whole_volume(model, x)
    model[0].weight.data.neg_()
    assert difference(volnet.whole_volume(model, x), exact(model, x)) < 5e-5


def test_an_optimized_network_keeps_its_precision() -> None:
    model, x = network(), volume((1, 1, 24, 12, 10))
    expected = exact(model, x)
    result = volnet.whole_volume(volnet.optimize(model, precision="highest"), x)
    with torch.no_grad():
        assert difference(result, expected) < 3 * difference(model.eval()(x), expected)


@pytest.mark.parametrize("tight", [False, True])
def test_reductions(tight: bool) -> None:
    model, x = network(), volume((2, 1, 24, 12, 10))
    scores = exact(model, x)
    for reduce, expected in (("argmax", scores.argmax(1)), ("softmax", scores.softmax(1))):
        budget = smallest(model, x, reduce=reduce) if tight else None
        result = volnet.whole_volume(model, x, reduce=reduce, memory_budget=budget)
        assert result.shape == expected.shape
        if reduce == "argmax":
            assert result.dtype == torch.uint8
            assert (result.long() == expected).double().mean() > 0.999
        else:
            assert difference(result, expected) < 5e-5


class Chunks:
    """What takes slices, as a zarr array does."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape, self.array, self.written = shape, np.full(shape, 255, np.uint8), 0

    def __setitem__(self, where: Any, values: np.ndarray) -> None:
        self.array[where] = values
        self.written += 1


def test_results_are_written_as_they_are_made(tmp_path: Path) -> None:
    model, x = network(), volume((1, 1, 24, 12, 10))
    scores = exact(model, x)
    little = smallest(model, x)
    mapped = np.lib.format.open_memmap(tmp_path / "scores.npy", "w+", np.float32, tuple(scores.shape))
    for out in (mapped, torch.full(scores.shape, 7.0), torch.empty(scores.shape, dtype=torch.float64)):
        assert volnet.whole_volume(model, x, out=out, memory_budget=little) is out
        assert difference(torch.as_tensor(out), scores) < 5e-5
    chunks = Chunks((1, *scores.shape[2:]))
    little = smallest(model, x, reduce="argmax", out=chunks)
    assert volnet.whole_volume(model, x, out=chunks, reduce="argmax", memory_budget=little) is chunks
    assert chunks.written > 4
    assert (torch.from_numpy(chunks.array) == scores.argmax(1)).double().mean() > 0.999
    volnet.whole_volume(model, x, out=chunks, reduce="argmax")
    assert (torch.from_numpy(chunks.array) == scores.argmax(1)).double().mean() > 0.999


def test_storage_in_bfloat16() -> None:
    model, x = network(), volume((1, 1, 64, 24, 20))
    expected = exact(model, x)
    half = {"storage": torch.bfloat16}
    little = smallest(model, x, **half)
    assert little <= smallest(model, x)
    assert difference(volnet.whole_volume(model, x, memory_budget=little, **half), expected) < 2e-2


def test_half_precision_networks() -> None:
    model, x = network().bfloat16(), volume((1, 1, 24, 12, 10)).bfloat16()
    with torch.no_grad():
        plain = difference(model(x), exact(model, x))
    result = volnet.whole_volume(model, x, memory_budget=smallest(model, x))
    assert result.dtype == torch.bfloat16
    assert difference(result, exact(model, x)) < 2 * plain


def test_progress_rises_to_one(capsys: pytest.CaptureFixture[str]) -> None:
    model, x = network(), volume((1, 1, 24, 12, 10))
    done: list[float] = []
    volnet.whole_volume(model, x, memory_budget=smallest(model, x), progress=done.append)
    assert done == sorted(done)
    assert len(done) > 4
    assert done[-1] == pytest.approx(1)
    volnet.whole_volume(model, x, progress=True)
    assert "100 %" in capsys.readouterr().err


def test_a_plan_says_what_is_stored() -> None:
    model, x = network(), volume((1, 1, 24, 12, 10))
    budget = smallest(model, x)
    text = str(volnet.plan_whole_volume(model, x, memory_budget=budget))
    assert "passes" in text
    assert "stored" in text
    assert "slabs" in text


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"memory_budget": "much"}, ValueError),
        ({"memory_budget": -1}, ValueError),
        ({"memory_budget": 1.5}, TypeError),
        ({"reduce": "max"}, ValueError),
        ({"storage": torch.float16}, ValueError),
        ({"storage": torch.float32}, ValueError),
        ({"progress": 3}, TypeError),
        ({"out": torch.empty(1, 2, 3)}, ValueError),
        ({"out": 3}, TypeError),
        ({"x": torch.zeros(1, 8, 8, 8)}, ValueError),
        ({"x": 3}, TypeError),
        ({"model": 3}, TypeError),
    ],
)
def test_wrong_arguments(change: dict[str, Any], error: type[Exception]) -> None:
    arguments = {"model": network(), "x": volume((1, 1, 8, 8, 8)), **change}
    with pytest.raises(error):
        volnet.whole_volume(arguments.pop("model"), arguments.pop("x"), **arguments)


MEASURE = """
import re, torch, volnet
from volnet.bench.networks import import_torchvision
import_torchvision()
from tests.test_whole_volume import network

def status(name):
    return int(re.search(name + r":\\s+(\\d+)", open("/proc/self/status").read())[1]) << 10

torch.set_num_threads(1)
model = network()
volnet.whole_volume(model, torch.randn(1, 1, 8, 8, 8))  # Dynamo
x = torch.randn(1, 1, 256, 128, 128)
volnet.plan_whole_volume(model, x, memory_budget="100MiB", reduce="argmax")
volnet.memory.trim()
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
volnet.whole_volume(model, x, memory_budget="100MiB", reduce="argmax")
print(status("VmHWM") - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_resident_memory_stays_within_the_budget() -> None:
    run = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) < 105 * 2**20  # first use of code, too
