"""A separable 3-D Gaussian."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import volnet._extension  # noqa: F401 - registers torch.ops.volnet
from volnet._errors import names_shortage
from volnet.ops._arguments import batched, empty_volume, memory_format_of

__all__ = ["gaussian_filter3d"]

_MODES = ("reflect", "constant", "nearest", "mirror", "wrap")


@names_shortage
def gaussian_filter3d(
    input: Tensor,
    sigma: float | Sequence[float],
    *,
    mode: str = "reflect",
    cval: float = 0.0,
    truncate: float = 4.0,
) -> Tensor:
    """Each channel smoothed with a Gaussian, as :func:`scipy.ndimage.gaussian_filter` does it (order 0).

    Args:
        input: [N, C, D, H, W] or [C, D, H, W]; float32, bfloat16 or float64.
        sigma: standard deviation in voxels, one number or one an axis (d, h, w); 0 leaves an axis alone.
        mode: what lies outside: ``reflect`` (d c b a | a b c d), ``constant`` (``cval``), ``nearest``
            (a a a a | a b c d), ``mirror`` (d c b | a b c d) or ``wrap``.
        cval: the value outside with ``constant``.
        truncate: the kernel ends at this many standard deviations.

    Returns:
        The smoothed volume in the layout of ``input``. bfloat16 is summed in float32 and rounded once.

    Raises:
        RuntimeError: the shape or dtype of ``input`` does not fit, or a number is out of range.
        ValueError: ``mode`` is none of the five, or ``sigma`` has not one or three numbers.
        TypeError: an argument is of the wrong type.

    >>> x = torch.zeros(1, 1, 1, 1, 5)
    >>> x[..., 2] = 1
    >>> gaussian_filter3d(x, (0, 0, 1), truncate=1).flatten()
    tensor([0.0000, 0.2741, 0.4519, 0.2741, 0.0000])
    """
    volume, unbatched = batched("gaussian_filter3d", "input", input)
    sigmas = list(sigma) if isinstance(sigma, Sequence) and not isinstance(sigma, str) else [sigma] * 3
    if len(sigmas) != 3:
        raise ValueError(f"gaussian_filter3d: sigma must be one number or three, got {sigma!r}")
    numbers = [_number("sigma", s) for s in sigmas]
    ends, outside = _number("truncate", truncate), _number("cval", cval)
    if any(not 0 <= s * max(ends, 1) < 1e6 for s in numbers):
        raise RuntimeError(f"gaussian_filter3d: sigma must be at least 0 and finite, got {sigma!r}")
    if not 0 <= ends < math.inf:
        raise RuntimeError(f"gaussian_filter3d: truncate must be at least 0 and finite, got {truncate!r}")
    if mode not in _MODES:
        raise ValueError(f"gaussian_filter3d: mode must be one of {', '.join(_MODES)}, got {mode!r}")
    shifts = mode == "constant" and outside != 0
    y: Tensor = torch.ops.volnet.gaussian_filter3d(
        volume - outside if shifts else volume, numbers, ends, mode
    )
    if shifts:
        y = y + outside
    return y.squeeze(0) if unbatched else y


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"gaussian_filter3d: {name} must be a number, got {value!r}")
    return float(value)


@torch.library.register_fake("volnet::gaussian_filter3d")
def _(x: Tensor, sigma: list[float], truncate: float, mode: str) -> Tensor:
    return empty_volume(x, x.shape, memory_format_of(x))


@torch.library.register_fake("volnet::_gaussian_filter3d_backward")
def _(grad: Tensor, sigma: list[float], truncate: float, mode: str, channels_last: bool) -> Tensor:
    layout = torch.channels_last_3d if channels_last else torch.contiguous_format
    return empty_volume(grad, grad.shape, layout)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, *ctx.arguments = inputs
    ctx.channels_last = memory_format_of(x) == torch.channels_last_3d


@names_shortage
def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x = torch.ops.volnet._gaussian_filter3d_backward(grad, *ctx.arguments, ctx.channels_last)
    return x, None, None, None


def _setup_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, *ctx.arguments, _ = inputs


@names_shortage
def _double_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """The backward is linear, and its transpose is the forward."""
    return torch.ops.volnet.gaussian_filter3d(grad, *ctx.arguments), None, None, None, None


torch.library.register_autograd("volnet::gaussian_filter3d", _backward, setup_context=_setup)
torch.library.register_autograd(
    "volnet::_gaussian_filter3d_backward", _double_backward, setup_context=_setup_backward
)
