"""What the case table cannot say of conv3d: errors, torch's samples, random shapes, autocast, the module."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.opinfo import opinfo_samples
from volnet import _C, isa, nn, ops, set_precision

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
    torch.testing.assert_close(y.double(), expected, rtol=0, atol=1e-4 * scale)
    grads = torch.autograd.grad(y, (x, w), torch.ones_like(y))
    wanted = torch.autograd.grad(expected, (x, w), torch.ones_like(expected))
    for g, e in zip(grads, wanted, strict=True):
        torch.testing.assert_close(g, e, rtol=0, atol=1e-4 * (float(e.detach().abs().max()) + 1e-6))


def test_channels_last_weights_decide_where_one_channel_leaves_it_open() -> None:
    x, w = torch.randn(1, 1, 5, 6, 7), torch.randn(8, 1, 3, 3, 3)
    deeper = torch.randn(4, 8, 3, 3, 3).to(memory_format=torch.channels_last_3d)
    y = ops.conv3d(ops.conv3d(x, w, padding=1), deeper)
    assert y.is_contiguous(memory_format=torch.channels_last_3d)
    expected = F.conv3d(F.conv3d(x, w, padding=1), deeper)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_outputs_larger_than_the_caches(dtype: torch.dtype) -> None:
    """From 16 MiB on they are written past the caches where whole vectors of filters allow it."""
    x = torch.randn(1, 1, 40, 64, 64, dtype=dtype)
    w = torch.randn(32, 1, 3, 3, 3, dtype=dtype).to(memory_format=torch.channels_last_3d)
    expected = F.conv3d(x.double(), w.double(), padding=1)
    for level in isa.available():
        if level == "scalar" or (level == "amx" and dtype == torch.bfloat16):
            continue  # neither writes this way
        with isa.limit(level):
            y = ops.conv3d(x, w, padding=1)
            rectified = ops.conv3d(x, w, padding=1, activation="relu")
        tolerance = 2.0**-8 if dtype == torch.bfloat16 else 1e-6
        assert (y.double() - expected).abs().max() <= tolerance * expected.abs().max()
        assert torch.equal(rectified, y.relu())


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


@pytest.mark.parametrize("kind", ["normal", "rectified", "offset", "smooth", "positive_weights"])
@pytest.mark.parametrize(("channels", "filters", "side"), [(32, 32, 16), (256, 64, 12), (320, 32, 10)])
@pytest.mark.parametrize(
    ("level", "plan"), [("avx2", "wino444"), ("avx512", "wino444"), ("amx", "amx"), ("amx", "amx_winograd")]
)
def test_high_precision_keeps_its_promise(
    level: str, plan: str, kind: str, channels: int, filters: int, side: int
) -> None:
    """Relative L2 error at most 2e-5 against float64, no value off by more than 1e-4 of the largest."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, channels, side, side, side, generator=generator)
    w = torch.randn(filters, channels, 3, 3, 3, generator=generator)
    x = {"rectified": x.relu(), "offset": x + 3}.get(kind, x)
    if kind == "smooth":
        x = F.avg_pool3d(x, 5, stride=1, padding=2)
    w = w.abs() if kind == "positive_weights" else w
    if level not in isa.available():
        pytest.skip(f"this machine has no {level}")
    with isa.limit(level):
        plans = _C.conv3d_plans([*x.shape], [*w.shape], [1] * 3, [1] * 6, [1] * 3, 1, "float32", 1)
        chosen = next(p for p in plans if p["name"] == plan)
        _C.plans_remember({chosen["key"]: plan})
        _C.plans_trace(True)
        try:
            error = ops.conv3d(x, w, padding=1).double()
            assert _C.plans_take_trace() == [chosen["kernel"]]
        finally:
            _C.plans_trace(False)
            _C.plans_forget()
    expected = F.conv3d(x.double(), w.double(), padding=1)
    error -= expected
    assert error.norm() <= 2e-5 * expected.norm()
    assert error.abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.skipif("amx" not in isa.available(), reason="this machine has no amx")
@pytest.mark.parametrize("kernel", [(7, 7, 7), (5, 5, 5), (3, 9, 8)])
@pytest.mark.parametrize("stride", [1, 2, 3, (2, 2, 1), (1, 3, 4)])
@pytest.mark.parametrize(
    ("filters", "dtype"), [(64, torch.float32), (33, torch.float32), (48, torch.bfloat16)]
)
def test_patches_of_one_channel(kernel: tuple, stride: object, filters: int, dtype: torch.dtype) -> None:
    def calls() -> int:
        return sum(calls for _, level, calls in isa.kernels() if level == "amx")

    generator = torch.Generator().manual_seed(0)
    w, b = (torch.randn(filters, *n, generator=generator).to(dtype) for n in ((1, *kernel), ()))
    padding = [k // 2 for k in kernel]
    for size in ((9, 10, 11), (8, 9, 40), (2, 20, 75)):
        x = torch.randn(2, 1, *size, generator=generator).to(dtype)
        expected = F.conv3d(x.double(), w.double(), b.double(), stride, padding)
        for layout in (torch.contiguous_format, torch.channels_last_3d):
            before = calls()
            y = ops.conv3d(x, w.contiguous(memory_format=layout), b, stride, padding).double()
            assert (y - expected).norm() <= {torch.float32: 2e-5, torch.bfloat16: 4e-3}[
                dtype
            ] * expected.norm()
            assert calls() > before


@pytest.mark.skipif("amx" not in isa.available(), reason="this machine has no amx")
def test_medium_precision_rounds_to_bfloat16_on_amx() -> None:
    x, w = torch.randn(1, 40, 6, 7, 8), torch.randn(24, 40, 3, 3, 3)
    rounded = F.conv3d(x.bfloat16().double(), w.bfloat16().double(), padding=1)
    set_precision("medium")
    try:
        y = ops.conv3d(x, w, padding=1).double()
    finally:
        set_precision("high")
    assert (y - rounded).norm() <= 1e-6 * rounded.norm()
    exact = F.conv3d(x.double(), w.double(), padding=1)
    assert 1e-4 < (y - exact).norm() / exact.norm() < 5e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_layouts_give_the_same_bits(dtype: torch.dtype) -> None:
    """Where the kernel reads and writes plain volumes itself, too."""
    for channels, filters, size, arguments in [
        (33, 17, (5, 6, 37), {"padding": 1}),
        (9, 40, (4, 7, 16), {"padding": (0, 1, 2), "groups": 1}),
        (48, 32, (6, 5, 18), {"padding": 2, "dilation": 2}),
    ]:
        x, w = torch.randn(2, channels, *size).to(dtype), torch.randn(filters, channels, 3, 3, 3).to(dtype)
        plain, last = (
            x.contiguous(memory_format=layout) for layout in (torch.contiguous_format, torch.channels_last_3d)
        )
        assert torch.equal(ops.conv3d(plain, w, **arguments), ops.conv3d(last, w, **arguments))


@pytest.mark.parametrize("level", isa.available())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("filters", "size", "arguments"),
    [
        (1, (5, 4, 1), {"padding": 1}),
        (9, (3, 6, 15), {"padding": 1, "stride": (1, 2, 1)}),
        (17, (4, 5, 47), {"padding": (0, 1, 2), "dilation": (1, 1, 2)}),
        (33, (3, 3, 49), {"padding": 1, "stride": (2, 1, 1)}),
        (8, (3, 3, 97), {"padding": (1, 1, 0)}),
    ],
)
def test_one_channel_to_a_plain_volume(
    level: str, dtype: torch.dtype, filters: int, size: tuple, arguments: dict
) -> None:
    """Sizes around vectors and tiles of the kernel that writes the layout itself."""
    torch.manual_seed(0)
    x, w, b = torch.randn(2, 1, *size), torch.randn(filters, 1, 3, 3, 3), torch.randn(filters)
    x, w, b = x.to(dtype), w.to(dtype), b.to(dtype)
    with isa.limit(level):
        y = ops.conv3d(x, w, b, **arguments)
    assert y.is_contiguous()
    expected = F.conv3d(x.double(), w.double(), b.double(), **arguments)
    # Direct float32 sums of 27 products; bfloat16 is rounded once, to 2^-9.
    bound = 1e-5 if dtype == torch.float32 else 2**-8
    assert (y.double() - expected).abs().max() <= bound * expected.abs().max()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("channels", "filters", "size"),
    [
        (5, 3, (2, 3, 31)),
        (33, 17, (3, 5, 13)),
        (64, 33, (1, 1, 65)),
        (32, 2, (7, 11, 129)),
        (8, 32, (64, 64, 65)),
    ],
)
def test_pointwise_rows_are_joined(
    layout: torch.memory_format, dtype: torch.dtype, channels: int, filters: int, size: tuple
) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, channels, *size).to(dtype).contiguous(memory_format=layout)
    w, b = torch.randn(filters, channels, 1, 1, 1).to(dtype), torch.randn(filters).to(dtype)
    y = ops.conv3d(x, w, b)
    expected = torch.einsum("ncdhw,kc->nkdhw", x.double(), w.double().flatten(1))
    expected += b.double().reshape(-1, 1, 1, 1)
    bound = 1e-4 if dtype == torch.float32 else 2**-8  # what "high" promises; one rounding
    assert (y.double() - expected).abs().max() <= bound * expected.abs().max()


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"activation": "tanh"}, ValueError, "'tanh'"),
        ({"activation": "prelu"}, ValueError, "no prelu_weight"),
        ({"prelu_weight": torch.zeros(8)}, ValueError, "activation='none'"),
        ({"activation": "prelu", "prelu_weight": torch.zeros(7)}, RuntimeError, "[1] or [8]"),
        ({"activation": "leaky_relu", "negative_slope": "0.1"}, TypeError, "'0.1'"),
        ({"residual": torch.zeros(1, 8, 3, 4, 6)}, RuntimeError, "(1, 8, 3, 4, 6)"),
        ({"residual": torch.zeros(1, 8, 3, 4, 5).double()}, RuntimeError, "float64"),
        ({"residual": 1.0}, TypeError, "float"),
        ({"input_activation": "prelu"}, ValueError, "'prelu'"),
        ({"input_scale": torch.ones(1, 3)}, RuntimeError, "[1, 4]"),
        ({"input_shift": torch.ones(1, 4).bfloat16()}, RuntimeError, "bfloat16"),
        ({"skip": torch.zeros(1, 4, 5, 6, 8)}, RuntimeError, "(1, 4, 5, 6, 8)"),
        ({"skip": X}, RuntimeError, "have 8 channels"),
        ({"skip_activation": "relu"}, ValueError, "need a skip"),
    ],
)
def test_wrong_fused_arguments(arguments: dict, error: type[Exception], words: str) -> None:
    with pytest.raises(error) as raised:
        ops.conv3d(X, W, **arguments)
    assert words in str(raised.value)


FUSED = {
    "relu": F.relu,
    "leaky_relu": lambda z: F.leaky_relu(z, 0.01),
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"),
}


@pytest.mark.parametrize("activation", FUSED)
@pytest.mark.parametrize("level", [level for level in isa.available() if level != "amx"])
def test_activations_over_their_whole_range(activation: str, level: str) -> None:
    """Every magnitude from 1e-30 to 1e4: a few units in the last place, and infinity and NaN as they come."""
    magnitudes = torch.logspace(-30, 4, 20000)
    x = torch.cat([magnitudes, -magnitudes, torch.linspace(-12, 12, 20000)]).reshape(1, 1, 20, 30, 100)
    w = torch.ones(1, 1, 1, 1, 1)
    with isa.limit(level):
        y = ops.conv3d(x, w, activation=activation)
        special = torch.tensor([0.0, float("inf"), float("nan")]).reshape(1, 1, 1, 1, 3)
        at_special = ops.conv3d(special, w, activation=activation).flatten().tolist()
    expected = FUSED[activation](x.double())
    # Where the result all but vanishes, what counts is its error beside the argument.
    allowed = 2e-6 * expected.abs() + 1e-12 * x.abs().double()
    assert ((y.double() - expected).abs() <= allowed).all()
    assert at_special[:2] == [0.0, float("inf")]
    assert at_special[2] != at_special[2]


@pytest.mark.parametrize("precision", ["highest", "high"])
def test_bfloat16_is_rounded_once_after_the_epilogue(precision: str) -> None:
    """A residual that all but cancels the sum leaves what rounding the sum first would have taken away."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 16, 6, 7, 8, generator=generator).bfloat16()
    w = torch.randn(32, 16, 3, 3, 3, generator=generator).bfloat16()
    exact = F.conv3d(x.double(), w.double(), padding=1)
    residual = -exact.bfloat16()
    set_precision(precision)
    try:
        y = ops.conv3d(x, w, padding=1, residual=residual)
    finally:
        set_precision("high")
    expected = exact + residual.double()
    assert (y.double() - expected).norm() < 0.01 * expected.norm()


@pytest.mark.parametrize("level", isa.available())
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize(
    ("channels", "groups", "kernel", "stride"),
    [(1, 1, 3, 1), (1, 1, 5, 2), (3, 1, 3, 1), (9, 1, 3, 2), (17, 1, 1, 1), (24, 24, 3, 1), (24, 24, 4, 3)],
)
def test_a_large_bias_costs_one_rounding(
    channels: int, groups: int, kernel: int, stride: int, layout: torch.memory_format, level: str
) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, channels, 12, 9, 17, generator=generator).contiguous(memory_format=layout)
    shape = (24, channels // groups, kernel, kernel, kernel)
    w = torch.randn(shape, generator=generator) / math.prod(shape[1:]) ** 0.5
    b = torch.full((24,), 1000.0)
    exact = F.conv3d(x.double(), w.double(), b.double(), stride, 1, groups=groups)
    set_precision("highest")
    try:
        with isa.limit(level):
            y = ops.conv3d(x, w, b, stride, 1, groups=groups)
    finally:
        set_precision("high")
    assert (y.double() - exact).abs().max() < 0.6 * 2.0**-14  # an ulp of 1000


@pytest.mark.parametrize(("channels", "groups", "offset"), [(16, 1, 0.0), (16, 1, 1e4), (16, 16, 1e4)])
@pytest.mark.parametrize("precision", ["highest", "high"])
def test_statistics_survive_a_large_offset(channels: int, groups: int, offset: float, precision: str) -> None:
    x = torch.randn(2, channels, 12, 13, 14, generator=torch.Generator().manual_seed(0))
    w = torch.randn(channels, channels // groups, 3, 3, 3, generator=torch.Generator().manual_seed(1))
    b = torch.full((channels,), offset)
    set_precision(precision)
    try:
        y, mean, variance = ops.conv3d_with_statistics(x, w, b, padding=1, groups=groups)
    finally:
        set_precision("high")
    exact = y.double()
    wanted, spread = exact.mean((2, 3, 4)), exact.var((2, 3, 4), correction=0)
    # The mean is rounded to float32, the variance keeps five digits.
    assert ((mean - wanted).abs() <= 1e-6 * spread.sqrt() + 2.0**-24 * wanted.abs()).all()
    torch.testing.assert_close(variance.double(), spread, rtol=1e-5, atol=0)


def test_statistics_differentiate() -> None:
    x = torch.randn(2, 2, 3, 4, 3, dtype=torch.float64, requires_grad=True)
    w = torch.randn(3, 2, 2, 2, 2, dtype=torch.float64, requires_grad=True)

    def norm(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        y, mean, variance = ops.conv3d_with_statistics(x, w, activation="silu")
        return (y - mean[..., None, None, None]) / (variance[..., None, None, None] + 0.1).sqrt()

    expected = F.instance_norm(F.silu(F.conv3d(x, w)), eps=0.1)
    torch.testing.assert_close(norm(x, w), expected)
    assert torch.autograd.gradcheck(norm, (x, w), fast_mode=True)
    assert torch.autograd.gradgradcheck(norm, (x, w), fast_mode=True)


@pytest.mark.parametrize("activation", ["none", "relu", "leaky_relu", "prelu", "silu", "gelu", "gelu_tanh"])
def test_fused_operator_by_itself(activation: str) -> None:
    """What :func:`volnet.ops.conv3d` does around it is not needed: its gradients are right, twice."""

    def leaf(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    slopes = leaf(4) if activation == "prelu" else None
    tensors = (leaf(4, 2, 2, 2, 2), leaf(4))
    geometry = ([1] * 3, [0] * 6, [1] * 3, 1, activation, 0.1)
    residual, skip = leaf(1, 4, 2, 3, 2), leaf(1, 1, 3, 4, 3)
    affine = [leaf(1, 1) for _ in range(4)]
    before_activation = "none" if activation == "prelu" else activation

    def arguments(statistics: bool, *tensors: torch.Tensor) -> tuple:
        x, w, b, r, skip, scale, shift, skip_scale, skip_shift = tensors
        before = (scale, shift, before_activation, skip, skip_scale, skip_shift, "relu", 0.1)
        return (x, w, b, *geometry, slopes, r, statistics, *before)

    def call(*tensors: torch.Tensor) -> torch.Tensor:
        return torch.ops.volnet.conv3d_fused(*arguments(False, *tensors))[0]

    leaves = (leaf(1, 1, 3, 4, 3), *tensors, residual, skip, *affine)
    torch.library.opcheck(torch.ops.volnet.conv3d_fused.default, arguments(True, *leaves))
    assert torch.autograd.gradcheck(call, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, leaves, fast_mode=True)


def test_fused_call_of_an_unbatched_volume_and_under_autocast() -> None:
    x, w, r = torch.randn(4, 5, 6, 7), torch.randn(8, 4, 3, 3, 3), torch.randn(8, 3, 4, 5)
    slope = torch.tensor([0.3])
    expected = F.prelu((F.conv3d(x, w) + r).unsqueeze(0), slope).squeeze(0)
    y = ops.conv3d(x, w, activation="prelu", prelu_weight=slope, residual=r)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    w.requires_grad_()
    y = ops.conv3d(x, w, activation="prelu", prelu_weight=slope, residual=r)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = ops.conv3d(x, w, activation="prelu", prelu_weight=slope, residual=r)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), expected, rtol=0.05, atol=0.2)


@pytest.mark.parametrize(
    ("activation", "groups", "copies"),
    [("relu", 1, 0), ("leaky_relu", 2, 0), ("silu", 1, 1), ("relu", 16, 1)],
)
@pytest.mark.parametrize("precision", ["highest", "high"])
def test_inputs_are_copied_only_where_said(activation: str, groups: int, copies: int, precision: str) -> None:
    """An exponential is computed once, and depthwise kernels read their input where it lies."""
    x, skip = torch.randn(1, 8, 8, 8, 8), torch.randn(1, 8, 8, 8, 8)
    w = torch.randn(16, 16 // groups, 3, 3, 3)
    set_precision(precision)
    try:
        before = {name: calls for name, _, calls in isa.kernels()}
        with isa.limit("avx512"):
            ops.conv3d(x, w, groups=groups, skip=skip, input_activation=activation)
    finally:
        set_precision("high")
    copied = sum(c - before[name] for name, _, c in isa.kernels() if "apply_inputs" in name)
    assert copied == copies


@pytest.mark.parametrize("level", isa.available())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2)])
def test_everything_fused_on_every_level(level: str, dtype: torch.dtype, stride: int, dilation: int) -> None:
    """Whichever kernel the planner takes there."""
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    x, skip = randn(2, 20, 9, 10, 11).to(dtype), randn(2, 12, 9, 10, 11).to(dtype)
    w, b = randn(32, 32, 3, 3, 3).to(dtype), randn(32).to(dtype)
    scale, shift = randn(2, 20), randn(1, 20)
    geometry = (stride, dilation, dilation)
    whole = (x.double() * scale[..., None, None, None] + shift[..., None, None, None]).relu()
    z = F.conv3d(torch.cat([whole, skip.double()], 1), w.double(), b.double(), *geometry)
    residual = randn(*z.shape).to(dtype)
    expected = F.silu(z + residual.double())
    with isa.limit(level):
        y, mean, variance = ops.conv3d_with_statistics(
            x,
            w,
            b,
            *geometry,
            skip=skip,
            input_scale=scale,
            input_shift=shift,
            input_activation="relu",
            residual=residual,
            activation="silu",
        )
    tolerance = 2.0**-8 if dtype == torch.bfloat16 else 1e-4
    assert (y - expected).abs().max() <= tolerance * expected.abs().max()
    torch.testing.assert_close(mean.double(), y.double().mean((2, 3, 4)), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(variance.double(), y.double().var((2, 3, 4), correction=0), rtol=1e-4, atol=0)


def test_a_norm_between_two_convolutions_trains() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 16, 8, 9, 10, generator=generator)
    weights = [torch.randn(16, 16, 3, 3, 3, generator=generator, requires_grad=True) for _ in range(2)]
    gamma, beta = torch.rand(16, generator=generator), torch.randn(16, generator=generator)
    affine = (gamma.requires_grad_(), beta.requires_grad_())

    y, mean, variance = ops.conv3d_with_statistics(x, weights[0], padding=1)
    scale = gamma * (variance + 1e-5).rsqrt()
    loading = {"input_scale": scale, "input_shift": beta - mean * scale, "input_activation": "leaky_relu"}
    ours = ops.conv3d(y, weights[1], padding=1, **loading)
    first = F.conv3d(x.double(), weights[0].double(), padding=1)
    normed = F.instance_norm(first, weight=gamma.double(), bias=beta.double())
    wanted = F.conv3d(F.leaky_relu(normed), weights[1].double(), padding=1)
    torch.testing.assert_close(ours.double(), wanted, rtol=0, atol=1e-4 * float(wanted.detach().abs().max()))
    direction = torch.randn(ours.shape, generator=generator)
    grads = torch.autograd.grad(ours, (*weights, *affine), direction)
    expected = torch.autograd.grad(wanted, (*weights, *affine), direction.double())
    for grad, exact in zip(grads, expected, strict=True):
        assert (grad - exact).norm() <= 1e-3 * exact.norm()
