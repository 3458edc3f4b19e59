from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing._internal.common_methods_invocations import op_db

from tests.opinfo import opinfo_samples
from volnet import isa, nn, ops

X = torch.randn(2, 3, 4, 6, 8, generator=torch.Generator().manual_seed(0))
Y, INDICES = F.max_pool3d(X, 2, return_indices=True)
LAYOUTS = [torch.contiguous_format, torch.channels_last_3d]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("variant", ["", "grad"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_agrees_with_torch_on_its_own_samples(dtype, variant, layout):
    count = 0
    for sample in opinfo_samples("nn.functional.max_unpool3d", dtype, variant):
        x = sample.input
        if x.dim() == 5:
            x = x.contiguous(memory_format=layout)
        x = x.detach().requires_grad_()
        ours, theirs = (f.max_unpool3d(x, *sample.args, **sample.kwargs) for f in (ops, F))
        assert torch.equal(ours, theirs)
        weight = torch.linspace(-1, 1, ours.numel(), dtype=dtype).reshape(ours.shape)
        grads = [torch.autograd.grad(y, x, weight)[0] for y in (ours, theirs)]
        assert torch.equal(*grads)
        count += 1
    assert count > 5


def test_rejects_what_torch_rejects_in_its_own_error_samples():
    info = next(op for op in op_db if op.name == "nn.functional.max_unpool3d")
    errors = list(info.error_inputs("cpu"))
    assert errors
    for error in errors:
        sample = error.sample_input
        with pytest.raises(error.error_type):
            ops.max_unpool3d(sample.input, *sample.args, **sample.kwargs)


@pytest.mark.parametrize(
    ("x", "indices", "arguments", "message"),
    [
        (Y, INDICES.int(), {}, "int64"),
        (Y, INDICES[:1], {}, "shape of input"),
        (Y, INDICES + 4 * 6 * 8, {}, r"invalid max index: \d+ \(output volumes are of size 4x6x8\)"),
        (Y, INDICES - 4 * 6 * 8, {}, r"invalid max index: -\d+ \(output volumes are of size 4x6x8\)"),
        (Y, INDICES, {"padding": 1}, "invalid max index"),
        (Y[:, :0], INDICES[:, :0], {}, "only the batch"),
        (Y[:, :, :0], INDICES[:, :, :0], {}, "only the batch"),
        (Y[0, 0], INDICES[0, 0], {}, "input must be"),
        (Y, INDICES, {"stride": 0}, "stride must be at least 1"),
        (Y, INDICES, {"kernel_size": 0}, "stride must be at least 1"),
        (Y, INDICES, {"kernel_size": (2, 2)}, "one int or three"),
        (Y, INDICES, {"kernel_size": 2.0}, "kernel_size"),
        (Y, INDICES, {"kernel_size": None}, "kernel_size"),
        (Y, INDICES, {"padding": 5}, "would be of size"),
        (Y, INDICES, {"output_size": (2, 6, 8)}, r"less than a stride of .* got \(2, 6, 8\)"),
        (Y, INDICES, {"output_size": (6, 6, 8)}, "less than a stride"),
        (Y, INDICES, {"output_size": (4, 6)}, r"3 or 5 ints, got \(4, 6\)"),
        (Y, INDICES, {"output_size": 4}, "output_size must be a sequence"),
        (Y, INDICES, {"output_size": (4.0, 6, 8)}, "output_size"),
        (Y.to(torch.complex64), INDICES, {}, "complex64"),
        ([1.0], INDICES, {}, "Tensor"),
        (Y, [1], {}, "Tensor"),
    ],
)
def test_bad_arguments_raise_as_in_torch(x, indices, arguments, message):
    arguments = {"kernel_size": 2, **arguments}
    with pytest.raises(Exception) as theirs:  # noqa: PT011 - its class is what is compared
        F.max_unpool3d(x, indices, **arguments)
    classes = {AttributeError: TypeError, NotImplementedError: RuntimeError}
    expected = classes.get(theirs.type, theirs.type)
    with pytest.raises(expected, match=message):
        ops.max_unpool3d(x, indices, **arguments)


def test_direct_calls_are_checked_too():
    window = ([2] * 3, [2] * 3, [0] * 3)
    with pytest.raises(RuntimeError, match="do not belong"):
        torch.ops.volnet.max_unpool3d(Y, INDICES[:1], [4, 6, 8], *window)
    with pytest.raises(RuntimeError, match="three numbers"):
        torch.ops.volnet.max_unpool3d(Y, INDICES, [4, 6], *window)
    with pytest.raises(RuntimeError, match="int64"):
        torch.ops.volnet.max_unpool3d(Y, INDICES.int(), [4, 6, 8], *window)
    with pytest.raises(RuntimeError, match="do not belong"):
        torch.ops.volnet._max_unpool3d_backward(X[:1], INDICES, False)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_undoes_any_pooling_as_torch_does(data):
    shape = [data.draw(st.integers(0, 2)), *(data.draw(st.integers(1, top)) for top in (20, 7, 7, 40))]
    kernel = [data.draw(st.integers(1, 4)) for _ in range(3)]
    stride = [data.draw(st.integers(1, 4)) for _ in range(3)]
    padding = [data.draw(st.integers(0, k // 2)) for k in kernel]
    layout = data.draw(st.sampled_from(LAYOUTS))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 1000))))
    try:
        y, indices = F.max_pool3d(x, kernel, stride, padding, return_indices=True)
        expected = F.max_unpool3d(y, indices, kernel, stride, padding, output_size=shape[2:])
    except (RuntimeError, ValueError):
        return  # no such pooling, or one with more than a stride of rest
    y = y.contiguous(memory_format=layout).requires_grad_()
    ours = ops.max_unpool3d(
        y, indices.contiguous(memory_format=layout), kernel, stride, padding, output_size=shape[2:]
    )
    assert torch.equal(ours, expected)
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    (grad,) = torch.autograd.grad(ours, y, weight)
    assert torch.equal(grad, weight.flatten(2).gather(2, indices.flatten(2)).reshape(y.shape))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("level", isa.available())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(
    ("shape", "window"),
    [
        ((1, 2, 8, 300, 300), {"kernel_size": 2}),
        ((2, 40, 26, 24, 24), {"kernel_size": 2}),
        ((1, 3, 41, 90, 80), {"kernel_size": 3, "stride": 2, "padding": 1}),
    ],
)
def test_work_in_many_pieces_fits_together(shape, window, dtype, level, layout):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    y, indices = (t.contiguous(memory_format=layout) for t in F.max_pool3d(x, **window, return_indices=True))
    expected = F.max_unpool3d(y, indices, **window, output_size=shape)
    with isa.limit(level):
        assert torch.equal(ops.max_unpool3d(y, indices, **window, output_size=shape), expected)
        # The same values in another order: hardly any index lies in its own window.
        back = indices.flip(2, 3, 4).contiguous(memory_format=layout)
        turned = ops.max_unpool3d(y.flip(2, 3, 4), back, **window, output_size=shape)
        assert torch.equal(turned, expected)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_last_value_for_a_place_wins(layout, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        x = torch.arange(1.0, 2 * 30 * 30 * 30 + 1).reshape(2, 30, 30, 30)[None]
        x = x.contiguous(memory_format=layout).requires_grad_()
        y = ops.max_unpool3d(x, torch.full(x.shape, 5), 2)
        assert y.flatten().nonzero().flatten().tolist() == [5, 60**3 + 5]
        assert torch.equal(y[..., 0, 0, 5], x[..., -1, -1, -1])
        (grad,) = torch.autograd.grad(y, x, torch.ones_like(y))
        assert torch.equal(grad, torch.ones_like(x))
    finally:
        torch.set_num_threads(before)


def test_second_derivatives():
    x = Y.double().requires_grad_()

    def square(x):
        return ops.max_unpool3d(x, INDICES, 2) ** 2

    assert torch.autograd.gradcheck(square, x, fast_mode=True)
    assert torch.autograd.gradgradcheck(square, x, fast_mode=True)


def test_autocast_gives_what_torch_gives():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for y in (Y, Y.bfloat16()):
            ours, theirs = (f.max_unpool3d(y, INDICES, 2) for f in (ops, F))
            assert ours.dtype == theirs.dtype
            assert torch.equal(ours, theirs)


def test_torch_opcheck():
    for layout in LAYOUTS:
        x = Y.clone(memory_format=layout).requires_grad_()
        arguments = (x, INDICES, [4, 6, 8], [2] * 3, [2] * 3, [0] * 3)
        torch.library.opcheck(torch.ops.volnet.max_unpool3d, arguments)


def test_module_is_a_drop_in():
    module, theirs = nn.MaxUnpool3d(3, 2, 1), torch.nn.MaxUnpool3d(3, 2, 1)
    assert isinstance(module, torch.nn.MaxUnpool3d)
    assert repr(module) == repr(theirs)
    y, indices = nn.MaxPool3d(3, 2, 1, return_indices=True)(X)
    for size in (None, X.shape):
        if size is None:
            y5, indices5 = nn.MaxPool3d(3, 2, 1, return_indices=True)(X[..., :3, :5, :7])
            assert torch.equal(module(y5, indices5), theirs(y5, indices5))
        else:
            assert torch.equal(module(y, indices, size), theirs(y, indices, size))
