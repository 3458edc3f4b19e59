"""3-D adaptive average pooling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import volnet._extension  # noqa: F401 - registers torch.ops.volnet
from volnet._errors import names_shortage
from volnet.ops._arguments import empty_volume, memory_format_of
from volnet.ops._pooling import check_adaptive

__all__ = ["adaptive_avg_pool3d"]


@names_shortage
def adaptive_avg_pool3d(input: Tensor, output_size: int | Sequence[int | None] | None) -> Tensor:
    """The mean of windows that share a volume out, as :func:`torch.nn.functional.adaptive_avg_pool3d` does.

    On each axis output ``o`` is the mean of the voxels from ``floor(o * in / out)`` to
    ``ceil((o + 1) * in / out)``, which is not among them.

    Args:
        input: [N, C, D, H, W] or [C, D, H, W]; float32, bfloat16 or float64.
        output_size: (OD, OH, OW), or one number for all; None among three stands for the size of the input.

    Returns:
        [N, C, OD, OH, OW] in the layout of ``input`` (plain or channels_last_3d). bfloat16 is summed in
        float32 and rounded once. Under autocast the result is float32, as torch's.

    Raises:
        RuntimeError: the shape or dtype of ``input`` does not fit, or ``output_size`` is negative.
        ValueError: ``input`` has no more dimensions than ``output_size``.
        TypeError: an argument is of the wrong type.

    >>> x = torch.arange(64.0).reshape(1, 1, 4, 4, 4)
    >>> float(adaptive_avg_pool3d(x, 1)), adaptive_avg_pool3d(x, (None, 2, 3)).shape
    (31.5, torch.Size([1, 1, 4, 2, 3]))
    """
    volume, unbatched, sizes = check_adaptive("adaptive_avg_pool3d", input, output_size)
    y: Tensor = torch.ops.volnet.adaptive_avg_pool3d(volume, sizes)
    return y.squeeze(0) if unbatched else y


@torch.library.register_fake("volnet::adaptive_avg_pool3d")
def _(x: Tensor, output_size: list[int]) -> Tensor:
    return empty_volume(x, [*x.shape[:2], *output_size], memory_format_of(x))


@torch.library.register_fake("volnet::_adaptive_avg_pool3d_backward")
def _(grad: Tensor, input_size: list[int], channels_last: bool) -> Tensor:
    layout = torch.channels_last_3d if channels_last else torch.contiguous_format
    return empty_volume(grad, input_size, layout)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, _ = inputs
    ctx.input_size = list(x.shape)
    ctx.channels_last = memory_format_of(x) == torch.channels_last_3d


@names_shortage
def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grad_x = torch.ops.volnet._adaptive_avg_pool3d_backward(grad, ctx.input_size, ctx.channels_last)
    return grad_x, None


def _setup_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.output_size = list(inputs[0].shape[2:])


@names_shortage
def _double_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """The backward is linear, and its transpose is the forward."""
    return torch.ops.volnet.adaptive_avg_pool3d(grad, ctx.output_size), None, None


torch.library.register_autograd("volnet::adaptive_avg_pool3d", _backward, setup_context=_setup)
torch.library.register_autograd(
    "volnet::_adaptive_avg_pool3d_backward", _double_backward, setup_context=_setup_backward
)
torch.library.register_autocast("volnet::adaptive_avg_pool3d", "cpu", torch.float32)
