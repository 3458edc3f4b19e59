"""Softmax, of channels most of all."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import volnet._extension  # noqa: F401 - registers torch.ops.volnet
from volnet._errors import names_shortage
from volnet.ops._arguments import check_tensor
from volnet.ops._axis import checked_axis
from volnet.ops._dense import empty_like

__all__ = ["softmax"]


@names_shortage
def softmax(
    input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None
) -> Tensor:
    """``exp(input) / exp(input).sum(dim)``, as :func:`torch.nn.functional.softmax` takes it.

    Args:
        input: of any shape, say [N, C, D, H, W] with ``dim=1``; float32, bfloat16 or float64.
        dim: the axis along which the results sum to 1. Left out, torch chooses one, computes and warns.
        dtype: what ``input`` is converted to first, which may then be of any dtype.

    Returns:
        Like ``input``, in its layout. bfloat16 is computed in float32 and rounded once.

    Raises:
        RuntimeError: the dtype does not fit.
        IndexError: ``input`` has no axis ``dim``.
        TypeError: an argument is of the wrong type.

    >>> softmax(torch.zeros(1, 4, 1, 1, 1), dim=1).flatten().tolist()
    [0.25, 0.25, 0.25, 0.25]
    """
    op = "softmax"
    if dim is None:
        return F.softmax(input, None, _stacklevel + 2, dtype)  # seen from the caller's line
    if dtype is not None:
        if not isinstance(dtype, torch.dtype):
            raise TypeError(f"{op}: dtype must be a torch.dtype, got {dtype!r}")
        if isinstance(input, Tensor):
            input = input.to(dtype)
    check_tensor(op, "input", input)
    axis = checked_axis(op, input, dim)
    if input.dim() == 0:
        return softmax(input.reshape(1), 0).reshape(())
    y: Tensor = torch.ops.volnet.softmax(input, axis)
    return y


@torch.library.register_fake("volnet::softmax")
def _(x: Tensor, dim: int) -> Tensor:
    return empty_like(x)


@torch.library.register_fake("volnet::_softmax_backward")
def _(grad: Tensor, result: Tensor, dim: int) -> Tensor:
    return empty_like(result)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.dim = inputs[1]
    ctx.save_for_backward(output)


@names_shortage
def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return torch.ops.volnet._softmax_backward(grad, ctx.saved_tensors[0], ctx.dim), None


def _setup_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad, result, ctx.dim = inputs
    ctx.save_for_backward(grad, result)


@names_shortage
def _double_backward(ctx: Any, seed: Tensor) -> tuple[Tensor | None, ...]:
    """Of ``y * (grad - (grad * y).sum(dim))``: for ``grad`` it is its own transpose."""
    grad, y = ctx.saved_tensors
    of_grad = torch.ops.volnet._softmax_backward(seed, y, ctx.dim)
    weighted = (seed * y).sum(ctx.dim, keepdim=True)
    of_y = seed * (grad - (grad * y).sum(ctx.dim, keepdim=True)) - grad * weighted
    return of_grad, of_y, None


torch.library.register_autograd("volnet::softmax", _backward, setup_context=_setup)
torch.library.register_autograd("volnet::_softmax_backward", _double_backward, setup_context=_setup_backward)
