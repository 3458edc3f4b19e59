"""The distance that boxes are regressed with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import volnet._extension  # noqa: F401 - registers torch.ops.volnet
from volnet._errors import names_shortage
from volnet.losses._segmentation import check_choice, check_range, in_dtype_of, refuse_second_derivatives
from volnet.ops._arguments import check_tensor
from volnet.ops._dense import empty_like

__all__ = ["smooth_l1"]


@names_shortage
def smooth_l1(input: Tensor, target: Tensor, *, beta: float = 1.0, reduction: str = "mean") -> Tensor:
    """``d^2 / (2 beta)`` where ``d = |input - target| < beta``, else ``d - beta / 2``.

    :func:`torch.nn.functional.smooth_l1_loss` in one pass over both, and one for their gradient.

    Args:
        input: of any shape; float32, bfloat16 or float64.
        target: of the same shape; where the dtypes differ the more exact one is that of the computation.
        beta: at least 0, where it is the plain distance.
        reduction: "mean" or "sum".

    Returns:
        Scalar, float64 for float64, else float32; 0 with a gradient of 0 for empty tensors. Differentiable
        once.

    Raises:
        ValueError: the shapes differ, or ``beta`` or ``reduction`` does not fit.
        RuntimeError: a dtype does not fit.

    >>> smooth_l1(torch.tensor([0.5, 3.0]), torch.zeros(2), reduction="sum").item()  # 0.125 + 2.5
    2.625
    """
    op = "smooth_l1"
    check_tensor(op, "input", input)
    check_tensor(op, "target", target)
    if input.shape != target.shape:
        shapes = f"{tuple(input.shape)} and {tuple(target.shape)}"
        raise ValueError(f"{op}: input and target must have one shape, got {shapes}")
    check_range(op, "beta", beta, 0.0)
    check_choice(op, "reduction", reduction, ("mean", "sum"))
    dtype = torch.promote_types(input.dtype, target.dtype)
    loss = torch.ops.volnet.smooth_l1_sum(input.to(dtype), target.to(dtype), float(beta))
    if reduction == "mean":
        loss = loss / max(input.numel(), 1)
    return in_dtype_of(loss, input.to(dtype))


@torch.library.register_fake("volnet::smooth_l1_sum")
def _(input: Tensor, target: Tensor, beta: float) -> Tensor:
    return input.new_empty((), dtype=torch.float64)


@torch.library.register_fake("volnet::_smooth_l1_sum_backward")
def _(grad: Tensor, input: Tensor, target: Tensor, beta: float) -> Tensor:
    return empty_like(input)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, target, ctx.beta = inputs
    ctx.save_for_backward(input, target)


@names_shortage
def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    needs_input, needs_target, _ = ctx.needs_input_grad
    found = torch.ops.volnet._smooth_l1_sum_backward(grad, *ctx.saved_tensors, ctx.beta)
    return found if needs_input else None, -found if needs_target else None, None


torch.library.register_autograd("volnet::smooth_l1_sum", _backward, setup_context=_setup)
torch.library.register_autograd("volnet::_smooth_l1_sum_backward", refuse_second_derivatives)
