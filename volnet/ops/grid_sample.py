"""Volumes sampled at places that a grid gives, and grids of affine maps."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import volnet._extension  # noqa: F401 - registers torch.ops.volnet
from volnet._errors import names_shortage
from volnet.ops._arguments import check_bool, check_tensor, empty_volume, memory_format_of

__all__ = ["affine_grid", "grid_sample"]


@names_shortage
def grid_sample(
    input: Tensor,
    grid: Tensor,
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool | None = None,
) -> Tensor:
    """A volume sampled at the places of a grid, as :func:`torch.nn.functional.grid_sample` does it.

    Args:
        input: [N, C, D, H, W]; float32, bfloat16 or float64.
        grid: [N, OD, OH, OW, 3] of the same dtype: for each output voxel the place (x, y, z), -1 at the
            first and 1 at the last voxel of w, h and d.
        mode: ``bilinear``, which is trilinear here, or ``nearest``.
        padding_mode: what lies outside: ``zeros``, the ``border``, or the volume's ``reflection``.
        align_corners: -1 and 1 are the centres of the outer voxels, not their edges; False if not given,
            with torch's warning.

    Returns:
        [N, C, OD, OH, OW] in the layout of ``input``. bfloat16 is computed in float32 and rounded once. The
        gradient of ``input`` is summed in the order of the grid, whatever the number of threads; there are
        no second derivatives, as in torch. Under autocast both inputs become float32, as torch's do.

    Raises:
        ValueError: ``mode`` or ``padding_mode`` is none of those.
        RuntimeError: a shape or dtype does not fit.
        TypeError: an argument is of the wrong type.

    >>> x = torch.arange(4.0).reshape(1, 1, 1, 1, 4)
    >>> place = torch.tensor([0.5, 0, 0]).reshape(1, 1, 1, 1, 3)
    >>> float(grid_sample(x, place, align_corners=True))
    2.25
    """
    check_tensor("grid_sample", "input", input)
    check_tensor("grid_sample", "grid", grid)
    if mode not in ("bilinear", "nearest"):
        kinds = (ValueError, "'bilinear' or 'nearest'") if mode != "bicubic" else (RuntimeError, "no bicubic")
        raise kinds[0](f"grid_sample: mode must be {kinds[1]} for volumes, got {mode!r}")
    if padding_mode not in ("zeros", "border", "reflection"):
        raise ValueError(
            f"grid_sample: padding_mode must be 'zeros', 'border' or 'reflection', got {padding_mode!r}"
        )
    if align_corners is None:
        warnings.warn(
            "grid_sample: align_corners is not given and taken as False, as torch does it", stacklevel=2
        )
        align_corners = False
    check_bool("grid_sample", "align_corners", align_corners)
    shapes = f"got {tuple(input.shape)} and {tuple(grid.shape)}"
    if input.dim() != 5 or grid.dim() != 5 or grid.shape[4] != 3 or grid.shape[0] != input.shape[0]:
        raise RuntimeError(
            f"grid_sample: input must be [N, C, D, H, W] and grid [N, OD, OH, OW, 3], {shapes}"
        )
    if input.dtype != grid.dtype and not torch.is_autocast_enabled("cpu"):
        raise RuntimeError(
            f"grid_sample: input and grid must be of one dtype, got {input.dtype} and {grid.dtype}"
        )
    if any(n == 0 for n in input.shape[2:]):
        raise RuntimeError(f"grid_sample: input must not be empty in space, {shapes}")
    y: Tensor = torch.ops.volnet.grid_sample(input, grid, mode, padding_mode, align_corners)
    return y


@names_shortage
def affine_grid(theta: Tensor, size: Sequence[int], align_corners: bool | None = None) -> Tensor:
    """The grid of an affine map for :func:`grid_sample`: :func:`torch.nn.functional.affine_grid` for volumes.

    Args:
        theta: [N, 3, 4]; takes places (x, y, z, 1) of the output to places of the input.
        size: of the output, (N, C, OD, OH, OW).
        align_corners: as :func:`grid_sample` gets it.

    Returns:
        [N, OD, OH, OW, 3]

    Raises:
        NotImplementedError: ``size`` has not five numbers.
        ValueError: the shape or dtype of ``theta`` does not fit, or a size is not positive.

    >>> affine_grid(torch.eye(3, 4)[None], (1, 1, 1, 1, 2), align_corners=False).flatten().tolist()
    [-0.5, 0.0, 0.0, 0.5, 0.0, 0.0]
    """
    if len(size) != 5:
        raise NotImplementedError(f"affine_grid: size must be (N, C, OD, OH, OW), got {tuple(size)}")
    # A matrix product of a coordinate table: torch's is memory-bound already.
    return F.affine_grid(theta, list(size), align_corners)


@torch.library.register_fake("volnet::grid_sample")
def _(x: Tensor, grid: Tensor, mode: str, padding_mode: str, align_corners: bool) -> Tensor:
    return empty_volume(x, [*x.shape[:2], *grid.shape[1:4]], memory_format_of(x))


@torch.library.register_fake("volnet::_grid_sample_backward_input")
def _(grad: Tensor, x: Tensor, grid: Tensor, mode: str, padding_mode: str, align_corners: bool) -> Tensor:
    return empty_volume(x, x.shape, memory_format_of(x))


@torch.library.register_fake("volnet::_grid_sample_backward_grid")
def _(grad: Tensor, x: Tensor, grid: Tensor, mode: str, padding_mode: str, align_corners: bool) -> Tensor:
    return torch.empty(grid.shape, dtype=grid.dtype, device=grid.device)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, grid, *ctx.arguments = inputs
    ctx.save_for_backward(x, grid)


@names_shortage
def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    inputs = (grad, *ctx.saved_tensors, *ctx.arguments)
    needs_x, needs_grid = ctx.needs_input_grad[:2]
    grad_x = torch.ops.volnet._grid_sample_backward_input(*inputs) if needs_x else None
    grad_grid = torch.ops.volnet._grid_sample_backward_grid(*inputs) if needs_grid else None
    return grad_x, grad_grid, None, None, None


torch.library.register_autograd("volnet::grid_sample", _backward, setup_context=_setup)
torch.library.register_autocast("volnet::grid_sample", "cpu", torch.float32)
