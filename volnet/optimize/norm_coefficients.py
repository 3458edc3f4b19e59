"""The norm of a convolution's result from the statistics that the convolution has gathered."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["apply_norm", "coefficients"]


def grouped(mean: Tensor, variance: Tensor, groups: int, per_image: bool) -> tuple[Tensor, Tensor]:
    """Mean and variance [N, K] of channels as those of groups of channels [N or 1, groups], in float64.

    All channels have as many voxels, so that the variance of a group is the mean of its channels' variances
    and the variance of their means.
    """
    images, channels = mean.shape
    mean, variance = mean.double(), variance.double()
    if groups == channels and (per_image or images == 1):
        return mean, variance
    shape = (images, groups, channels // groups)
    over = (2,) if per_image else (0, 2)
    means, variances = mean.reshape(shape), variance.reshape(shape)
    center = means.mean(over, keepdim=True)
    spread = (variances + (means - center) ** 2).mean(over)
    return center.reshape(-1, groups), spread.reshape(-1, groups)


def apply_norm(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    groups: int = 0,
    per_image: bool = True,
    eps: float = 1e-5,
    activation: str | None = None,
    negative_slope: float = 0.01,
    residual: Tensor | None = None,
) -> Tensor:
    """``x`` [N, K, D, H, W] normalized with what :func:`volnet.ops.conv3d_with_statistics` says of it, in
    ``groups`` (0: as many as channels)."""
    center, spread = grouped(mean, variance, groups or x.shape[1], per_image)
    return torch.ops.volnet._norm_apply(
        x, center, spread, weight, bias, residual, eps, activation or "none", negative_slope
    )


def coefficients(
    mean: Tensor,
    variance: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    groups: int = 0,
    per_image: bool = True,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor]:
    """Scale and shift [N or 1, K] that stand for the norm, in the dtype of ``mean``."""
    channels = mean.shape[1]
    groups = groups or channels
    center, spread = grouped(mean, variance, groups, per_image)
    scale = (spread + eps).rsqrt()
    if groups != channels:
        scale = scale.repeat_interleave(channels // groups, 1)
        center = center.repeat_interleave(channels // groups, 1)
    if weight is not None:
        scale = scale * weight.double()
    shift = -center * scale
    if bias is not None:
        shift = shift + bias.double()
    return scale.to(mean.dtype), shift.to(mean.dtype)
