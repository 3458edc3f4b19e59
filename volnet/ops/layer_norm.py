"""Layer norm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import volnet._extension  # noqa: F401 - registers torch.ops.volnet
from volnet._errors import names_shortage
from volnet.ops._arguments import check_tensor, integer
from volnet.ops._epilogue import activate, check_activation, check_residual, check_slope
from volnet.ops._inputs import INPUT_ACTIVATIONS
from volnet.ops.norm import check_number

__all__ = ["layer_norm"]


@names_shortage
def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    activation: str | None = None,
    negative_slope: float = 0.01,
    residual: Tensor | None = None,
) -> Tensor:
    """Layer normalization, as :func:`torch.nn.functional.layer_norm` takes it, with what often follows it.

    ``y = activation((input - mean) / sqrt(variance + eps) * weight + bias + residual)``, the mean and the
    variance being those over the last axes, ``normalized_shape``.

    Args:
        input: [..., *normalized_shape]; float32, bfloat16 or float64.
        normalized_shape: the last sizes of ``input``.
        weight, bias: of ``normalized_shape``, of the dtype of ``input`` or float32.
        eps: added to the variance.
        activation: ``"relu"``, ``"leaky_relu"``, ``"silu"``, ``"gelu"``, ``"gelu_tanh"`` or none.
        negative_slope: of ``"leaky_relu"``.
        residual: like ``input``, added before the activation.

    Returns:
        Like ``input``, contiguous. Statistics and arithmetic of bfloat16 are in float32, with one rounding.

    Raises:
        RuntimeError: shapes or dtypes do not fit.
        ValueError: ``activation`` is another string.

    >>> layer_norm(torch.tensor([[1.0, 3.0]]), (2,), eps=0.0).tolist()
    [[-1.0, 1.0]]
    """
    op = "layer_norm"
    check_tensor(op, "input", input)
    shape = _shape(op, normalized_shape)
    if tuple(input.shape[-len(shape) :]) != shape:
        raise RuntimeError(
            f"{op}: input must end in normalized_shape={shape}, got shape {tuple(input.shape)}"
        )
    for name, value in (("weight", weight), ("bias", bias)):
        if value is None:
            continue
        check_tensor(op, name, value)
        if tuple(value.shape) != shape or (value.dtype != input.dtype and value.dtype != torch.float32):
            raise RuntimeError(
                f"{op}: {name} must be {shape} of {input.dtype} or float32, got {tuple(value.shape)} of "
                f"{value.dtype}"
            )
    act = check_activation(op, "activation", activation, INPUT_ACTIVATIONS)
    slope = check_slope(op, "negative_slope", negative_slope)
    epsilon = check_number(op, "eps", eps)
    if residual is not None:
        check_residual(op, residual, input.shape, input.dtype)
    columns = input.shape[len(input.shape) - len(shape) :].numel()
    if columns > _MOST_COLUMNS:
        return _in_two_passes(input, columns, weight, bias, epsilon, act, slope, residual)
    y: Tensor = torch.ops.volnet.layer_norm(input, columns, weight, bias, residual, epsilon, act, slope)
    return y


# Rows up to here stay in a core's cache, and layers with longer ones have few of them.
_MOST_COLUMNS = 1 << 18


def _in_two_passes(
    input: Tensor,
    columns: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str,
    negative_slope: float,
    residual: Tensor | None,
) -> Tensor:
    """Rows that are whole volumes: the norm of one group, then torch's operators for what each column has."""
    rows = input.reshape(-1, 1, columns, 1, 1).to(torch.promote_types(input.dtype, torch.float32))
    z, _, _ = torch.ops.volnet.norm(rows, None, None, None, 1, True, eps, "none", 0.0)
    z = z.reshape(input.shape)
    if weight is not None:
        z = z * weight
    if bias is not None:
        z = z + bias
    if residual is not None:
        z = z + residual
    return activate(z, activation, negative_slope, None).to(input.dtype)


def _shape(op: str, value: Sequence[int]) -> tuple[int, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise TypeError(f"{op}: normalized_shape must be a sequence of ints, got {value!r}")
    if len(value) == 0:
        raise RuntimeError(f"{op}: normalized_shape must have one size or more, got {value!r}")
    return tuple(integer(op, "normalized_shape", size) for size in value)


@torch.library.register_fake("volnet::layer_norm")
def _(
    x: Tensor,
    columns: int,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    eps: float,
    activation: str,
    negative_slope: float,
) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


@torch.library.register_fake("volnet::_layer_norm_backward")
def _(
    grad: Tensor,
    x: Tensor,
    columns: int,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    eps: float,
    activation: str,
    negative_slope: float,
    residual_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    dweight, dbias = (x.new_empty([columns], dtype=dtype) for _ in range(2))
    return dx, dweight, dbias, torch.empty_like(dx) if residual_gradient else x.new_empty([0])


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, ctx.columns, weight, bias, residual, ctx.eps, ctx.activation, ctx.negative_slope = inputs
    ctx.save_for_backward(x, weight, bias, None if ctx.activation == "none" else residual)


@names_shortage
def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias, residual = ctx.saved_tensors
    wanted = ctx.needs_input_grad[4]
    apart = wanted and ctx.activation != "none"
    dx, dweight, dbias, dz = torch.ops.volnet._layer_norm_backward(
        grad, x, ctx.columns, weight, bias, residual, ctx.eps, ctx.activation, ctx.negative_slope, apart
    )
    return (
        dx,
        None,
        None if weight is None else dweight.to(weight.dtype).reshape(weight.shape),
        None if bias is None else dbias.to(bias.dtype).reshape(bias.shape),
        (dz if apart else grad) if wanted else None,
        None,
        None,
        None,
    )


def _setup_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    grad, x, ctx.columns, weight, bias, residual, *after = inputs
    ctx.eps, ctx.activation, ctx.negative_slope, ctx.residual_gradient = after
    ctx.save_for_backward(grad, x, weight, bias, residual)


@names_shortage
def _double_backward(
    ctx: Any, grad_dx: Tensor, grad_dweight: Tensor, grad_dbias: Tensor, grad_dz: Tensor
) -> tuple[Tensor | None, ...]:
    """Through the same norm in torch's words."""
    grad, x, weight, bias, residual = ctx.saved_tensors
    with torch.enable_grad():
        grad, x = grad.detach().requires_grad_(), x.detach().requires_grad_()
        weight, bias, residual = (
            None if value is None else value.detach().requires_grad_() for value in (weight, bias, residual)
        )
        columns = ctx.columns
        w = x.new_ones(columns).requires_grad_() if weight is None else weight.flatten()
        b = x.new_zeros(columns).requires_grad_() if bias is None else bias.flatten()
        rows = x.reshape(-1, columns)
        variance, mean = torch.var_mean(rows, 1, keepdim=True, correction=0)
        z = (((rows - mean) / (variance + ctx.eps).sqrt()) * w + b).reshape(x.shape).to(x.dtype)
        if residual is not None:
            z = z + residual
        y = activate(z, ctx.activation, ctx.negative_slope, None)
        results = list(torch.autograd.grad(y, (x, w, b, z), grad, create_graph=True, materialize_grads=True))
        seeds = [grad_dx, grad_dweight.to(w.dtype), grad_dbias.to(b.dtype), grad_dz]
        if not ctx.residual_gradient:
            results, seeds = results[:3], seeds[:3]
        wanted = [grad, x, weight, bias, residual]
        inputs = [value for value in wanted if value is not None]
        found = iter(torch.autograd.grad(results, inputs, seeds, materialize_grads=True))
    of_grad, of_x, *others = [None if value is None else next(found) for value in wanted]
    return of_grad, of_x, None, *others, None, None, None, None


torch.library.register_autograd("volnet::layer_norm", _backward, setup_context=_setup)
torch.library.register_autograd(
    "volnet::_layer_norm_backward", _double_backward, setup_context=_setup_backward
)
