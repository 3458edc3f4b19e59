"""3-D adaptive max pooling."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

import volnet._extension  # noqa: F401 - registers torch.ops.volnet
from volnet._errors import names_shortage
from volnet.ops._arguments import check_bool, empty_volume, memory_format_of
from volnet.ops._pooling import check_adaptive, index_dtype, register_gradients_of_maximum

__all__ = ["adaptive_max_pool3d"]


@names_shortage
def adaptive_max_pool3d(
    input: Tensor, output_size: int | Sequence[int | None] | None, return_indices: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """The maxima of windows that share a volume out, as :func:`torch.nn.functional.adaptive_max_pool3d` does.

    On each axis output ``o`` is the maximum of the voxels from ``floor(o * in / out)`` to
    ``ceil((o + 1) * in / out)``, which is not among them.

    Args:
        input: [N, C, D, H, W] or [C, D, H, W]; float32, bfloat16 or float64.
        output_size: (OD, OH, OW), or one number for all; None among three stands for the size of the input.
        return_indices: return also where the maxima are.

    Returns:
        [N, C, OD, OH, OW] in the layout of ``input`` (plain or channels_last_3d); with ``return_indices``
        also an int64 tensor of the same shape and layout: the place of each maximum in its plane,
        ``(d * H + h) * W + w``: the first in scan order among equals, the last among NaNs.
        Under autocast the maxima are float32, as torch's.

    Raises:
        RuntimeError: the shape or dtype of ``input`` does not fit, or ``output_size`` is negative.
        ValueError: ``input`` has no more dimensions than ``output_size``.
        TypeError: an argument is of the wrong type.

    >>> x = torch.arange(64.0).reshape(1, 1, 4, 4, 4)
    >>> y, indices = adaptive_max_pool3d(x, (1, None, 2), return_indices=True)
    >>> y.shape, int(indices[0, 0, 0, 0, 0])
    (torch.Size([1, 1, 1, 4, 2]), 49)
    """
    check_bool("adaptive_max_pool3d", "return_indices", return_indices)
    volume, unbatched, sizes = check_adaptive("adaptive_max_pool3d", input, output_size)
    if not return_indices and not (torch.is_grad_enabled() and volume.requires_grad):
        y: Tensor = torch.ops.volnet.adaptive_max_pool3d(volume, sizes)
        return y.squeeze(0) if unbatched else y
    y, indices = torch.ops.volnet.adaptive_max_pool3d_with_indices(volume, sizes, not return_indices)
    if unbatched:
        y, indices = y.squeeze(0), indices.squeeze(0)
    return (y, indices) if return_indices else y


@torch.library.register_fake("volnet::adaptive_max_pool3d")
def _(x: Tensor, output_size: list[int]) -> Tensor:
    return empty_volume(x, [*x.shape[:2], *output_size], memory_format_of(x))


@torch.library.register_fake("volnet::adaptive_max_pool3d_with_indices")
def _(x: Tensor, output_size: list[int], narrow: bool = False) -> tuple[Tensor, Tensor]:
    sizes, layout = [*x.shape[:2], *output_size], memory_format_of(x)
    return empty_volume(x, sizes, layout), empty_volume(x, sizes, layout, index_dtype(x, narrow))


@torch.library.register_fake("volnet::_adaptive_max_pool3d_backward")
def _(grad: Tensor, indices: Tensor, input_size: list[int], channels_last: bool) -> Tensor:
    layout = torch.channels_last_3d if channels_last else torch.contiguous_format
    return empty_volume(grad, input_size, layout)


register_gradients_of_maximum("adaptive_max_pool3d", lambda *_: ())
for _name in ("adaptive_max_pool3d", "adaptive_max_pool3d_with_indices"):
    torch.library.register_autocast(f"volnet::{_name}", "cpu", torch.float32)
