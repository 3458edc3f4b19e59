"""What the case table cannot say of conv3d: errors, torch's samples, random shapes, autocast, the module."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.opinfo import opinfo_samples
from volnet import _C, isa, nn, ops

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

X = torch.zeros(1, 4, 5, 6, 7)
W = torch.zeros(8, 4, 3, 3, 3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((X[0, 0], W), "shape (5, 6, 7)"),
        ((X, W[0]), "weight must be"),
        ((X, W.double()), "float64"),
        ((X.to(torch.int32), W), "int32"),
        ((X.to_sparse(), W), "sparse"),
        ((torch.zeros(1, 3, 5, 6, 7), W), "3 channels"),
        ((X, W, torch.zeros(7)), "bias must be [8]"),
        ((X, W, None, 0), "stride"),
        ((X, W, None, (1, 2)), "(1, 2)"),
        ((X, W, None, 1, -1), "padding"),
        ((X, W, None, 1, 0, 0), "dilation"),
        ((X, W, None, 1, 0, 1, 3), "groups=3"),
        ((X, W, None, 1, 0, 1, 0), "groups"),
        ((X, W, None, 1, 0, 3), "does not fit the padded input of 5 on axis D"),
        ((X, W, None, 2, "same"), "stride 1"),
        ((X, W[:, :, :0]), "kernel size"),
        ((X, torch.zeros(0, 4, 3, 3, 3)), "0 filters"),
    ],
)
def test_wrong_arguments_raise_what_torch_raises(arguments: tuple, words: str) -> None:
    with pytest.raises(RuntimeError) as error:
        ops.conv3d(*arguments)
    assert words in str(error.value)
    with pytest.raises(RuntimeError):
        F.conv3d(*arguments)


def test_unknown_padding_and_wrong_types() -> None:
    with pytest.raises(ValueError, match="'full'"):
        ops.conv3d(X, W, padding="full")
    with pytest.raises(TypeError, match="list"):
        ops.conv3d([1.0], W)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_torchs_own_samples(dtype: torch.dtype) -> None:
    ran = 0
    for sample in opinfo_samples("nn.functional.conv3d", dtype):
        leaves = [
            t.detach().clone().requires_grad_() for t in (sample.input, *sample.args) if torch.is_tensor(t)
        ]
        others = [t for t in sample.args if not torch.is_tensor(t)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = F.conv3d(*[t.double() for t in leaves], *others, **sample.kwargs)
            wanted = torch.autograd.grad(expected.sum(), leaves)
        actual = ops.conv3d(*leaves, *others, **sample.kwargs)
        got = torch.autograd.grad(actual.sum(), leaves)
        tolerance = {"rtol": 2e-2, "atol": 2e-1} if dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-4}
        torch.testing.assert_close(actual.double(), expected, **tolerance)
        for g, w in zip(got, wanted, strict=True):
            torch.testing.assert_close(g, w, **tolerance)
        ran += 1
    assert ran > 5


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_geometry_equals_torch(data: st.DataObject) -> None:
    def triple(low: int, high: int) -> list[int]:
        return data.draw(st.lists(st.integers(low, high), min_size=3, max_size=3))

    groups = data.draw(st.sampled_from([1, 1, 2, 3]))
    channels, filters = groups * data.draw(st.integers(1, 18)), groups * data.draw(st.integers(1, 18))
    kernel, stride, dilation, padding = triple(1, 4), triple(1, 3), triple(1, 3), triple(0, 4)
    size = [
        max(data.draw(st.integers(1, 19)), d * (k - 1) + 1 - 2 * p)
        for k, d, p in zip(kernel, dilation, padding, strict=True)
    ]
    x = torch.randn(2, channels, *size, requires_grad=True)
    w = torch.randn(filters, channels // groups, *kernel, requires_grad=True)
    arguments = (None, stride, padding, dilation, groups)
    y = ops.conv3d(x, w, *arguments)
    expected = F.conv3d(x.double(), w.double(), *arguments)
    scale = float(expected.detach().abs().max()) + 1e-6
    torch.testing.assert_close(y.double(), expected, rtol=0, atol=1e-5 * scale)
    grads = torch.autograd.grad(y, (x, w), torch.ones_like(y))
    wanted = torch.autograd.grad(expected, (x, w), torch.ones_like(expected))
    for g, e in zip(grads, wanted, strict=True):
        torch.testing.assert_close(g, e, rtol=0, atol=1e-4 * (float(e.detach().abs().max()) + 1e-6))


def test_channels_last_weights_decide_where_one_channel_leaves_it_open() -> None:
    x, w = torch.randn(1, 1, 5, 6, 7), torch.randn(8, 1, 3, 3, 3)
    deeper = torch.randn(4, 8, 3, 3, 3).to(memory_format=torch.channels_last_3d)
    y = ops.conv3d(ops.conv3d(x, w, padding=1), deeper)
    assert y.is_contiguous(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(y, F.conv3d(F.conv3d(x, w, padding=1), deeper), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_outputs_larger_than_the_caches(dtype: torch.dtype) -> None:
    """From 32 MiB on they are written past the caches where whole vectors of filters allow it."""
    x = torch.randn(1, 1, 64, 64, 64, dtype=dtype)
    w = torch.randn(32, 1, 3, 3, 3, dtype=dtype).to(memory_format=torch.channels_last_3d)
    expected = F.conv3d(x.double(), w.double(), padding=1)
    for level in isa.available():
        if level == "scalar" or (level == "amx" and dtype == torch.bfloat16):
            continue  # neither writes this way
        with isa.limit(level):
            y = ops.conv3d(x, w, padding=1)
        tolerance = 2.0**-8 if dtype == torch.bfloat16 else 1e-6
        assert (y.double() - expected).abs().max() <= tolerance * expected.abs().max()


def test_unbatched_input() -> None:
    x, w = torch.randn(4, 5, 6, 7), torch.randn(8, 4, 3, 3, 3)
    torch.testing.assert_close(ops.conv3d(x, w), F.conv3d(x, w))


def test_autocast_computes_in_bfloat16_and_trains_float32_weights() -> None:
    layers = torch.nn.Sequential(nn.Conv3d(4, 8, 3), torch.nn.ReLU(), nn.Conv3d(8, 2, 1))
    theirs = torch.nn.Sequential(torch.nn.Conv3d(4, 8, 3), torch.nn.ReLU(), torch.nn.Conv3d(8, 2, 1))
    theirs.load_state_dict(layers.state_dict())
    x = torch.randn(1, 4, 5, 6, 7)
    gradients = []
    for model in (layers, theirs):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = model(x)
        assert y.dtype == torch.bfloat16
        y.float().square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    for ours, torchs in zip(*gradients, strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, torchs, rtol=0.05, atol=0.05 * float(torchs.abs().max()))


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_module_is_a_drop_in(mode: str) -> None:
    theirs = torch.nn.Conv3d(4, 6, 3, stride=2, padding=1, padding_mode=mode)
    ours = nn.Conv3d(4, 6, 3, stride=2, padding=1, padding_mode=mode)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 4, 6, 7, 8)
    torch.testing.assert_close(ours(x), theirs(x))


def test_second_derivatives() -> None:
    def leaf(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    def function(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return ops.conv3d(x, w, b, stride=(1, 2, 1), padding=1, groups=2).tanh()

    inputs = (leaf(2, 2, 3, 4, 3), leaf(4, 1, 3, 2, 3), leaf(4))
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


SHAPES = Path(__file__).parents[1] / "benchmarks" / "shapes" / "conv3d.toml"


@pytest.mark.parametrize("shape", tomllib.loads(SHAPES.read_text())["shape"], ids=lambda s: s["name"])
def test_plans_keep_many_cores_busy(shape: dict) -> None:
    """At batch 1: four pieces of work for each of 112 cores, or one an output row where there are fewer."""
    kernel = shape.get("kernel_size", [3, 3, 3])
    stride, dilation = (
        v if isinstance(v, list) else [v] * 3 for v in (shape.get("stride", 1), shape.get("dilation", 1))
    )
    padding = [side for k, d in zip(kernel, dilation, strict=True) for side in [d * (k // 2)] * 2]
    groups = shape.get("groups", 1)
    volume = [1, shape["in_channels"], *shape["size"]]
    weight = [shape["out_channels"], shape["in_channels"] // groups, *kernel]
    with isa.limit("avx2"):
        plan = _C.conv3d_plan(volume, weight, stride, padding, dilation, groups)
    depthwise = groups == shape["in_channels"] > 1
    assert plan["kernel"] == f"conv3d_f32_{'depthwise' if depthwise else 'direct'}_avx2"
    depth, height = shape["size"][0] // stride[0], shape["size"][1] // stride[1]
    assert plan["pieces"] >= min(4 * 112, depth * height)
    assert plan["scratch_bytes_a_worker"] < 2**20


@pytest.mark.parametrize("kind", ["normal", "rectified", "offset", "positive_weights"])
@pytest.mark.parametrize(("channels", "filters", "side"), [(32, 32, 16), (256, 64, 12)])
def test_high_precision_keeps_its_promise(kind: str, channels: int, filters: int, side: int) -> None:
    """Relative L2 error at most 2e-5 against float64, no value off by more than 1e-4 of the largest."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, channels, side, side, side, generator=generator)
    w = torch.randn(filters, channels, 3, 3, 3, generator=generator)
    x = {"rectified": x.relu(), "offset": x + 3}.get(kind, x)
    w = w.abs() if kind == "positive_weights" else w
    before = {name: calls for name, _, calls in isa.kernels()}
    error = ops.conv3d(x, w, padding=1).double()
    ran = [name for name, _, calls in isa.kernels() if calls > before[name] and name.startswith("conv3d_f32")]
    assert ran[0].startswith("conv3d_f32_winograd")
    expected = F.conv3d(x.double(), w.double(), padding=1)
    error -= expected
    assert error.norm() <= 2e-5 * expected.norm()
    assert error.abs().max() <= 1e-4 * expected.abs().max()
