"""What follows a convolution in the same operator: residual, activation, statistics. Checks and gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from volnet.ops._arguments import check_tensor

ACTIVATIONS = ("relu", "leaky_relu", "prelu", "silu", "gelu", "gelu_tanh")


def check_activation(op: str, name: str, activation: str | None, known: Sequence[str] = ACTIVATIONS) -> str:
    """The activation as the operators take it."""
    if activation is None:
        return "none"
    if activation not in known:
        raise ValueError(f"{op}: {name} must be None or one of {', '.join(known)}, got {activation!r}")
    return activation


def check_slope(op: str, name: str, slope: float) -> float:
    if isinstance(slope, bool) or not isinstance(slope, (int, float)):
        raise TypeError(f"{op}: {name} must be a number, got {slope!r}")
    return float(slope)


def check_prelu_weight(
    op: str, activation: str, weight: Tensor | None, filters: int, dtype: torch.dtype
) -> None:
    if (activation == "prelu") != (weight is not None):
        raise ValueError(
            f"{op}: prelu_weight belongs to activation='prelu'; got activation={activation!r} and "
            f"{'no' if weight is None else 'a'} prelu_weight"
        )
    if weight is None:
        return
    check_tensor(op, "prelu_weight", weight)
    if weight.shape not in ((1,), (filters,)) or weight.dtype != dtype:
        raise RuntimeError(
            f"{op}: prelu_weight must be [1] or [{filters}] of {dtype}, got {tuple(weight.shape)} of "
            f"{weight.dtype}"
        )


def check_residual(op: str, residual: Tensor, shape: Sequence[int], dtype: torch.dtype) -> None:
    check_tensor(op, "residual", residual)
    if tuple(residual.shape) != tuple(shape) or residual.dtype != dtype:
        raise RuntimeError(
            f"{op}: residual must be like the result, {tuple(shape)} of {dtype}, got "
            f"{tuple(residual.shape)} of {residual.dtype}"
        )


def trains(*tensors: Tensor | None) -> bool:
    """Whether a gradient may be asked for."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def from_result(activation: str, negative_slope: float) -> bool:
    """Whether the result of the activation is enough for its gradient; the others need what went in."""
    return activation in ("none", "relu") or (activation == "leaky_relu" and negative_slope >= 0)


def activate(z: Tensor, activation: str, negative_slope: float, prelu_weight: Tensor | None) -> Tensor:
    """The activation by itself, for those that keep ``z`` for the gradient."""
    if activation == "prelu":
        assert prelu_weight is not None
        return F.prelu(z, prelu_weight.expand(z.shape[1]))
    if activation == "leaky_relu":
        return F.leaky_relu(z, negative_slope)
    if activation == "relu":
        return z.relu()
    if activation == "silu":
        return F.silu(z)
    if activation == "none":
        return z
    return F.gelu(z, approximate="tanh" if activation == "gelu_tanh" else "none")


def activation_gradient(
    grad: Tensor, activation: str, negative_slope: float, prelu_weight: Tensor | None, value: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Of what went in, and of ``prelu_weight``. ``value`` is the result where :func:`from_result` says that
    it is enough, else what went in."""
    if activation == "none":
        return grad, None
    assert value is not None
    aten = torch.ops.aten
    if activation == "relu":
        return aten.threshold_backward(grad, value, 0), None
    if activation == "leaky_relu":
        return aten.leaky_relu_backward(
            grad, value, negative_slope, from_result(activation, negative_slope)
        ), None
    if activation == "silu":
        sigmoid = value.sigmoid()  # torch's own backward has no derivative
        return grad * sigmoid * (1 + value * (1 - sigmoid)), None
    if activation != "prelu":
        return aten.gelu_backward(
            grad, value, approximate="tanh" if activation == "gelu_tanh" else "none"
        ), None
    assert prelu_weight is not None
    slopes = prelu_weight.reshape(1, -1, 1, 1, 1)
    grad, each = aten._prelu_kernel_backward(grad, value, slopes.expand(1, value.shape[1], 1, 1, 1))
    total = each.sum((0, 2, 3, 4))
    return grad, total.sum().reshape(1) if prelu_weight.shape[0] == 1 else total


def statistics_gradient(
    grad: Tensor, y: Tensor, mean: Tensor, grad_mean: Tensor, grad_variance: Tensor
) -> Tensor:
    """``grad`` of y, and what y owes to its mean and its variance."""
    voxels = y.shape[2:].numel()
    a_voxel = (grad_mean / voxels)[..., None, None, None]
    slope = (grad_variance * (2 / voxels))[..., None, None, None]
    return grad + (a_voxel + slope * (y - mean[..., None, None, None])).to(grad.dtype)
