"""Voxels added at the borders of a volume, or taken away."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import volnet._extension  # noqa: F401 - registers torch.ops.volnet
from volnet._errors import names_shortage
from volnet.ops._arguments import COPYABLE, check_tensor, empty_volume, memory_format_of, triple

__all__ = ["crop3d", "pad"]


@names_shortage
def pad(input: Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Tensor:
    """Voxels added at the borders, as :func:`torch.nn.functional.pad` takes it.

    Args:
        input: [N, C, D, H, W] or [C, D, H, W]; float32, bfloat16, float64 or, for what needs no gradient,
            integers. Other shapes and dtypes, and pads of other axes, are left to torch.
        pad: how many voxels (w before, w after, h before, h after, d before, d after); the last ones may be
            missing with ``"constant"``. Negative ones take voxels away.
        mode: what the new voxels are: ``"constant"``, ``"reflect"`` (mirrored at the border's voxel),
            ``"replicate"`` (the border's voxel) or ``"circular"`` (those of the other side).
        value: of ``"constant"``; 0 if not given.

    Returns:
        The padded volume in the layout of ``input`` (plain or channels_last_3d).

    Raises:
        RuntimeError: the pads do not fit the volume.

    >>> pad(torch.ones(1, 1, 1, 1, 2), (1, 2), value=5.0).flatten().tolist()
    [5.0, 1.0, 1.0, 5.0, 5.0]
    """
    if not _is_ours(input, pad, mode, value):
        return F.pad(input, pad, mode, value)
    pads = [*pad, *[0] * (6 - len(pad))]
    if mode == "replicate" and torch.is_autocast_enabled("cpu") and input.dtype != torch.float64:
        input = input.float()  # torch's policy
    volume = input if input.dim() == 5 else input.unsqueeze(0)
    _check(volume, pads, mode)
    y: Tensor = torch.ops.volnet.pad(volume, pads, mode, float(value or 0))
    return y if input.dim() == 5 else y.squeeze(0)


def _is_ours(input: Any, pad: Any, mode: Any, value: Any) -> bool:
    is_volume = isinstance(input, Tensor) and input.dim() in (4, 5) and input.layout == torch.strided
    if not is_volume or input.device.type not in ("cpu", "meta") or input.dtype not in COPYABLE:
        return False
    if not isinstance(pad, Sequence) or any(isinstance(n, bool) or not isinstance(n, int) for n in pad):
        return False
    if mode != "constant":
        known = mode in ("reflect", "replicate", "circular")
        return known and value is None and len(pad) == 6 and input.dtype.is_floating_point
    if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
        return False
    if not input.dtype.is_floating_point and value:
        info = torch.iinfo(input.dtype)  # the operator takes the value as float64
        if int(value) != value or not max(info.min, -(2**53)) <= value <= min(info.max, 2**53):
            return False
    return len(pad) in (2, 4, 6)


def _check(x: Tensor, pads: list[int], mode: str) -> None:
    for i, axis in enumerate((4, 3, 2)):
        size, before, after = x.shape[axis], pads[2 * i], pads[2 * i + 1]
        left = size + min(before, 0) + min(after, 0)
        if mode == "constant":
            fits = left >= 0
        else:
            most = {"reflect": size - 1, "circular": left}.get(mode, max(before, after))
            kept = left if mode == "circular" else size + before + after
            fits = size > 0 and kept >= 0 and max(before, after) <= most
        if not fits:
            raise RuntimeError(
                f"pad: ({before}, {after}) does not fit axis {axis} of input of shape {tuple(x.shape)} in "
                f"mode {mode!r}"
            )


@names_shortage
def crop3d(x: Tensor, start: int | Sequence[int], size: int | Sequence[int]) -> Tensor:
    """The voxels [start, start + size) of a volume, as a volume of its own.

    Args:
        x: [N, C, D, H, W] or [C, D, H, W]; float32, bfloat16, float64 or integers.
        start: the first voxel (d, h, w), or one number for all three.
        size: how many voxels (d, h, w), or one number for all three.

    Returns:
        [N, C, *size] in the layout of ``x`` (plain or channels_last_3d).

    Raises:
        RuntimeError: the voxels are not all inside of ``x``, or its shape or dtype does not fit.
        TypeError: an argument is of the wrong type.

    >>> crop3d(torch.arange(27.0).reshape(1, 1, 3, 3, 3), 1, (1, 1, 2)).flatten().tolist()
    [13.0, 14.0]
    """
    op = "crop3d"
    check_tensor(op, "x", x, COPYABLE)
    if x.dim() not in (4, 5):
        raise RuntimeError(f"{op}: x must be [N, C, D, H, W] or [C, D, H, W], got shape {tuple(x.shape)}")
    starts, sizes = triple(op, "start", start), triple(op, "size", size)
    space = x.shape[-3:]
    if any(s < 0 or n < 0 or s + n > m for s, n, m in zip(starts, sizes, space, strict=True)):
        raise RuntimeError(
            f"{op}: start={tuple(starts)}, size={tuple(sizes)} is not inside of x of shape {tuple(x.shape)}"
        )
    pads = []
    for s, n, m in zip(reversed(starts), reversed(sizes), reversed(space), strict=True):
        pads += [-s, s + n - m]
    volume = x if x.dim() == 5 else x.unsqueeze(0)
    y: Tensor = torch.ops.volnet.pad(volume, pads, "constant", 0.0)
    return y if x.dim() == 5 else y.squeeze(0)


@torch.library.register_fake("volnet::pad")
def _(x: Tensor, pad: list[int], mode: str, value: float) -> Tensor:
    sizes = [*x.shape[:2], *(x.shape[axis] + pad[8 - 2 * axis] + pad[9 - 2 * axis] for axis in (2, 3, 4))]
    return empty_volume(x, sizes, memory_format_of(x))


@torch.library.register_fake("volnet::_pad_backward")
def _(grad: Tensor, x_size: list[int], pad: list[int], mode: str, channels_last: bool) -> Tensor:
    return empty_volume(grad, x_size, torch.channels_last_3d if channels_last else torch.contiguous_format)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, ctx.pad, ctx.mode, _ = inputs
    ctx.x_size, ctx.channels_last = list(x.shape), memory_format_of(x) == torch.channels_last_3d


@names_shortage
def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    dx = torch.ops.volnet._pad_backward(grad, ctx.x_size, ctx.pad, ctx.mode, ctx.channels_last)
    return dx, None, None, None


def _setup_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, _, ctx.pad, ctx.mode, _ = inputs


@names_shortage
def _double_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """The backward is linear, and its transpose is the forward."""
    return torch.ops.volnet.pad(grad, ctx.pad, ctx.mode, 0.0), None, None, None, None


torch.library.register_autograd("volnet::pad", _backward, setup_context=_setup)
torch.library.register_autograd("volnet::_pad_backward", _double_backward, setup_context=_setup_backward)
