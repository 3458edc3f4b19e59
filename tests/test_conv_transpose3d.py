"""What the case table cannot say of conv_transpose3d: errors, torch's samples, random shapes, autocast, the
module."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.opinfo import opinfo_samples
from volnet import nn, ops

X = torch.zeros(1, 4, 5, 6, 7)
W = torch.zeros(4, 8, 3, 3, 3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"input": X[0, 0]}, "shape (5, 6, 7)"),
        ({"weight": W[0]}, "weight must be"),
        ({"weight": W.double()}, "float64"),
        ({"input": X.to(torch.int32)}, "int32"),
        ({"input": X.to_sparse()}, "sparse"),
        ({"input": torch.zeros(1, 3, 5, 6, 7)}, "3 channels"),
        ({"input": torch.zeros(1, 0, 5, 6, 7), "weight": W[:0]}, "0 channels"),
        ({"input": torch.zeros(1, 4, 0, 6, 7)}, "size of the input"),
        ({"bias": torch.zeros(7)}, "bias must be [8]"),
        ({"stride": 0}, "stride"),
        ({"stride": (1, 2)}, "(1, 2)"),
        ({"padding": -1}, "padding"),
        ({"padding": (3, 4, 4)}, "empty output of size (1, 0, 1)"),
        ({"output_padding": -1}, "output_padding"),
        ({"output_padding": 1}, "output_padding=(1, 1, 1)"),
        ({"output_padding": (0, 1, 0), "stride": (2, 1, 1)}, "output_padding=(0, 1, 0)"),
        ({"dilation": 0}, "dilation"),
        ({"groups": 3}, "groups=3"),
        ({"groups": 0}, "groups"),
        ({"weight": W[:, :, :0]}, "kernel size"),
        ({"weight": W[:, :0]}, "0 filters"),
    ],
)
def test_wrong_arguments_raise_what_torch_raises(arguments: dict, words: str) -> None:
    call = {"input": X, "weight": W, **arguments}
    with pytest.raises(RuntimeError) as error:
        ops.conv_transpose3d(**call)
    assert words in str(error.value)
    with pytest.raises(RuntimeError):
        F.conv_transpose3d(**call)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"input": [1.0]}, "list"),
        ({"stride": 1.5}, r"1\.5"),
        ({"padding": "same"}, "same"),
        ({"output_padding": 0.5}, r"0\.5"),
    ],
)
def test_wrong_types_raise_what_torch_raises(arguments: dict, words: str) -> None:
    call = {"input": X, "weight": W, **arguments}
    with pytest.raises(TypeError, match=words):
        ops.conv_transpose3d(**call)
    with pytest.raises(TypeError):
        F.conv_transpose3d(**call)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_torchs_own_samples(dtype: torch.dtype) -> None:
    ran = 0
    for sample in opinfo_samples("nn.functional.conv_transpose3d", dtype):
        leaves = [
            t.detach().clone().requires_grad_() for t in (sample.input, *sample.args) if torch.is_tensor(t)
        ]
        others = [t for t in sample.args if not torch.is_tensor(t)]
        expected = F.conv_transpose3d(*[t.double() for t in leaves], *others, **sample.kwargs)
        wanted = torch.autograd.grad(expected.sum(), leaves)
        actual = ops.conv_transpose3d(*leaves, *others, **sample.kwargs)
        got = torch.autograd.grad(actual.sum(), leaves)
        # bfloat16 is rounded once, to half a step of the value; sums in float32 err relative to the largest.
        rtol = 2.0**-8 if dtype == torch.bfloat16 else 0
        atol = (1e-12 if dtype == torch.float64 else 1e-5) * float(expected.detach().abs().max())
        torch.testing.assert_close(actual.double(), expected, rtol=rtol, atol=atol)
        for g, w in zip(got, wanted, strict=True):
            scale = float(w.abs().max()) + 1e-6
            torch.testing.assert_close(g.double(), w.double(), rtol=2 * rtol, atol=1e-4 * scale)
        ran += 1
    assert ran > 4


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_geometry_equals_torch(data: st.DataObject) -> None:
    def triple(low: int, high: int) -> list[int]:
        return data.draw(st.lists(st.integers(low, high), min_size=3, max_size=3))

    groups = data.draw(st.sampled_from([1, 1, 2, 3]))
    channels, filters = groups * data.draw(st.integers(1, 18)), data.draw(st.integers(1, 18))
    kernel, stride, dilation, size = triple(1, 4), triple(1, 3), triple(1, 4), triple(1, 9)
    extra = [data.draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True)]
    whole = [
        (n - 1) * s + d * (k - 1) + e + 1
        for n, s, d, k, e in zip(size, stride, dilation, kernel, extra, strict=True)
    ]
    padding = [data.draw(st.integers(0, min(4, (n - 1) // 2))) for n in whole]
    x = torch.randn(2, channels, *size, requires_grad=True)
    w = torch.randn(channels, filters, *kernel, requires_grad=True)
    b = torch.randn(groups * filters, requires_grad=True)
    arguments = (stride, padding, extra, groups, dilation)
    y = ops.conv_transpose3d(x, w, b, *arguments)
    expected = F.conv_transpose3d(x.double(), w.double(), b.double(), *arguments)
    assert y.shape == expected.shape
    scale = float(expected.detach().abs().max()) + 1e-6
    torch.testing.assert_close(y.double(), expected, rtol=0, atol=1e-4 * scale)
    direction = torch.randn_like(y)
    grads = torch.autograd.grad(y, (x, w, b), direction)
    wanted = torch.autograd.grad(expected, (x, w, b), direction.double())
    # A sum errs relative to the magnitudes it adds up, however much of them cancels: each product of bfloat16
    # parts by up to 2^-15.
    absolute = [t.detach().double().abs().requires_grad_() for t in (x, w, b)]
    summed = F.conv_transpose3d(*absolute, *arguments)
    magnitudes = torch.autograd.grad(summed, absolute, direction.double().abs())
    for g, e, m in zip(grads, wanted, magnitudes, strict=True):
        torch.testing.assert_close(g.double(), e.double(), rtol=1e-6, atol=4e-5 * float(m.max()))


def test_channels_last_weights_decide_the_layout() -> None:
    x, w = torch.randn(1, 1, 3, 4, 5), torch.randn(1, 8, 2, 2, 2)
    w = w.to(memory_format=torch.channels_last_3d)
    y = ops.conv_transpose3d(x, w, stride=2)
    assert y.is_contiguous(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(y, F.conv_transpose3d(x, w, stride=2))


def test_unbatched_input() -> None:
    x, w = torch.randn(4, 5, 6, 7), torch.randn(4, 8, 3, 3, 3)
    torch.testing.assert_close(
        ops.conv_transpose3d(x, w, stride=2), F.conv_transpose3d(x, w, stride=2), rtol=1e-4, atol=1e-4
    )


def test_autocast_computes_in_bfloat16_and_trains_float32_weights() -> None:
    ours, theirs = nn.ConvTranspose3d(4, 8, 2, stride=2), torch.nn.ConvTranspose3d(4, 8, 2, stride=2)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(1, 4, 3, 4, 5)
    for model in (ours, theirs):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = model(x)
        assert y.dtype == torch.bfloat16
        y.float().square().sum().backward()
    for mine, torchs in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert mine.grad is not None
        assert mine.grad.dtype == torch.float32
        torch.testing.assert_close(
            mine.grad, torchs.grad, rtol=0.05, atol=0.05 * float(torchs.grad.abs().max())
        )


@pytest.mark.parametrize("output_size", [None, [5, 8, 10], [1, 3, 6, 8, 9]])
def test_module_is_a_drop_in(output_size: list[int] | None) -> None:
    arguments = {"stride": 2, "padding": 1, "groups": 2, "bias": output_size is None}
    theirs = torch.nn.ConvTranspose3d(4, 6, 3, **arguments)
    ours = nn.ConvTranspose3d(4, 6, 3, **arguments)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 4, 3, 4, 5)
    torch.testing.assert_close(ours(x, output_size), theirs(x, output_size), rtol=1e-5, atol=1e-5)


def test_module_takes_only_the_sizes_that_the_stride_leaves_open() -> None:
    layer = nn.ConvTranspose3d(4, 6, 3, stride=2)
    with pytest.raises(ValueError, match="output size"):
        layer(X, [5, 5, 5])


def test_second_derivatives() -> None:
    def leaf(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    def function(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        y = ops.conv_transpose3d(x, w, b, stride=(1, 2, 1), padding=1, output_padding=(0, 1, 0), groups=2)
        return y.tanh()

    inputs = (leaf(2, 4, 2, 3, 2), leaf(4, 1, 3, 2, 3), leaf(2))
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize("activation", ["none", "leaky_relu", "prelu", "gelu"])
def test_fused_operator_by_itself(activation: str) -> None:
    """Its gradients are right without what :func:`volnet.ops.conv_transpose3d` does around it, twice."""

    def leaf(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    slopes = leaf(1) if activation == "prelu" else None
    geometry = ([2] * 3, [0] * 3, [0] * 3, [1] * 3, 1, activation, 0.1, slopes)
    leaves = (leaf(1, 2, 2, 1, 2), leaf(2, 3, 2, 2, 2), leaf(3), leaf(1, 3, 4, 2, 4))

    def call(*tensors: torch.Tensor) -> torch.Tensor:
        return torch.ops.volnet.conv_transpose3d_fused(*tensors[:3], *geometry, tensors[3])

    operator = torch.ops.volnet.conv_transpose3d_fused.default
    torch.library.opcheck(operator, (*leaves[:3], *geometry, leaves[3]))
    assert torch.autograd.gradcheck(call, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, leaves, fast_mode=True)


def test_wrong_fused_arguments() -> None:
    x, w = torch.zeros(1, 2, 3, 4, 5), torch.zeros(2, 3, 2, 2, 2)
    with pytest.raises(ValueError, match="'tanh'"):
        ops.conv_transpose3d(x, w, activation="tanh")
    with pytest.raises(RuntimeError, match=r"\(1, 3, 4, 5, 6\)"):
        ops.conv_transpose3d(x, w, residual=torch.zeros(1, 3, 4, 5, 7))
