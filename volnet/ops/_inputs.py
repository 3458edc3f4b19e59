"""What a convolution does to its inputs while it loads them: affine map, activation. Checks and gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from volnet.ops._arguments import check_tensor
from volnet.ops._epilogue import ACTIVATIONS, activate, activation_gradient, check_activation

INPUT_ACTIVATIONS = tuple(name for name in ACTIVATIONS if name != "prelu")


def check_affine(op: str, name: str, value: Tensor | None, x: Tensor) -> Tensor | None:
    """``value`` as [N, C] for ``x`` [N, C, D, H, W]."""
    if value is None:
        return None
    check_tensor(op, name, value)
    images, channels = x.shape[:2]
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    if value.shape not in ((images, channels), (1, channels)) or value.dtype != dtype:
        raise RuntimeError(
            f"{op}: {name} must be [{images}, {channels}] or [1, {channels}] of {dtype}, got "
            f"{tuple(value.shape)} of {value.dtype}"
        )
    return value.expand(images, channels)


def check_input_activation(op: str, name: str, activation: str | None) -> str:
    return check_activation(op, name, activation, INPUT_ACTIVATIONS)


def check_skip(op: str, skip: Tensor, x: Tensor) -> None:
    check_tensor(op, "skip", skip)
    fits = skip.dim() == x.dim() and skip.shape[0] == x.shape[0] and skip.shape[2:] == x.shape[2:]
    if not fits or skip.dtype != x.dtype:
        raise RuntimeError(
            f"{op}: skip must be like the input, {tuple(x.shape)} of {x.dtype}, up to its channels; got "
            f"{tuple(skip.shape)} of {skip.dtype}"
        )


def transform(
    x: Tensor, scale: Tensor | None, shift: Tensor | None, activation: str, negative_slope: float
) -> Tensor:
    """``x`` as the convolution takes it, for the gradient of the weights."""
    return activate(_affine(x, scale, shift), activation, negative_slope, None).to(x.dtype)


def transform_gradient(
    grad: Tensor,
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    activation: str,
    negative_slope: float,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Of ``x``, ``scale`` and ``shift``."""
    z = _affine(x, scale, shift)
    grad, _ = activation_gradient(grad.to(z.dtype), activation, negative_slope, None, z)
    grad_shift = None if shift is None else grad.sum((2, 3, 4))
    if scale is None:
        return grad.to(x.dtype), None, grad_shift
    return (grad * _spread(scale)).to(x.dtype), (grad * x).sum((2, 3, 4)), grad_shift


def _affine(x: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    if scale is not None:
        x = x * _spread(scale)
    return x if shift is None else x + _spread(shift)


def _spread(value: Tensor) -> Tensor:
    return value[..., None, None, None]
