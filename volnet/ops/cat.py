"""Volumes joined along their channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import volnet._extension  # noqa: F401 - registers torch.ops.volnet
from volnet._errors import names_shortage
from volnet.ops._arguments import FLOATING, empty_volume, memory_format_of

__all__ = ["cat"]


@names_shortage
def cat(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Tensors one after another along ``dim``, as :func:`torch.cat` takes them.

    Args:
        tensors: volumes [N, C, D, H, W] with channels of their own, float32, bfloat16 or float64, for
            ``dim=1``. Everything else is left to torch.
        dim: the axis.

    Returns:
        [N, sum of C, D, H, W], channels_last_3d where all ``tensors`` are, else plain.

    Raises:
        RuntimeError: the shapes do not fit.

    >>> cat([torch.zeros(1, 2, 1, 1, 1), torch.ones(1, 1, 1, 1, 1)], 1).flatten().tolist()
    [0.0, 0.0, 1.0]
    """
    if not _is_ours(tensors, dim):
        return torch.cat(tensors, dim)  # type: ignore[arg-type]
    # One channel, or one voxel, lies the same in both layouts.
    telling = [t for t in tensors if t.shape[1] > 1 and t.shape[2:].numel() > 1] or tensors[:1]
    channels_last = all(memory_format_of(t) == torch.channels_last_3d for t in telling)
    y: Tensor = torch.ops.volnet.cat(list(tensors), channels_last)
    return y


def _is_ours(tensors: Any, dim: Any) -> bool:
    if isinstance(dim, bool) or dim not in (1, -4) or not isinstance(tensors, (list, tuple)) or not tensors:
        return False
    first = tensors[0]
    if not isinstance(first, Tensor) or first.dim() != 5 or first.dtype not in FLOATING:
        return False
    return all(
        isinstance(t, Tensor)
        and t.dim() == 5
        and t.dtype == first.dtype
        and t.layout == torch.strided
        and t.device.type in ("cpu", "meta")
        and t.shape[0] == first.shape[0]
        and t.shape[2:] == first.shape[2:]
        for t in tensors
    )


@torch.library.register_fake("volnet::cat")
def _(tensors: list[Tensor], channels_last: bool) -> Tensor:
    first = tensors[0]
    sizes = [first.shape[0], sum(t.shape[1] for t in tensors), *first.shape[2:]]
    return empty_volume(first, sizes, torch.channels_last_3d if channels_last else torch.contiguous_format)


@torch.library.register_fake("volnet::_cat_backward")
def _(grad: Tensor, channels: list[int], channels_last: bool) -> list[Tensor]:
    layout = torch.channels_last_3d if channels_last else torch.contiguous_format
    return [empty_volume(grad, [grad.shape[0], n, *grad.shape[2:]], layout) for n in channels]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    tensors, ctx.channels_last = inputs
    ctx.channels = [t.shape[1] for t in tensors]


@names_shortage
def _backward(ctx: Any, grad: Tensor) -> tuple[list[Tensor], None]:
    if grad.shape[0] == 1 and not ctx.channels_last and grad.is_contiguous():
        first = [sum(ctx.channels[:k]) for k in range(len(ctx.channels))]
        # Of one image they lie dense in the gradient already, and nothing has to be moved.
        return [grad.narrow(1, f, n) for f, n in zip(first, ctx.channels, strict=True)], None
    return torch.ops.volnet._cat_backward(grad, ctx.channels, ctx.channels_last), None


def _setup_backward(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    *_, ctx.channels_last = inputs


@names_shortage
def _double_backward(ctx: Any, grads: list[Tensor]) -> tuple[Tensor, None, None]:
    return torch.ops.volnet.cat(grads, ctx.channels_last), None, None


torch.library.register_autograd("volnet::cat", _backward, setup_context=_setup)
torch.library.register_autograd("volnet::_cat_backward", _double_backward, setup_context=_setup_backward)
