"""Winograd's algorithm: the weight gradient's accuracy, and that the number of threads does not matter."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from volnet import isa, ops

backward = torch.ops.volnet._conv3d_backward_weight


@pytest.mark.parametrize("kind", ["normal", "rectified", "offset", "smooth"])
@pytest.mark.parametrize(("channels", "filters", "side"), [(32, 48, 24), (160, 64, 12)])
def test_weight_gradient_in_the_winograd_domain_is_accurate(
    kind: str, channels: int, filters: int, side: int
) -> None:
    """Relative L2 error at most 5e-5 against float64; the bias's sum as well."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, channels, side, side, side, generator=generator)
    grad = torch.randn(1, filters, side, side, side, generator=generator)
    if kind == "smooth":
        grad = F.avg_pool3d(grad, 3, stride=1, padding=1)
    x = {"rectified": x.relu(), "offset": x + 3}.get(kind, x)
    before = {name: calls for name, _, calls in isa.kernels()}
    with isa.limit("avx512"):
        dw, db = backward(grad, x, [filters, channels, 3, 3, 3], [1] * 3, [1] * 6, [1] * 3, 1)
    ran = [name for name, _, calls in isa.kernels() if calls > before[name]]
    assert any(name.startswith("conv3d_f32_winograd_gradient") for name in ran)
    w = torch.zeros(filters, channels, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    (wanted,) = torch.autograd.grad(F.conv3d(x.double(), w, padding=1), w, grad.double())
    assert (dw.double() - wanted).norm() <= 5e-5 * wanted.norm()
    sums = grad.double().sum((0, 2, 3, 4))
    assert (db.double() - sums).norm() <= 5e-5 * sums.norm()


@pytest.mark.parametrize("kind", ["rectified", "offset"])
def test_many_channels_keep_the_promise_of_high_precision(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 640, 8, 8, 8, generator=generator)
    w = torch.randn(32, 640, 3, 3, 3, generator=generator)
    x = x.relu() if kind == "rectified" else x + 3
    expected = F.conv3d(x.double(), w.double(), padding=1)
    with isa.limit("avx512"):
        error = ops.conv3d(x, w, padding=1).double() - expected
    assert error.norm() <= 2e-5 * expected.norm()
    assert error.abs().max() <= 1e-4 * expected.abs().max()


def with_threads(count: int, function: Callable[[], torch.Tensor]) -> torch.Tensor:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(count)
        with isa.limit("avx512"):
            return function()
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("channels", "filters", "groups"), [(72, 112, 1), (160, 192, 2)])
def test_fused_and_staged_plans_give_the_same_bits(channels: int, filters: int, groups: int) -> None:
    """One thread has tiles enough for a fused plan; for 64 there are so few that the stages are split."""
    x, w = torch.randn(2, channels, 12, 17, 12), torch.randn(filters, channels // groups, 3, 3, 3)
    b = torch.randn(filters)
    fused = with_threads(1, lambda: ops.conv3d(x, w, b, padding=1, groups=groups))
    staged = with_threads(64, lambda: ops.conv3d(x, w, b, padding=1, groups=groups))
    assert torch.equal(fused, staged)
    expected = F.conv3d(x.double(), w.double(), b.double(), padding=1, groups=groups)
    assert (fused.double() - expected).norm() <= 2e-5 * expected.norm()


def test_weight_gradients_do_not_depend_on_the_number_of_threads() -> None:
    x, grad = torch.randn(2, 24, 17, 18, 19), torch.randn(2, 40, 17, 18, 19)
    arguments = ([40, 24, 3, 3, 3], [1] * 3, [1] * 6, [1] * 3, 1)
    one, *others = [
        with_threads(count, lambda: torch.cat([g.flatten() for g in backward(grad, x, *arguments)]))
        for count in (1, 2, 5, 1)
    ]
    assert all(torch.equal(one, other) for other in others)
