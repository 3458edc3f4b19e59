"""Patches of a volume around given centres."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from volnet import _extension as _extension
from volnet._errors import names_shortage
from volnet.ops._arguments import COPYABLE, check_at_least, check_pad_value, check_tensor, triple


def sample_patches(
    volume: Tensor, centers: Tensor, size: int | Sequence[int], pad_value: float = 0
) -> Tensor:
    """Cuts the patch around each centre out of a volume; what lies outside the volume becomes ``pad_value``.

    On each axis, patch ``i`` covers the voxels ``[center - size // 2, center - size // 2 + size)``. The
    gradient of the volume is the sum of the gradients of the patches, added in their order: it is the same
    for any number of threads. Strided views are read in place as long as the voxels of a row lie next to each
    other.

    Args:
        volume: ``[D, H, W]`` or ``[C, D, H, W]``; uint8, int8, int16, int32, int64, float32, float64 or
            bfloat16.
        centers: ``[P, 3]`` int64, voxels (d, h, w); anywhere, also outside the volume.
        size: voxels (d, h, w) of a patch, or one number for all axes.
        pad_value: a number that the volume's dtype can hold; rounded for floating dtypes.

    Returns:
        ``[P, *size]`` or ``[P, C, *size]``, with the dtype of ``volume``, contiguous.

    Raises:
        RuntimeError: a wrong shape or dtype, a size below 1, a ``pad_value`` that the dtype cannot hold.

    >>> ct = torch.arange(27, dtype=torch.int16).reshape(3, 3, 3)
    >>> sample_patches(ct, torch.tensor([[1, 1, 1], [0, 0, 2]]), (1, 2, 3), pad_value=-1024)
    tensor([[[[    9,    10,    11],
              [   12,    13,    14]]],
    <BLANKLINE>
    <BLANKLINE>
            [[[-1024, -1024, -1024],
              [    1,     2, -1024]]]], dtype=torch.int16)
    """
    op = "sample_patches"
    check_tensor(op, "volume", volume, COPYABLE)
    if volume.dim() not in (3, 4):
        raise RuntimeError(f"{op}: volume must be [D, H, W] or [C, D, H, W], got shape {tuple(volume.shape)}")
    check_tensor(op, "centers", centers, (torch.int64,))
    if centers.dim() != 2 or centers.shape[1] != 3:
        raise RuntimeError(f"{op}: centers must be [P, 3], got shape {tuple(centers.shape)}")
    sizes = triple(op, "size", size)
    check_at_least(op, "size", sizes, 1)
    check_pad_value(op, pad_value, volume.dtype)
    result: Tensor = torch.ops.volnet.sample_patches(volume, centers, sizes, float(pad_value))
    return result


@torch.library.register_fake("volnet::sample_patches")
def _(volume: Tensor, centers: Tensor, size: Sequence[int], pad_value: float) -> Tensor:
    return volume.new_empty([centers.shape[0], *volume.shape[:-3], *size])


@torch.library.register_fake("volnet::_sample_patches_backward")
def _(grad: Tensor, centers: Tensor, volume_size: Sequence[int]) -> Tensor:
    return grad.new_empty(volume_size)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    volume, centers, _, _ = inputs
    ctx.save_for_backward(centers)
    ctx.volume_size = volume.shape


@names_shortage
def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
    (centers,) = ctx.saved_tensors
    return torch.ops.volnet._sample_patches_backward(grad, centers, ctx.volume_size), None, None, None


torch.library.register_autograd("volnet::sample_patches", _backward, setup_context=_setup_context)


def _setup_backward_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad, centers, _ = inputs
    ctx.save_for_backward(centers)
    ctx.size = grad.shape[-3:]


@names_shortage
def _double_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    (centers,) = ctx.saved_tensors
    return torch.ops.volnet.sample_patches(grad, centers, ctx.size, 0.0), None, None


torch.library.register_autograd(
    "volnet::_sample_patches_backward", _double_backward, setup_context=_setup_backward_context
)
