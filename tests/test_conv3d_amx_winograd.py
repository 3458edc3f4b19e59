"""Winograd along h and w in front of the AMX products: every size, layout and fusion, made to run by name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F

from volnet import _C, isa, ops

pytestmark = pytest.mark.skipif("amx" not in isa.available(), reason="this machine has no amx")

KERNEL = "conv3d_f32_amx_winograd"
LAYOUTS = [torch.contiguous_format, torch.channels_last_3d]


@contextmanager
def chosen(volume: list[int], weight: list[int], padding: list[int], groups: int = 1) -> Iterator[None]:
    """Has convolutions of these sizes run by the kernel, and checks that one has."""
    sides = [side for p in padding for side in (p, p)]
    plan = _C.conv3d_plans(volume, weight, [1] * 3, sides, [1] * 3, groups, "float32", 1)[0]
    _C.plans_remember({plan["key"]: "amx_winograd"})
    _C.plans_trace(True)
    try:
        yield
        assert KERNEL in _C.plans_take_trace()
    finally:
        _C.plans_trace(False)
        _C.plans_forget()


def check(y: torch.Tensor, expected: torch.Tensor) -> None:
    error = y.double() - expected
    assert error.norm() <= 2e-5 * expected.norm()
    assert error.abs().max() <= 1e-4 * expected.abs().max()


# batch, channels, filters, size, kernel along d, padding, groups
CASES = [
    (1, 17, 19, (7, 9, 10), 3, (1, 1, 1), 1),
    (2, 32, 32, (5, 6, 37), 3, (1, 1, 1), 1),
    (1, 33, 17, (4, 3, 3), 3, (0, 0, 0), 1),
    (1, 64, 96, (1, 2, 70), 3, (1, 1, 1), 1),
    (1, 40, 33, (6, 5, 5), 3, (2, 0, 3), 1),
    (1, 96, 40, (9, 4, 4), 3, (1, 1, 1), 1),
    (1, 160, 48, (3, 33, 4), 1, (0, 1, 1), 1),
    (1, 48, 70, (6, 7, 8), 2, (0, 1, 0), 1),
    (1, 32, 16, (2, 4, 5), 1, (1, 1, 1), 1),  # planes of outputs without any input
    (2, 72, 54, (4, 5, 6), 3, (1, 1, 1), 2),
    (1, 288, 130, (3, 8, 8), 3, (1, 1, 1), 1),
]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_size(case: tuple, layout: torch.memory_format) -> None:
    batch, channels, filters, size, depth, padding, groups = case
    x = torch.randn(batch, channels, *size).contiguous(memory_format=layout)
    w, bias = torch.randn(filters, channels // groups, depth, 3, 3), torch.randn(filters)
    with chosen(list(x.shape), list(w.shape), list(padding), groups):
        y = ops.conv3d(x, w, bias, padding=padding, groups=groups)
    assert y.is_contiguous(memory_format=layout)
    check(y, F.conv3d(x.double(), w.double(), bias.double(), padding=padding, groups=groups))


def test_the_gradient_of_the_data() -> None:
    x, w = torch.randn(1, 48, 6, 9, 11, requires_grad=True), torch.randn(40, 48, 3, 3, 3)
    grad = torch.randn(1, 40, 6, 9, 11)
    y = ops.conv3d(x, w, padding=1)
    with chosen(list(grad.shape), [48, 40, 3, 3, 3], [1, 1, 1]):
        (dx,) = torch.autograd.grad(y, x, grad)
    wide = x.detach().double().requires_grad_()
    check(dx, torch.autograd.grad(F.conv3d(wide, w.double(), padding=1), wide, grad.double())[0])


@pytest.mark.parametrize("activation", ["none", "relu", "leaky_relu", "silu"])
def test_fused_work(activation: str) -> None:
    """On both sides: the norm and activation of the layer before, a skip, a residual, statistics."""
    x, skip = (torch.randn(2, c, 5, 7, 9).contiguous(memory_format=LAYOUTS[1]) for c in (24, 20))
    w, bias = torch.randn(40, 44, 3, 3, 3), torch.randn(40)
    residual = torch.randn(2, 40, 5, 7, 9).contiguous(memory_format=LAYOUTS[1])
    scale, shift = torch.rand(2, 24) + 0.5, torch.randn(2, 24)
    ones, threes = [1] * 3, [1] * 6
    fused = torch.ops.volnet.conv3d_fused
    with chosen([2, 44, 5, 7, 9], list(w.shape), [1, 1, 1]):
        y, mean, variance = fused(
            x, w, bias, ones, threes, ones, 1, activation, 0.1, None, residual, True,
            scale, shift, "relu", skip, None, None, "none", 0.1,
        )  # fmt: skip
    wide = (
        x.double() * scale.double()[:, :, None, None, None] + shift.double()[:, :, None, None, None]
    ).relu()
    expected = F.conv3d(torch.cat([wide, skip.double()], 1), w.double(), bias.double(), padding=1)
    expected = expected + residual.double()
    applied = {
        "none": lambda v: v,
        "relu": F.relu,
        "silu": F.silu,
        "leaky_relu": lambda v: F.leaky_relu(v, 0.1),
    }
    expected = applied[activation](expected)
    check(y, expected)
    torch.testing.assert_close(mean.double(), expected.mean((2, 3, 4)), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(variance.double(), expected.var((2, 3, 4), correction=0), rtol=1e-4, atol=1e-4)


def test_the_bits_depend_neither_on_the_threads_nor_on_the_layout() -> None:
    x, w = torch.randn(1, 64, 11, 14, 15), torch.randn(96, 64, 3, 3, 3)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            for layout in LAYOUTS:
                torch.set_num_threads(threads)
                with chosen(list(x.shape), list(w.shape), [1, 1, 1]):
                    results.append(ops.conv3d(x.contiguous(memory_format=layout), w, padding=1))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(y, results[0]) for y in results)


@pytest.mark.parametrize("bits", [0x7FC00000, -1, 0x7FFFFFFF, 0x7F800000])
def test_what_is_no_number_stays_none(bits: int) -> None:
    """Also the NaN that rounding by an addition would carry over into zero."""
    x = torch.randn(1, 32, 4, 6, 6)
    x.view(torch.int32)[0, 3, 1, 2, 2] = bits
    w = torch.randn(32, 32, 3, 3, 3)
    with chosen(list(x.shape), list(w.shape), [1, 1, 1]):
        y = ops.conv3d(x, w, padding=1)
    assert not y[:, :, 0:3, 1:4, 1:4].isfinite().any()
    assert y[:, :, 3].isfinite().all()
