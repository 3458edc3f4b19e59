"""Activations, in place too."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import volnet._extension  # noqa: F401 - registers torch.ops.volnet
from volnet._errors import names_shortage
from volnet.ops._arguments import check_bool, check_tensor, memory_format_of
from volnet.ops._dense import empty_like, is_dense
from volnet.ops._epilogue import activation_gradient, check_slope

__all__ = ["elu", "gelu", "leaky_relu", "prelu", "relu", "sigmoid", "silu"]


@names_shortage
def relu(input: Tensor, inplace: bool = False) -> Tensor:
    """``max(input, 0)``, as :func:`torch.nn.functional.relu` takes it.

    Args:
        input: of any shape; float32, bfloat16 or float64.
        inplace: change ``input`` itself, which keeps its memory.

    Returns:
        Like ``input``, in its layout; ``input`` itself if ``inplace``.

    Raises:
        RuntimeError: the dtype of ``input`` does not fit.
        TypeError: an argument is of the wrong type.

    >>> relu(torch.tensor([-1.0, 2.0])).tolist()
    [0.0, 2.0]
    """
    return _activate("relu", input, "relu", 0.0, inplace)


@names_shortage
def leaky_relu(input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    """``input`` where it is above zero, else ``input * negative_slope``, as
    :func:`torch.nn.functional.leaky_relu` takes it. The rest as for :func:`relu`.

    >>> leaky_relu(torch.tensor([-1.0, 2.0]), 0.5).tolist()
    [-0.5, 2.0]
    """
    slope = check_slope("leaky_relu", "negative_slope", negative_slope)
    return _activate("leaky_relu", input, "leaky_relu", slope, inplace)


@names_shortage
def silu(input: Tensor, inplace: bool = False) -> Tensor:
    """``input * sigmoid(input)``, as :func:`torch.nn.functional.silu` takes it. The rest as for :func:`relu`.

    >>> silu(torch.zeros(2)).tolist()
    [0.0, 0.0]
    """
    return _activate("silu", input, "silu", 0.0, inplace)


@names_shortage
def gelu(input: Tensor, approximate: str = "none") -> Tensor:
    """``input`` times the normal distribution's share below it, as :func:`torch.nn.functional.gelu` takes it.

    Args:
        input: of any shape; float32, bfloat16 or float64.
        approximate: ``"tanh"`` for the formula with that in the place of the normal distribution.

    Returns:
        Like ``input``, in its layout.

    Raises:
        RuntimeError: the dtype of ``input`` does not fit, or ``approximate`` is another string.
        TypeError: an argument is of the wrong type.

    >>> gelu(torch.zeros(2)).tolist()
    [0.0, 0.0]
    """
    if not isinstance(approximate, str):
        raise TypeError(f"gelu: approximate must be a str, got {approximate!r}")
    if approximate not in ("none", "tanh"):
        raise RuntimeError(f"gelu: approximate must be 'none' or 'tanh', got {approximate!r}")
    return _activate("gelu", input, "gelu_tanh" if approximate == "tanh" else "gelu", 0.0, False)


@names_shortage
def elu(input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    """``input`` where it is above zero, else ``alpha * (exp(input) - 1)``, as
    :func:`torch.nn.functional.elu` takes it. The rest as for :func:`relu`.

    >>> elu(torch.tensor([0.0, 2.0])).tolist()
    [0.0, 2.0]
    """
    return _activate("elu", input, "elu", check_slope("elu", "alpha", alpha), inplace)


@names_shortage
def sigmoid(input: Tensor) -> Tensor:
    """``1 / (1 + exp(-input))``, as :func:`torch.sigmoid` takes it. The rest as for :func:`relu`.

    >>> sigmoid(torch.zeros(2)).tolist()
    [0.5, 0.5]
    """
    return _activate("sigmoid", input, "sigmoid", 0.0, False)


@names_shortage
def prelu(input: Tensor, weight: Tensor) -> Tensor:
    """:func:`leaky_relu` with a slope for each channel that can be learnt, as
    :func:`torch.nn.functional.prelu` takes it.

    Args:
        input: [N, C, ...]; float32, bfloat16 or float64.
        weight: [C], [1] or []; of the dtype of ``input``.

    Returns:
        Like ``input``, in its layout (plain or channels_last_3d).

    Raises:
        RuntimeError: the shapes or dtypes do not fit.

    >>> prelu(torch.tensor([[-1.0, -1.0]]), torch.tensor([0.5, 0.25])).tolist()
    [[-0.5, -0.25]]
    """
    check_tensor("prelu", "input", input)
    check_tensor("prelu", "weight", weight)
    if torch.is_autocast_enabled("cpu") and input.dtype != torch.float64:  # torch's policy
        input, weight = input.bfloat16(), weight.bfloat16()
    if weight.dtype != input.dtype:
        raise RuntimeError(f"prelu: weight must be of {input.dtype} as input, got {weight.dtype}")
    channels = input.shape[1] if input.dim() >= 2 else 1
    if weight.dim() > 1 or weight.numel() not in (1, channels):
        raise RuntimeError(
            f"prelu: weight must be [1] or [{channels}] for input of shape {tuple(input.shape)}, got "
            f"{tuple(weight.shape)}"
        )
    y: Tensor = torch.ops.volnet.prelu(input, weight)
    return y


def _activate(op: str, input: Tensor, function: str, parameter: float, inplace: bool) -> Tensor:
    check_tensor(op, "input", input)
    check_bool(op, "inplace", inplace)
    if not inplace:
        y: Tensor = torch.ops.volnet.activate(input, function, parameter)
        return y
    if torch.compiler.is_compiling():
        return input.copy_(torch.ops.volnet.activate(input, function, parameter))
    if type(input) is Tensor or isinstance(input, torch.nn.Parameter):
        changed: Tensor = _InPlace.apply(input, function, parameter)
        return changed
    return input.copy_(torch.ops.volnet.activate(input, function, parameter))


class _InPlace(torch.autograd.Function):
    """Operators that change an argument get no gradient from ``torch.library.register_autograd``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, function: str, parameter: float) -> Tensor:
        ctx.function, ctx.parameter = function, parameter
        ctx.from_result = _from_result(function, parameter, inplace=True)
        before = x.clone() if ctx.needs_input_grad[0] and not ctx.from_result else None
        if is_dense(x):
            torch.ops.volnet._activate_(x, function, parameter)
        else:
            x.copy_(torch.ops.volnet.activate(x, function, parameter))
        ctx.mark_dirty(x)
        ctx.save_for_backward(x if before is None else before)
        return x

    @staticmethod
    @names_shortage
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return _gradient(ctx, grads[0]), None, None


def _from_result(function: str, parameter: float, inplace: bool = False) -> bool:
    """Whether the gradient is computed from the result; else from what went in. That of elu loses digits
    where the result is near ``-alpha``, and is only computed so where there is nothing else left."""
    if function == "elu":
        return inplace and parameter >= 0
    return function in ("relu", "sigmoid") or (function == "leaky_relu" and parameter >= 0)


def _empty_like_by_channel(x: Tensor, weight: Tensor) -> Tensor:
    """As :func:`volnet.ops._dense.empty_like`, but plain where it is neither plain nor channels_last."""
    if weight.numel() == 1:
        return empty_like(x)
    layout = memory_format_of(x) if x.dim() == 5 else torch.contiguous_format
    if x.is_contiguous(memory_format=layout):
        return empty_like(x)
    return torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=layout)


@torch.library.register_fake("volnet::activate")
def _(x: Tensor, function: str, parameter: float) -> Tensor:
    return empty_like(x)


@torch.library.register_fake("volnet::_activate_")
def _(x: Tensor, function: str, parameter: float) -> None:
    pass


@torch.library.register_fake("volnet::_activate_backward")
def _(grad: Tensor, value: Tensor, function: str, parameter: float, from_result: bool) -> Tensor:
    return empty_like(value)


@torch.library.register_fake("volnet::prelu")
def _(x: Tensor, weight: Tensor) -> Tensor:
    return _empty_like_by_channel(x, weight)


@torch.library.register_fake("volnet::_prelu_backward")
def _(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return _empty_like_by_channel(x, weight), torch.empty_like(weight, memory_format=torch.contiguous_format)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, ctx.function, ctx.parameter = inputs
    ctx.from_result = _from_result(ctx.function, ctx.parameter)
    ctx.save_for_backward(output if ctx.from_result else x)


def _gradient(ctx: Any, grad: Tensor) -> Tensor:
    (value,) = ctx.saved_tensors
    dx: Tensor = torch.ops.volnet._activate_backward(
        grad, value, ctx.function, ctx.parameter, ctx.from_result
    )
    return dx


@names_shortage
def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return _gradient(ctx, grad), None, None


def _setup_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad, value, ctx.function, ctx.parameter, ctx.from_result = inputs
    ctx.save_for_backward(grad, value)


@names_shortage
def _double_backward(ctx: Any, seed: Tensor) -> tuple[Tensor | None, ...]:
    """Through the same gradient in torch's words."""
    grad, value = (t.detach() for t in ctx.saved_tensors)
    function, parameter = ctx.function, ctx.parameter
    with torch.enable_grad():
        grad, value = grad.requires_grad_(), value.requires_grad_()
        if function == "sigmoid":
            dx = grad * value * (1 - value)
        elif function == "elu":
            slope = value + parameter if ctx.from_result else parameter * value.exp()
            dx = torch.where(value > 0, grad, grad * slope)
        elif function == "leaky_relu":
            dx = torch.where(value > 0, grad, grad * parameter)
        else:
            dx, _ = activation_gradient(grad, function, parameter, None, value)
        of_grad, of_value = torch.autograd.grad(dx, (grad, value), seed, materialize_grads=True)
    return of_grad, of_value, None, None, None


def _setup_prelu(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


@names_shortage
def _prelu_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    dx, dweight = torch.ops.volnet._prelu_backward(grad, x, weight)
    return dx, dweight


@names_shortage
def _prelu_double_backward(ctx: Any, seed_x: Tensor, seed_weight: Tensor) -> tuple[Tensor | None, ...]:
    grad, x, weight = (t.detach() for t in ctx.saved_tensors)
    slopes = weight.reshape([1, -1, *[1] * (x.dim() - 2)]) if weight.numel() > 1 else weight.reshape([])
    below = x <= 0
    of_grad = torch.where(below, seed_x * slopes + seed_weight.reshape(slopes.shape) * x, seed_x)
    of_x = torch.where(below, grad * seed_weight.reshape(slopes.shape), torch.zeros_like(x))
    of_weight = (seed_x * grad * below).sum_to_size(slopes.shape).reshape(weight.shape)
    return of_grad, of_x, of_weight


torch.library.register_autograd("volnet::activate", _backward, setup_context=_setup)
torch.library.register_autograd("volnet::_activate_backward", _double_backward, setup_context=_setup_backward)
torch.library.register_autograd("volnet::prelu", _prelu_backward, setup_context=_setup_prelu)
torch.library.register_autograd("volnet::_prelu_backward", _prelu_double_backward, setup_context=_setup_prelu)
