from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing._internal.common_methods_invocations import op_db

from volnet import isa, nn, ops

X = torch.randn(2, 3, 5, 6, 7, generator=torch.Generator().manual_seed(0))
LAYOUTS = [torch.contiguous_format, torch.channels_last_3d]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_agrees_with_torch_on_its_own_samples(dtype):
    (info,) = [op for op in op_db if op.name == "nn.functional.max_pool3d"]
    count = 0
    samples = info.sample_inputs("cpu", dtype, requires_grad=True)
    # There are hundreds: all of them in float32.
    for sample in samples if dtype == torch.float32 else list(samples)[::5]:
        x, others = sample.input, sample.kwargs
        if x.dim() == 5 and count % 2:
            x = x.detach().contiguous(memory_format=torch.channels_last_3d).requires_grad_()
        ours, theirs = (f(x, *sample.args, **others) for f in (ops.max_pool3d, F.max_pool3d))
        if others.get("return_indices"):
            assert torch.equal(ours[1], theirs[1])
            ours, theirs = ours[0], theirs[0]
        assert torch.equal(ours, theirs)
        weight = torch.linspace(-1, 1, ours.numel(), dtype=dtype).reshape(ours.shape)
        # torch adds bfloat16 gradients in bfloat16, volnet in float32.
        tolerance = {"rtol": 0.05, "atol": 0.05} if dtype == torch.bfloat16 else {}
        grads = [torch.autograd.grad(y, x, weight)[0] for y in (ours, theirs)]
        torch.testing.assert_close(*grads, **tolerance)
        count += 1
    assert count > 5


def test_rejects_what_torch_rejects_in_its_own_error_samples():
    (info,) = [op for op in op_db if op.name == "nn.functional.max_pool3d"]
    errors = list(info.error_inputs("cpu"))
    assert errors
    for error in errors:
        sample = error.sample_input
        with pytest.raises(error.error_type):
            ops.max_pool3d(sample.input, *sample.args, **sample.kwargs)


@pytest.mark.parametrize(
    ("x", "arguments"),
    [
        (X, {"kernel_size": 2, "padding": 2}),
        (X, {"kernel_size": 3, "padding": 2, "dilation": 2}),
        (X, {"kernel_size": 3, "padding": -1}),
        (X, {"kernel_size": 2, "stride": 0}),
        (X, {"kernel_size": 2, "stride": (1, -1, 1)}),
        (X, {"kernel_size": 0}),
        (X, {"kernel_size": -1}),
        (X, {"kernel_size": 8}),
        (X, {"kernel_size": 9, "stride": 3, "ceil_mode": True}),
        (X, {"kernel_size": 3, "dilation": 4}),
        (X, {"kernel_size": 2, "dilation": 0}),
        (X, {"kernel_size": (2, 2)}),
        (X, {"kernel_size": (2, 2, 2, 2)}),
        (X, {"kernel_size": 2, "stride": (1, 2)}),
        (X, {"kernel_size": 2, "padding": ()}),
        (X, {"kernel_size": 2, "dilation": (1, 2)}),
        (X, {"kernel_size": 2.0}),
        (X, {"kernel_size": (2.0, 2, 2)}),
        (X, {"kernel_size": "2"}),
        (X, {"kernel_size": None}),
        (X, {"kernel_size": True}),
        (X, {"kernel_size": 2, "ceil_mode": 1}),
        (X[0, 0], {"kernel_size": 2}),
        (X[None], {"kernel_size": 2}),
        (X[:, :0], {"kernel_size": 2}),
        (X[:, :, :0], {"kernel_size": 2}),
        (X[:, :, :0], {"kernel_size": 2, "padding": 1}),
        (X.to(torch.complex64), {"kernel_size": 2}),
        (X.to_sparse(), {"kernel_size": 2}),
        ([1.0], {"kernel_size": 2}),
    ],
)
def test_bad_arguments_raise_as_in_torch(x, arguments):
    with pytest.raises((RuntimeError, TypeError)) as theirs:
        F.max_pool3d(x, **arguments)
    expected = TypeError if theirs.type is TypeError else RuntimeError
    with pytest.raises(expected, match="max_pool3d: "):
        ops.max_pool3d(x, **arguments)


def test_the_message_names_the_value():
    with pytest.raises(RuntimeError, match=r"padding=\(2, 2, 2\) for kernel_size=\(3, 3, 3\)"):
        ops.max_pool3d(X, 3, padding=2)
    with pytest.raises(RuntimeError, match=r"stride must be at least 1 on every axis, got \(1, 0, 1\)"):
        ops.max_pool3d(X, 3, stride=(1, 0, 1))


def test_direct_calls_are_checked_too():
    with pytest.raises(RuntimeError, match="at least 1"):
        torch.ops.volnet.max_pool3d(X, [2] * 3, [0] * 3, [0] * 3, [1] * 3, False)
    with pytest.raises(RuntimeError, match="three numbers"):
        torch.ops.volnet.max_pool3d(X, [2], [2], [0], [1], False)
    indices = torch.zeros(2, 3, 2, 3, 3, dtype=torch.int64)
    with pytest.raises(RuntimeError, match="do not belong"):
        torch.ops.volnet._max_pool3d_backward(
            X, indices, [2, 3, 5, 6, 7], [2] * 3, [2] * 3, [0] * 3, [1] * 3, False
        )


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_window_gives_what_torch_gives(data):
    shape = [data.draw(st.integers(0, 2)), *(data.draw(st.integers(1, top)) for top in (20, 7, 7, 40))]
    kernel = [data.draw(st.integers(1, 4)) for _ in range(3)]
    stride = [data.draw(st.integers(1, 4)) for _ in range(3)]
    padding = [data.draw(st.integers(0, k // 2)) for k in kernel]
    dilation = [data.draw(st.integers(1, 3)) for _ in range(3)]
    ceil_mode = data.draw(st.booleans())
    arguments = (kernel, stride, padding, dilation, ceil_mode, True)
    # Few different values, so that there are ties; NaN and infinities among them.
    values = torch.tensor([-1.0, 0.0, 1.0, 2.0, float("nan"), float("inf"), float("-inf")])
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    x = values[torch.randint(0, data.draw(st.integers(1, 7)), shape, generator=generator)]
    x = x.contiguous(memory_format=data.draw(st.sampled_from(LAYOUTS)))
    try:
        # In channels last torch gives a window of nothing but -inf the index of another window's voxel.
        expected, places = F.max_pool3d(x.contiguous(), *arguments)
    except RuntimeError:
        with pytest.raises(RuntimeError):
            ops.max_pool3d(x, *arguments)
        return
    # Windows without a voxel have indices that torch does not define.
    empty = torch.isneginf(F.max_pool3d(torch.zeros_like(x), *arguments[:-1]))
    y, indices = ops.max_pool3d(x, *arguments)
    assert torch.equal(y.nan_to_num(7.0), expected.nan_to_num(7.0))
    assert torch.equal(indices, places.where(~empty, -1))
    assert torch.equal(ops.max_pool3d(x, *arguments[:-1]).nan_to_num(7.0), y.nan_to_num(7.0))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("level", isa.available())
def test_a_window_without_a_voxel_gives_no_gradient(level, layout):
    x = torch.ones(1, 2, 3, 3, 3).contiguous(memory_format=layout).requires_grad_()
    with isa.limit(level):
        y, indices = ops.max_pool3d(
            x, (1, 1, 2), stride=1, padding=(0, 0, 1), dilation=(1, 1, 4), return_indices=True
        )
        (grad,) = torch.autograd.grad(y.clamp(min=-1).sum(), x)
    assert torch.isneginf(y).all()
    assert torch.equal(indices, torch.full_like(indices, -1))
    assert torch.equal(grad, torch.zeros_like(x))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("level", isa.available())
def test_the_last_of_several_nans_is_the_maximum(level, layout):
    x = torch.zeros(1, 3, 3, 3, 3)
    x[..., 1, 1, 2] = x[..., 2, 0, 1] = float("nan")
    with isa.limit(level):
        y, indices = ops.max_pool3d(x.contiguous(memory_format=layout), 3, return_indices=True)
    assert y.isnan().all()
    assert indices.flatten().tolist() == [2 * 9 + 1] * 3


def test_windows_too_large_for_the_vector_kernels():
    huge = {"kernel_size": (1, 1, 2**24), "padding": (0, 0, 2**23)}
    calls = [sum(calls for name, _, calls in isa.kernels() if name.startswith("max_pool3d_"))]
    y, indices = ops.max_pool3d(X, **huge, return_indices=True)
    calls.append(sum(calls for name, _, calls in isa.kernels() if name.startswith("max_pool3d_")))
    expected, places = F.max_pool3d(X, (1, 1, 7), return_indices=True)
    assert torch.equal(y, expected)
    assert torch.equal(indices, places)
    assert calls[0] == calls[1]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("shape", "arguments"),
    [
        ((1, 2, 7, 300, 300), {"kernel_size": 2}),
        ((1, 2, 21, 200, 90), {"kernel_size": 3, "stride": 1, "padding": 1}),
        ((1, 40, 26, 24, 24), {"kernel_size": 4, "stride": 1, "padding": 2}),
        ((1, 1, 5, 400, 400), {"kernel_size": (9, 1, 1), "padding": (4, 0, 0)}),
    ],
)
def test_work_in_many_pieces_fits_together(shape, arguments, dtype, layout):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).to(dtype).contiguous(memory_format=layout)
    gradients = []
    for function in (ops.max_pool3d, F.max_pool3d):
        leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
        y, indices = function(leaf, **arguments, return_indices=True)
        # Small whole numbers: their sums are exact in every order, and in bfloat16.
        weight = torch.arange(y.numel()).remainder(3).reshape(y.shape).to(dtype)
        y.backward(weight)
        gradients.append((y, indices, leaf.grad))
    for ours, theirs in zip(*gradients, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("direct", [False, True])
def test_second_derivatives(direct):
    x = X.double()[:1, :2, :4, :4, :4].requires_grad_()

    def function(x):
        if direct:
            return torch.ops.volnet.max_pool3d(x, [2] * 3, [2] * 3, [1] * 3, [1] * 3, False) ** 2
        return ops.max_pool3d(x, 2, padding=1) ** 2

    assert torch.autograd.gradcheck(function, x, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, x, fast_mode=True)


def test_gradients_of_bfloat16_are_summed_in_float32():
    x = torch.zeros(1, 2, 1, 1, 300, dtype=torch.bfloat16)
    x[..., 150] = 1
    for layout in LAYOUTS:
        leaf = x.clone(memory_format=layout).requires_grad_()
        ops.max_pool3d(leaf, (1, 1, 299), stride=1, padding=(0, 0, 149)).sum().backward()
        # 1 is lost beside 256 in bfloat16: adding one by one would stop there.
        assert torch.equal(leaf.grad[..., 150].float(), torch.full((1, 2, 1, 1), 300.0))


def kept_for_backward(function, *arguments, **named):
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        function(X.clone().requires_grad_(), *arguments, **named)
    return [t.dtype for t in kept]


@pytest.mark.parametrize("name", ["max_pool3d", "adaptive_max_pool3d"])
def test_backward_keeps_places_in_four_bytes(name):
    function = getattr(ops, name)
    assert kept_for_backward(function, 2) == [torch.int32]
    # Those that the caller asked for are there already.
    assert kept_for_backward(function, 2, return_indices=True) == [torch.int64]


def test_torch_opcheck():
    for layout in LAYOUTS:
        x = X.clone(memory_format=layout).requires_grad_()
        arguments = (x, [2] * 3, [2] * 3, [0] * 3, [1] * 3, True)
        torch.library.opcheck(torch.ops.volnet.max_pool3d, arguments)
        for narrow in (False, True):
            torch.library.opcheck(torch.ops.volnet.max_pool3d_with_indices, (*arguments, narrow))


def test_module_is_a_drop_in():
    arguments = {"kernel_size": 3, "stride": 2, "padding": 1, "dilation": 1, "ceil_mode": True}
    module = nn.MaxPool3d(**arguments, return_indices=True)
    theirs = torch.nn.MaxPool3d(**arguments, return_indices=True)
    assert isinstance(module, torch.nn.MaxPool3d)
    assert repr(module) == repr(theirs)
    for ours, expected in zip(module(X), theirs(X), strict=True):
        assert torch.equal(ours, expected)
