from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from volnet import nn, ops

X = torch.randn(2, 3, 5, 6, 7, generator=torch.Generator().manual_seed(0))
LAYOUTS = [torch.contiguous_format, torch.channels_last_3d]
INFINITY = float("inf")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("norm_type", [1, 2, 3, 4.0, 0.5, -1, INFINITY, -INFINITY])
@pytest.mark.parametrize(
    "window", [{"kernel_size": 2}, {"kernel_size": (3, 2, 2), "stride": (2, 1, 3), "ceil_mode": True}]
)
def test_agrees_with_torch_in_float64(window, norm_type, dtype, layout):
    x = X.to(dtype).contiguous(memory_format=layout).requires_grad_()
    exact = x.detach().double().requires_grad_()
    ours, theirs = (ops.lp_pool3d(x, norm_type, **window), F.lp_pool3d(exact, norm_type, **window))
    assert ours.dtype == dtype
    assert ours.is_contiguous(memory_format=layout)
    tolerance = 2**-7 if dtype == torch.bfloat16 else 1e-3  # where the sum of a window nearly cancels
    torch.testing.assert_close(ours.double(), theirs, rtol=tolerance, atol=tolerance, equal_nan=True)
    if norm_type in (2, 4.0, INFINITY, -INFINITY):
        grads = [torch.autograd.grad(y.sum(), leaf)[0].double() for y, leaf in ((ours, x), (theirs, exact))]
        torch.testing.assert_close(*grads, rtol=2 * tolerance, atol=2 * tolerance)


def test_a_window_of_zeros_has_no_gradient():
    x = torch.zeros(1, 2, 4, 4, 4, requires_grad=True)
    ours, theirs = (torch.autograd.grad(f.lp_pool3d(x, 2, 2).sum(), x)[0] for f in (ops, F))
    torch.testing.assert_close(ours, theirs, equal_nan=True)


@pytest.mark.parametrize(
    ("x", "arguments", "error"),
    [
        (X, {"norm_type": "2", "kernel_size": 2}, TypeError),
        (X, {"norm_type": 2, "kernel_size": 2.5}, TypeError),
        (X, {"norm_type": 2, "kernel_size": 8}, RuntimeError),
        (X, {"norm_type": 2, "kernel_size": 2, "stride": 0}, RuntimeError),
        (X, {"norm_type": 0, "kernel_size": 2}, ZeroDivisionError),
        (X[0, 0], {"norm_type": 2, "kernel_size": 2}, RuntimeError),
    ],
)
def test_bad_arguments_raise(x, arguments, error):
    with pytest.raises(error):
        ops.lp_pool3d(x, **arguments)


def test_compiles_as_one_graph():
    compiled = torch.compile(ops.lp_pool3d, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(X, 2, 2), ops.lp_pool3d(X, 2, 2))


def test_module_is_a_drop_in():
    module, theirs = nn.LPPool3d(2, 3, 2, ceil_mode=True), torch.nn.LPPool3d(2, 3, 2, ceil_mode=True)
    assert repr(module) == repr(theirs)
    torch.testing.assert_close(module(X), theirs(X))
