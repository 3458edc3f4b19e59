"""Volumes at another size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import volnet._extension  # noqa: F401 - registers torch.ops.volnet
from volnet._errors import names_shortage
from volnet.ops._arguments import check_bool, check_tensor, empty_volume, memory_format_of

__all__ = ["interpolate"]

_MODES = ("nearest", "nearest-exact", "trilinear", "area")


@names_shortage
def interpolate(
    input: Tensor,
    size: int | Sequence[int] | None = None,
    scale_factor: float | Sequence[float] | None = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Tensor:
    """A volume sampled at another size, as :func:`torch.nn.functional.interpolate` does it.

    Args:
        input: [N, C, D, H, W]; float32, bfloat16 or float64.
        size: voxels of the output, one number or one an axis.
        scale_factor: output voxels per input voxel, instead of ``size``; the size is rounded down.
        mode: ``nearest``, ``nearest-exact``, ``trilinear`` or ``area``.
        align_corners: with ``trilinear``, the centres of the corner voxels coincide, not their corners.
        recompute_scale_factor: compute the positions from the sizes, not from ``scale_factor``.
        antialias: torch has none for volumes; it must be False.

    Returns:
        [N, C, OD, OH, OW] in the layout of ``input`` (plain or channels_last_3d). bfloat16 is computed in
        float32 and rounded once. ``nearest`` takes the very voxels that torch takes in that layout, and its
        gradient goes back to them. Under autocast an ``area`` average is float32, as torch's.

    Raises:
        ValueError: ``size`` and ``scale_factor`` are both given or both missing, have a wrong length, or an
            option does not go with ``mode``.
        NotImplementedError: ``input`` has not five axes, or ``mode`` is none of the four.
        RuntimeError: the dtype does not fit, or a size is not positive.
        TypeError: an argument is of the wrong type.

    >>> x = torch.arange(4.0).reshape(1, 1, 1, 1, 4)
    >>> interpolate(x, size=(1, 1, 8), mode="trilinear").flatten()
    tensor([0.0000, 0.2500, 0.7500, 1.2500, 1.7500, 2.2500, 2.7500, 3.0000])
    """
    check_tensor("interpolate", "input", input)
    if mode != "trilinear" and align_corners is not None:
        raise ValueError(f"interpolate: align_corners goes with mode='trilinear' alone, got mode={mode!r}")
    if align_corners is not None:
        check_bool("interpolate", "align_corners", align_corners)
    if antialias:
        raise ValueError("interpolate: antialias is for images, not for volumes; got antialias=True")
    if input.dim() != 5 or mode not in _MODES:
        raise NotImplementedError(
            f"interpolate: takes [N, C, D, H, W] and mode nearest, nearest-exact, trilinear or area; got "
            f"shape {tuple(input.shape)} and mode={mode!r}"
        )
    sizes, factors = _sizes(input, size, scale_factor)
    if recompute_scale_factor and size is not None:
        raise ValueError("interpolate: recompute_scale_factor says nothing where size is given")
    if recompute_scale_factor or mode == "area":
        factors = None
    if any(n < 1 for n in (*input.shape[2:], *sizes)):
        raise RuntimeError(
            f"interpolate: sizes of input and output must be greater than 0, got {tuple(input.shape)} and "
            f"{tuple(sizes)}"
        )
    if input.shape[1] == 0:
        raise RuntimeError(
            f"interpolate: only the batch of input may be empty, got shape {tuple(input.shape)}"
        )
    if mode == "area" and torch.is_autocast_enabled("cpu") and input.dtype == torch.bfloat16:
        input = input.float()  # what torch's average does; the others have no rule
    y: Tensor = torch.ops.volnet.interpolate(input, sizes, mode, bool(align_corners), factors)
    return y


def _sizes(
    input: Tensor, size: int | Sequence[int] | None, scale_factor: float | Sequence[float] | None
) -> tuple[list[int], list[float] | None]:
    """Voxels of the output, and factors where the caller gave them."""
    if (size is None) == (scale_factor is None):
        raise ValueError(
            f"interpolate: one of size and scale_factor must be given, got {size!r} and {scale_factor!r}"
        )
    if size is not None:
        sizes = _three("size", size)
        if not all(isinstance(n, (int, torch.SymInt)) and not isinstance(n, bool) for n in sizes):
            raise TypeError(f"interpolate: size must be of ints, got {size!r}")
        return sizes, None
    factors = _three("scale_factor", scale_factor)
    if not all(isinstance(f, (int, float)) and not isinstance(f, bool) for f in factors):
        raise TypeError(f"interpolate: scale_factor must be of numbers, got {scale_factor!r}")
    return [int(n * f) for n, f in zip(input.shape[2:], factors, strict=True)], [float(f) for f in factors]


def _three(name: str, value: Any) -> list[Any]:
    if not isinstance(value, (list, tuple)):
        return [value] * 3
    if len(value) != 3:
        raise ValueError(f"interpolate: {name} must be one number or three, got {tuple(value)}")
    return list(value)


@torch.library.register_fake("volnet::interpolate")
def _(x: Tensor, size: list[int], mode: str, align_corners: bool, scale: list[float] | None) -> Tensor:
    return empty_volume(x, [*x.shape[:2], *size], memory_format_of(x))


@torch.library.register_fake("volnet::_interpolate_backward")
def _(
    grad: Tensor,
    input_size: list[int],
    mode: str,
    align_corners: bool,
    scale: list[float] | None,
    channels_last: bool,
) -> Tensor:
    layout = torch.channels_last_3d if channels_last else torch.contiguous_format
    return empty_volume(grad, input_size, layout)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, _, ctx.mode, ctx.align_corners, ctx.scale = inputs
    ctx.input_size = list(x.shape)
    ctx.channels_last = memory_format_of(x) == torch.channels_last_3d


@names_shortage
def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grad_x = torch.ops.volnet._interpolate_backward(
        grad, ctx.input_size, ctx.mode, ctx.align_corners, ctx.scale, ctx.channels_last
    )
    return grad_x, None, None, None, None


def _setup_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad, _, ctx.mode, ctx.align_corners, ctx.scale, _ = inputs
    ctx.size = list(grad.shape[2:])


@names_shortage
def _double_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """The backward is linear, and its transpose is the forward."""
    y = torch.ops.volnet.interpolate(grad, ctx.size, ctx.mode, ctx.align_corners, ctx.scale)
    return y, None, None, None, None, None


torch.library.register_autograd("volnet::interpolate", _backward, setup_context=_setup)
torch.library.register_autograd(
    "volnet::_interpolate_backward", _double_backward, setup_context=_setup_backward
)
