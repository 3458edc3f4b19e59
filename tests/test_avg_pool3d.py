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


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_agrees_with_torch_on_its_own_samples(dtype, layout):
    (info,) = [op for op in op_db if op.name == "nn.functional.avg_pool3d"]
    count = 0
    for sample in info.sample_inputs("cpu", dtype):
        x = sample.input
        if x.dim() == 5:
            x = x.contiguous(memory_format=layout)
        x = x.detach().requires_grad_()
        ours, theirs = (f(x, *sample.args, **sample.kwargs) for f in (ops.avg_pool3d, F.avg_pool3d))
        torch.testing.assert_close(ours, theirs)
        weight = torch.linspace(-1, 1, ours.numel(), dtype=dtype).reshape(ours.shape)
        grads = [torch.autograd.grad(y, x, weight)[0] for y in (ours, theirs)]
        torch.testing.assert_close(*grads)
        count += 1
    assert count > 5


def test_rejects_what_torch_rejects_in_its_own_error_samples():
    (info,) = [op for op in op_db if op.name == "nn.functional.avg_pool3d"]
    errors = list(info.error_inputs("cpu"))
    assert errors
    for error in errors:
        sample = error.sample_input
        with pytest.raises(error.error_type):
            ops.avg_pool3d(sample.input, *sample.args, **sample.kwargs)


@pytest.mark.parametrize(
    ("x", "arguments"),
    [
        (X, {"kernel_size": 2, "padding": 2}),
        (X, {"kernel_size": 3, "padding": -1}),
        (X, {"kernel_size": 2, "stride": 0}),
        (X, {"kernel_size": 2, "stride": (1, -1, 1)}),
        (X, {"kernel_size": 0}),
        (X, {"kernel_size": -1}),
        (X, {"kernel_size": 8}),
        (X, {"kernel_size": (6, 2, 2), "padding": (3, 0, 0)}),
        (X, {"kernel_size": 8, "ceil_mode": True}),
        (X, {"kernel_size": (2, 2)}),
        (X, {"kernel_size": (2, 2, 2, 2)}),
        (X, {"kernel_size": 2, "stride": (1, 2)}),
        (X, {"kernel_size": 2, "padding": ()}),
        (X, {"kernel_size": 2.0}),
        (X, {"kernel_size": (2.0, 2, 2)}),
        (X, {"kernel_size": "2"}),
        (X, {"kernel_size": None}),
        (X, {"kernel_size": True}),
        (X, {"kernel_size": 2, "ceil_mode": 1}),
        (X, {"kernel_size": 2, "count_include_pad": "yes"}),
        (X, {"kernel_size": 2, "divisor_override": 0}),
        (X, {"kernel_size": 2, "divisor_override": 2.5}),
        (X[0, 0], {"kernel_size": 2}),
        (X[None], {"kernel_size": 2}),
        (X[:, :0], {"kernel_size": 2}),
        (X[:, :, :0], {"kernel_size": 2}),
        (X.int(), {"kernel_size": 2}),
        (X.to_sparse(), {"kernel_size": 2}),
        ([1.0], {"kernel_size": 2}),
    ],
)
def test_bad_arguments_raise_as_in_torch(x, arguments):
    with pytest.raises((RuntimeError, TypeError)) as theirs:
        F.avg_pool3d(x, **arguments)
    expected = TypeError if theirs.type is TypeError else RuntimeError
    with pytest.raises(expected, match="avg_pool3d: "):
        ops.avg_pool3d(x, **arguments)


def test_the_message_names_the_value():
    with pytest.raises(RuntimeError, match=r"kernel_size=\(8, 8, 8\).*\(2, 3, 5, 6, 7\)"):
        ops.avg_pool3d(X, 8, ceil_mode=True)


def test_direct_calls_are_checked_too():
    with pytest.raises(RuntimeError, match="larger than the input"):
        torch.ops.volnet.avg_pool3d(X, [8] * 3, [1] * 3, [0] * 3, True, True, None)
    with pytest.raises(RuntimeError, match="divisor_override must not be 0"):
        torch.ops.volnet.avg_pool3d(X, [2] * 3, [1] * 3, [0] * 3, True, True, 0)
    with pytest.raises(RuntimeError, match="does not belong"):
        torch.ops.volnet._avg_pool3d_backward(
            X, [1, 3, 5, 6, 7], [2] * 3, [2] * 3, [0] * 3, True, None, False
        )


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_window_gives_what_torch_gives(data):
    shape = [data.draw(st.integers(0, 2)), *(data.draw(st.integers(1, top)) for top in (20, 7, 7, 40))]
    kernel = [data.draw(st.integers(1, 4)) for _ in range(3)]
    stride = [data.draw(st.integers(1, 4)) for _ in range(3)]
    padding = [data.draw(st.integers(0, k // 2)) for k in kernel]
    divisor = data.draw(st.sampled_from([None, None, 3]))
    arguments = (kernel, stride, padding, data.draw(st.booleans()), data.draw(st.booleans()), divisor)
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    x = torch.randn(shape, generator=generator)
    x = x.contiguous(memory_format=data.draw(st.sampled_from(LAYOUTS))).requires_grad_()
    try:
        expected = F.avg_pool3d(x, *arguments)
    except RuntimeError:
        with pytest.raises(RuntimeError):
            ops.avg_pool3d(x, *arguments)
        return
    y = ops.avg_pool3d(x, *arguments)
    torch.testing.assert_close(y, expected)
    weight = torch.randn(y.shape, generator=generator)
    ours, theirs = (torch.autograd.grad(result, x, weight)[0] for result in (y, expected))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("level", isa.available())
def test_bfloat16_is_summed_in_float32(level, layout):
    # In bfloat16 the sum would stop growing at 256.
    x = torch.ones(1, 3, 9, 9, 9, dtype=torch.bfloat16).contiguous(memory_format=layout).requires_grad_()
    with isa.limit(level):
        y = ops.avg_pool3d(x, 9)
        y.sum().backward()
    assert torch.equal(y, torch.ones_like(y))
    assert torch.equal(x.grad, torch.full_like(x, 1 / 729))


def test_rows_too_long_for_the_vector_kernels():
    x = torch.ones(1, 1, 1, 1, 2**24 + 1, dtype=torch.bfloat16).requires_grad_()

    def calls():
        return sum(calls for name, _, calls in isa.kernels() if name.startswith("avg_pool3d_"))

    before = calls()
    y = ops.avg_pool3d(x, (1, 1, 4))
    y.backward(torch.ones_like(y))
    assert calls() == before
    assert torch.equal(y, torch.ones(1, 1, 1, 1, 2**22, dtype=torch.bfloat16))
    assert torch.equal(x.grad[..., :-1], torch.full((1, 1, 1, 1, 2**24), 0.25, dtype=torch.bfloat16))
    assert float(x.grad[..., -1]) == 0


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("arguments", [{"kernel_size": 2}, {"kernel_size": 3, "stride": 1, "padding": 1}])
def test_work_in_many_pieces_fits_together(arguments, layout):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 6, 31, 60, 50, generator=generator).contiguous(memory_format=layout).requires_grad_()
    ours, theirs = (f(x, **arguments) for f in (ops.avg_pool3d, F.avg_pool3d))
    torch.testing.assert_close(ours, theirs)
    weight = torch.randn(ours.shape, generator=generator)
    grads = [torch.autograd.grad(y, x, weight)[0] for y in (ours, theirs)]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("ceil_mode", [False, True])
def test_second_derivatives(ceil_mode):
    x = X.double()[:1, :2, :4, :5, :4].clone().requires_grad_()

    def function(x):
        return ops.avg_pool3d(x, 3, 2, 1, ceil_mode, count_include_pad=False) ** 2

    assert torch.autograd.gradcheck(function, x, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, x, fast_mode=True)


def test_autocast_gives_float32_as_in_torch():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, theirs = (f(X.bfloat16(), 2) for f in (ops.avg_pool3d, F.avg_pool3d))
    assert ours.dtype == theirs.dtype == torch.float32
    torch.testing.assert_close(ours, theirs)


def test_torch_opcheck():
    for layout in LAYOUTS:
        x = X.clone(memory_format=layout).requires_grad_()
        torch.library.opcheck(torch.ops.volnet.avg_pool3d, (x, [3] * 3, [2] * 3, [1] * 3, True, False, None))


def test_module_is_a_drop_in():
    arguments = {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True, "count_include_pad": False}
    module, theirs = nn.AvgPool3d(**arguments), torch.nn.AvgPool3d(**arguments)
    assert isinstance(module, torch.nn.AvgPool3d)
    assert repr(module) == repr(theirs)
    torch.testing.assert_close(module(X), theirs(X))
