from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from volnet import ops

X = torch.randn(2, 3, 5, 6, 7, generator=torch.Generator().manual_seed(0))
LAYOUTS = [torch.contiguous_format, torch.channels_last_3d]
MODES = ["reflect", "constant", "nearest", "mirror", "wrap"]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_gives_what_scipy_gives(data):
    shape = [data.draw(st.integers(1, n)) for n in (2, 20, 9, 9, 70)]
    sigma = [data.draw(st.sampled_from([0.0, 0.4, 1.0, 2.3])) for _ in range(3)]
    arguments = {
        "mode": data.draw(st.sampled_from(MODES)),
        "cval": data.draw(st.sampled_from([0.0, -1.5])),
        "truncate": data.draw(st.sampled_from([4.0, 2.5])),
    }
    x = torch.randn(shape).contiguous(memory_format=data.draw(st.sampled_from(LAYOUTS)))
    expected = ndimage.gaussian_filter(x.double().numpy(), sigma, axes=(2, 3, 4), **arguments)
    y = ops.gaussian_filter3d(x, sigma, **arguments)
    np.testing.assert_allclose(y.numpy(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("x", "arguments", "error"),
    [
        (X, {"sigma": -1.0}, RuntimeError),
        (X, {"sigma": float("nan")}, RuntimeError),
        (X, {"sigma": float("inf")}, RuntimeError),
        (X, {"sigma": (1.0, 1.0)}, ValueError),
        (X, {"sigma": "1"}, TypeError),
        (X, {"sigma": True}, TypeError),
        (X, {"sigma": 1.0, "mode": "grid-wrap"}, ValueError),
        (X, {"sigma": 1.0, "truncate": -1}, RuntimeError),
        (X, {"sigma": 1.0, "cval": None}, TypeError),
        (X[0, 0], {"sigma": 1.0}, RuntimeError),
        (X.int(), {"sigma": 1.0}, RuntimeError),
        ([1.0], {"sigma": 1.0}, TypeError),
    ],
)
def test_bad_arguments_raise(x, arguments, error):
    with pytest.raises(error, match="gaussian_filter3d: "):
        ops.gaussian_filter3d(x, **arguments)


def test_direct_calls_are_checked_too():
    with pytest.raises(RuntimeError, match="mode must be"):
        torch.ops.volnet.gaussian_filter3d(X, [1.0] * 3, 4.0, "grid-wrap")
    with pytest.raises(RuntimeError, match="sigma must have three"):
        torch.ops.volnet.gaussian_filter3d(X, [1.0], 4.0, "wrap")


@pytest.mark.parametrize("mode", MODES)
def test_second_derivatives(mode):
    x = X.double()[:1, :2, :3, :2, :4].clone().requires_grad_()

    def function(x):
        return ops.gaussian_filter3d(x, 0.8, mode=mode, cval=0.5) ** 2

    assert torch.autograd.gradcheck(function, x, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, x, fast_mode=True)


def test_torch_opcheck():
    for layout in LAYOUTS:
        x = X.clone(memory_format=layout).requires_grad_()
        torch.library.opcheck(torch.ops.volnet.gaussian_filter3d, (x, [1.0, 0.5, 2.0], 4.0, "mirror"))
