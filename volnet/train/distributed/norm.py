"""Batch, instance and group norm of a volume that is split over ranks, with the statistics of all of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from volnet.train.distributed.exchange import Group, gathered

__all__ = ["spatial_norm"]


def spatial_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    groups: int,
    per_image: bool,
    eps: float,
    activation: str,
    negative_slope: float,
    group: Group,
) -> tuple[Tensor, Tensor, Tensor, int]:
    """``activation(norm(x) * weight + bias + residual)`` of this rank's planes.

    Args:
        x: [N, C, planes, H, W], possibly no planes.
        weight, bias: [C] or none.
        residual: like ``x`` or none.
        groups: of channels that share statistics; as many as channels for instance and batch norm.
        per_image: statistics of each image; otherwise of the whole batch.

    Returns:
        Like ``x``; mean and variance [N or 1, groups] in float64, the same bits on all ranks; and of how many
        values they are. Each rank's moments are merged in the order of the ranks after Chan, Golub and
        LeVeque, so that a large offset costs no accuracy.
    """
    mean, variance, count = _statistics(x.detach(), groups, per_image, group)
    y: Tensor = _Norm.apply(
        x, weight, bias, residual, mean, variance, count, per_image, eps, activation, negative_slope, group
    )
    return y, mean, variance, count


def _statistics(x: Tensor, groups: int, per_image: bool, group: Group) -> tuple[Tensor, Tensor, int]:
    sets = x.shape[0] if per_image else 1
    own = x.numel() // (sets * groups)
    moments = torch.zeros(3, sets, groups, dtype=torch.float64)
    if own > 0:
        # There is no pass of volnet's for statistics alone.
        _, mean, variance = torch.ops.volnet.norm(x, None, None, None, groups, per_image, 0.0, "none", 0.0)
        moments[0], moments[1], moments[2] = mean, variance * own, own
    count = 0
    mean = squares = torch.zeros(sets, groups, dtype=torch.float64)
    for its_mean, its_squares, its_count in gathered(moments, group):
        n = int(its_count[0, 0])
        if n == 0:
            continue
        step, total = its_mean - mean, count + n
        mean = mean + step * (n / total)
        squares = squares + its_squares + step * step * (count / total * n)
        count = total
    return mean, squares / max(count, 1), count


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        mean: Tensor,
        variance: Tensor,
        count: int,
        per_image: bool,
        eps: float,
        activation: str,
        negative_slope: float,
        group: Group,
    ) -> Tensor:
        ctx.count, ctx.per_image, ctx.eps, ctx.group = count, per_image, eps, group
        ctx.after = activation, negative_slope
        kept = None if activation == "none" else residual
        ctx.save_for_backward(x, weight, bias, kept, mean, variance)
        if x.numel() == 0:
            return torch.empty_like(x)
        y: Tensor = torch.ops.volnet._norm_apply(
            x, mean, variance, weight, bias, residual, eps, activation, negative_slope
        )
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, residual, mean, variance = ctx.saved_tensors
        sets, channels = mean.shape[0], x.shape[1]
        # The residual's gradient is what comes out of the activation.
        wants_residual = ctx.needs_input_grad[3]
        apart = wants_residual and ctx.after[0] != "none"
        sums = torch.zeros(2, sets, channels, dtype=torch.float64)  # of dz * xhat and of dz
        parts: list[tuple[Tensor, Tensor]] = []
        for i in range(sets if x.numel() > 0 else 0):
            images = slice(i, i + 1) if ctx.per_image else slice(None)
            dx, sums[0, i], sums[1, i], dz = torch.ops.volnet._norm_backward(
                grad[images],
                x[images],
                mean[i : i + 1],
                variance[i : i + 1],
                weight,
                bias,
                None if residual is None else residual[images],
                ctx.eps,
                *ctx.after,
                True,
                apart,
            )
            parts.append((dx, dz))
        scale, shift = _through_statistics(ctx, sums, weight, mean, variance)
        for i, (dx, dz) in enumerate(parts):
            images = slice(i, i + 1) if ctx.per_image else slice(None)
            # What the statistics of the whole volume add to the gradient: xhat * scale + shift.
            dx = torch.ops.volnet._norm_apply(
                x[images],
                mean[i : i + 1],
                variance[i : i + 1],
                scale[i].to(_wide(x)),
                shift[i].to(_wide(x)),
                dx,
                ctx.eps,
                "none",
                0.0,
            )
            parts[i] = (dx, dz)
        own = grad
        if not parts:
            dx = torch.empty_like(x)
        else:
            dx = torch.cat([dx for dx, _ in parts]) if len(parts) > 1 else parts[0][0]
            if apart:
                own = torch.cat([dz for _, dz in parts]) if len(parts) > 1 else parts[0][1]
        dweight = None if weight is None else sums[0].sum(0).to(weight.dtype)
        dbias = None if bias is None else sums[1].sum(0).to(bias.dtype)
        return dx, dweight, dbias, own if wants_residual else None, *[None] * 8


def _through_statistics(
    ctx: Any, sums: Tensor, weight: Tensor | None, mean: Tensor, variance: Tensor
) -> tuple[Tensor, Tensor]:
    """[sets, C] each, from the sums over the slabs of all ranks."""
    _, sets, channels = sums.shape
    groups = mean.shape[1]
    weighted = sums if weight is None else sums * weight.double()
    totals = gathered(weighted.reshape(2, sets, groups, -1).sum(-1), ctx.group).sum(0)
    terms = -totals * (variance + ctx.eps).rsqrt() / max(ctx.count, 1)
    scale, shift = terms.repeat_interleave(channels // groups, -1)
    return scale, shift


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32
