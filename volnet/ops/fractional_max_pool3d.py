"""3-D fractional max pooling."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

import volnet._extension  # noqa: F401 - registers torch.ops.volnet
from volnet._errors import names_shortage
from volnet.ops._arguments import (
    batched,
    check_at_least,
    check_bool,
    check_tensor,
    empty_volume,
    memory_format_of,
    triple,
)
from volnet.ops._pooling import index_dtype, register_gradients_of_maximum

__all__ = ["fractional_max_pool3d"]


@names_shortage
def fractional_max_pool3d(
    input: Tensor,
    kernel_size: int | Sequence[int],
    output_size: int | Sequence[int] | None = None,
    output_ratio: float | Sequence[float] | None = None,
    return_indices: bool = False,
    _random_samples: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """The maxima of windows at random steps, as :func:`torch.nn.functional.fractional_max_pool3d` takes them.

    On each axis of each plane the windows start at ``floor((o + s) * a) - floor(s * a)`` with
    ``a = (in - kernel_size) / (out - 1)`` and a random ``s``, the last one at ``in - kernel_size``. A volume
    in channels_last_3d is brought to the plain layout and its maxima back, because every channel has windows
    of its own.

    Args:
        input: [N, C, D, H, W] or [C, D, H, W]; float32, bfloat16 or float64.
        kernel_size: voxels of the window, one number or one an axis.
        output_size: (OD, OH, OW), or one number for all.
        output_ratio: instead of ``output_size``, its share of the size of ``input``, one number or one an
            axis.
        return_indices: return also where the maxima are.
        _random_samples: [N, C, 3] in [0, 1], of the dtype of ``input``: s of the axes d, h and w. By default
            drawn as torch draws them, so that the same seed gives the same windows.

    Returns:
        [N, C, OD, OH, OW] in the layout of ``input`` (plain or channels_last_3d); with ``return_indices``
        also an int64 tensor of the same shape and layout: the place of each maximum in its plane,
        ``(d * H + h) * W + w``: the first in scan order among equals, the last among NaNs. Under autocast
        the maxima are float32, as torch's.

    Raises:
        RuntimeError: the shape or dtype of ``input`` or of the samples does not fit, a sample is not in
            [0, 1], or the windows do not fit the volume: ``output_size + kernel_size`` may not exceed it.
        ValueError: neither ``output_size`` nor ``output_ratio`` is given.
        TypeError: an argument is of the wrong type.

    >>> x = torch.arange(216.0).reshape(1, 1, 6, 6, 6)
    >>> fractional_max_pool3d(x, 2, output_ratio=0.5).shape
    torch.Size([1, 1, 3, 3, 3])
    >>> samples = torch.full((1, 1, 3), 0.5)
    >>> fractional_max_pool3d(x, 2, (1, 1, 3), _random_samples=samples).flatten().tolist()
    [211.0, 213.0, 215.0]
    """
    op = "fractional_max_pool3d"
    volume, unbatched = batched(op, "input", input)
    check_bool(op, "return_indices", return_indices)
    if any(size == 0 for size in volume.shape[1:]):
        raise RuntimeError(f"{op}: only the batch of input may be empty, got shape {tuple(input.shape)}")
    kernels = triple(op, "kernel_size", kernel_size)
    sizes = _output_size(volume, output_size, output_ratio)
    check_at_least(op, "kernel_size", kernels, 1)
    check_at_least(op, "output_size", sizes, 0)
    if any(o + k > n for o, k, n in zip(sizes, kernels, volume.shape[2:], strict=True)):
        raise RuntimeError(
            f"{op}: input of shape {tuple(input.shape)} is too small for kernel_size={tuple(kernels)} and "
            f"output_size={tuple(sizes)}: their sum may not exceed it"
        )
    samples = _random_samples
    if samples is None:
        samples = torch.rand(*volume.shape[:2], 3, dtype=volume.dtype, device=volume.device)
    check_tensor(op, "_random_samples", samples, (volume.dtype,))
    count, channels = volume.shape[:2]
    if samples.dim() != 3 or samples.shape[0] < count or tuple(samples.shape[1:]) != (channels, 3):
        raise RuntimeError(
            f"{op}: _random_samples must be [N, C, 3] for an input of shape {tuple(input.shape)}, got shape "
            f"{tuple(samples.shape)}"
        )
    if not return_indices and not (torch.is_grad_enabled() and volume.requires_grad):
        y: Tensor = torch.ops.volnet.fractional_max_pool3d(volume, samples, kernels, sizes)
        return y.squeeze(0) if unbatched else y
    y, indices = torch.ops.volnet.fractional_max_pool3d_with_indices(
        volume, samples, kernels, sizes, not return_indices
    )
    if unbatched:
        y, indices = y.squeeze(0), indices.squeeze(0)
    return (y, indices) if return_indices else y


def _output_size(
    volume: Tensor, output_size: int | Sequence[int] | None, output_ratio: float | Sequence[float] | None
) -> list[int]:
    """[OD, OH, OW], from whichever is given; ``output_size`` if both are, as in torch."""
    op = "fractional_max_pool3d"
    if output_size is not None:
        return triple(op, "output_size", output_size)
    if output_ratio is None:
        raise ValueError(f"{op}: needs an output_size or an output_ratio")
    ratios = list(output_ratio) if isinstance(output_ratio, Sequence) else [output_ratio] * 3
    if any(isinstance(r, bool) or not isinstance(r, (int, float)) for r in ratios):
        raise TypeError(f"{op}: output_ratio must be of numbers, got {output_ratio!r}")
    if len(ratios) != 3:
        raise RuntimeError(f"{op}: output_ratio must be one number or three, got {tuple(ratios)}")
    return [int(size * ratio) for size, ratio in zip(volume.shape[2:], ratios, strict=True)]


@torch.library.register_fake("volnet::fractional_max_pool3d")
def _(x: Tensor, samples: Tensor, kernel_size: list[int], output_size: list[int]) -> Tensor:
    return empty_volume(x, [*x.shape[:2], *output_size], memory_format_of(x))


@torch.library.register_fake("volnet::fractional_max_pool3d_with_indices")
def _(
    x: Tensor, samples: Tensor, kernel_size: list[int], output_size: list[int], narrow: bool = False
) -> tuple[Tensor, Tensor]:
    sizes, layout = [*x.shape[:2], *output_size], memory_format_of(x)
    return empty_volume(x, sizes, layout), empty_volume(x, sizes, layout, index_dtype(x, narrow))


@torch.library.register_fake("volnet::_fractional_max_pool3d_backward")
def _(
    grad: Tensor, indices: Tensor, input_size: list[int], kernel_size: list[int], channels_last: bool
) -> Tensor:
    layout = torch.channels_last_3d if channels_last else torch.contiguous_format
    return empty_volume(grad, input_size, layout)


register_gradients_of_maximum("fractional_max_pool3d", lambda kernel_size, *_: (kernel_size,))
for _name in ("fractional_max_pool3d", "fractional_max_pool3d_with_indices"):
    torch.library.register_autocast(f"volnet::{_name}", "cpu", torch.float32)
