"""Transposed 3-D convolution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import volnet._extension
import volnet.ops.conv3d  # noqa: F401 - the fake kernels and gradients of the operators in the backward
from volnet._errors import names_shortage
from volnet.ops._arguments import (
    batched,
    check_at_least,
    check_tensor,
    empty_volume,
    memory_format_of,
    triple,
)
from volnet.ops._epilogue import (
    activate,
    activation_gradient,
    check_activation,
    check_prelu_weight,
    check_residual,
    check_slope,
    from_result,
    trains,
)
from volnet.ops._precision import register_autograd

__all__ = ["conv_transpose3d"]


@names_shortage
def conv_transpose3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
    *,
    activation: str | None = None,
    negative_slope: float = 0.01,
    prelu_weight: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """Convolves a volume transposed, as :func:`torch.nn.functional.conv_transpose3d` does, and what often
    follows at once.

    It is the gradient of a convolution with respect to its input: every voxel ``i`` of the input adds
    ``weight[c, k, t] * input[n, c, i]`` to ``y[n, k, i * stride - padding + t * dilation]``, and ``bias[k]``
    is added once, then ``residual``; the activation comes last. ``D' = (D - 1) * stride - 2 * padding +
    dilation * (kd - 1) + output_padding + 1``.

    Args:
        input: [N, C, D, H, W] or [C, D, H, W]; float32, bfloat16 or float64.
        weight: [C, K / groups, kd, kh, kw], of the dtype of ``input``.
        bias: [K] or none.
        stride: step in the output between neighbours of the input, one number or one an axis.
        padding: voxels removed from both sides of the output.
        output_padding: voxels added at the end of the output; less than ``stride`` or than ``dilation``.
        groups: input and output channels are split into this many independent convolutions.
        dilation: distance between the taps of the kernel.
        activation, negative_slope, prelu_weight, residual: as those of :func:`volnet.ops.conv3d`.

    Returns:
        [N, K, D', H', W'], channels_last_3d where ``input`` or ``weight`` is, else plain. bfloat16 is summed
        in float32 and rounded once, after the activation.

    Raises:
        RuntimeError: shapes, dtypes or devices do not fit, ``output_padding`` is too large, or the output
            would be empty.
        ValueError: ``activation`` is not known.

    >>> x, w = torch.ones(1, 2, 4, 4, 4), torch.ones(2, 3, 2, 2, 2)
    >>> conv_transpose3d(x, w, stride=2).shape, float(conv_transpose3d(x, w, stride=2)[0, 0, 0, 0, 0])
    (torch.Size([1, 3, 8, 8, 8]), 2.0)
    """
    op = "conv_transpose3d"
    if torch.is_autocast_enabled("cpu"):
        input, weight = _autocast(input), _autocast(weight)
        bias = None if bias is None else _autocast(bias)
        prelu_weight = None if prelu_weight is None else _autocast(prelu_weight)
        residual = None if residual is None else _autocast(residual)
    volume, unbatched = batched(op, "input", input)
    check_tensor(op, "weight", weight)
    if weight.dim() != 5:
        raise RuntimeError(f"{op}: weight must be [C, K / groups, kd, kh, kw], got {tuple(weight.shape)}")
    if weight.dtype != input.dtype:
        raise RuntimeError(f"{op}: input is {input.dtype} but weight is {weight.dtype}")
    if groups < 1:
        raise RuntimeError(f"{op}: groups must be positive, got {groups}")
    channels, filters = weight.shape[0], weight.shape[1] * groups
    if volume.shape[1] != channels:
        raise RuntimeError(
            f"{op}: input of shape {tuple(input.shape)} has {volume.shape[1]} channels, but weight of "
            f"shape {tuple(weight.shape)} expects {channels}"
        )
    if channels % groups != 0 or channels == 0:
        raise RuntimeError(f"{op}: {channels} channels cannot be divided into groups={groups}")
    if filters == 0:
        raise RuntimeError(f"{op}: weight of shape {tuple(weight.shape)} has 0 filters")
    if bias is not None:
        check_tensor(op, "bias", bias)
        if bias.shape != (filters,) or bias.dtype != input.dtype:
            raise RuntimeError(
                f"{op}: bias must be [{filters}] of {input.dtype}, got {tuple(bias.shape)} of {bias.dtype}"
            )
    strides, dilations = triple(op, "stride", stride), triple(op, "dilation", dilation)
    paddings, extra = triple(op, "padding", padding), triple(op, "output_padding", output_padding)
    check_at_least(op, "stride", strides, 1)
    check_at_least(op, "dilation", dilations, 1)
    check_at_least(op, "padding", paddings, 0)
    check_at_least(op, "output_padding", extra, 0)
    check_at_least(op, "kernel size", list(weight.shape[2:]), 1)
    check_at_least(op, "size of the input", list(volume.shape[2:]), 1)
    if any(e >= max(s, d) for e, s, d in zip(extra, strides, dilations, strict=True)):
        raise RuntimeError(
            f"{op}: output_padding must be smaller than stride or dilation on every axis, got "
            f"output_padding={tuple(extra)}, stride={tuple(strides)}, dilation={tuple(dilations)}"
        )
    shape = _output_shape(volume, weight, strides, paddings, extra, dilations, groups)
    if any(size < 1 for size in shape[2:]):
        raise RuntimeError(
            f"{op}: input {tuple(input.shape)} with padding={tuple(paddings)} gives an empty output of "
            f"size {tuple(shape[2:])}"
        )
    geometry = (strides, paddings, extra, dilations, groups)
    act = check_activation(op, "activation", activation)
    slope = check_slope(op, "negative_slope", negative_slope)
    check_prelu_weight(op, act, prelu_weight, filters, input.dtype)
    if residual is not None:
        check_residual(op, residual, shape[1:] if unbatched else shape, input.dtype)
        residual = residual.unsqueeze(0) if unbatched else residual
    if act == "none" and residual is None:
        result = torch.ops.volnet.conv_transpose3d(volume, weight, bias, *geometry)
    else:
        # Where a gradient needs what goes into the activation, that is kept rather than computed twice.
        apart = not from_result(act, slope) and trains(input, weight, bias, prelu_weight, residual)
        after = ("none", 0.0, None) if apart else (act, slope, prelu_weight)
        result = torch.ops.volnet.conv_transpose3d_fused(volume, weight, bias, *geometry, *after, residual)
        if apart:
            result = activate(result, act, slope, prelu_weight)
    return result.squeeze(0) if unbatched else result


def _autocast(value: Tensor) -> Tensor:
    """Under autocast, float32 is computed in bfloat16, as torch's own convolution is."""
    return value.to(torch.bfloat16) if isinstance(value, Tensor) and value.dtype == torch.float32 else value


def _output_shape(
    input: Tensor,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    output_padding: list[int],
    dilation: list[int],
    groups: int,
) -> list[int]:
    space = [
        (input.shape[2 + i] - 1) * stride[i]
        - 2 * padding[i]
        + dilation[i] * (weight.shape[2 + i] - 1)
        + output_padding[i]
        + 1
        for i in range(3)
    ]
    return [input.shape[0], weight.shape[1] * groups, *space]


@torch.library.register_fake("volnet::conv_transpose3d")
def _(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    output_padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    shape = _output_shape(input, weight, stride, padding, output_padding, dilation, groups)
    last = torch.channels_last_3d in (memory_format_of(input), memory_format_of(weight))
    return empty_volume(input, shape, torch.channels_last_3d if last else torch.contiguous_format)


@torch.library.register_fake("volnet::conv_transpose3d_fused")
def _(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    output_padding: list[int],
    dilation: list[int],
    groups: int,
    activation: str,
    negative_slope: float,
    prelu_weight: Tensor | None,
    residual: Tensor | None,
) -> Tensor:
    geometry = (stride, padding, output_padding, dilation, groups)
    return torch.ops.volnet.conv_transpose3d(input, weight, bias, *geometry)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, weight, bias, ctx.stride, ctx.padding, ctx.output_padding, ctx.dilation, ctx.groups = inputs
    ctx.has_bias = bias is not None
    needs_input, needs_weight = ctx.needs_input_grad[:2]
    ctx.weight_size, ctx.dtype = list(weight.shape), input.dtype
    ctx.channels_last = memory_format_of(input) == torch.channels_last_3d
    ctx.save_for_backward(input if needs_weight else None, weight if needs_input else None)


@names_shortage
def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *_gradients(ctx, grad, *ctx.saved_tensors), None, None, None, None, None


def _gradients(
    ctx: Any, grad: Tensor, input: Tensor | None, weight: Tensor | None
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Those of the convolution from the output to the input, with their roles swapped."""
    grad_input = grad_weight = grad_bias = None
    if ctx.needs_input_grad[0] or ctx.needs_input_grad[1]:
        reached, padding = _without_unread_end(grad, ctx.stride, ctx.padding, ctx.output_padding)
        geometry = (ctx.stride, padding, ctx.dilation, ctx.groups)
        if ctx.needs_input_grad[0]:
            grad_input = torch.ops.volnet.conv3d(reached, weight, None, *geometry)
            layout = torch.channels_last_3d if ctx.channels_last else torch.contiguous_format
            grad_input = grad_input.contiguous(memory_format=layout)
        if ctx.needs_input_grad[1]:
            grad_weight, _ = torch.ops.volnet._conv3d_backward_weight(
                input, reached, ctx.weight_size, *geometry
            )
            grad_weight = grad_weight.to(ctx.dtype)
    if ctx.needs_input_grad[2] and ctx.has_bias:
        grad_bias = _sum_of_channels(grad)
    return grad_input, grad_weight, grad_bias


def _setup_fused_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _setup_context(ctx, inputs[:8], output)
    input, weight, bias, *_ = inputs
    ctx.activation, ctx.negative_slope, prelu_weight, residual = inputs[8:]
    from_y = from_result(ctx.activation, ctx.negative_slope)
    ctx.save_for_backward(
        *(input, weight), *((output, None, None, None) if from_y else (None, bias, residual, prelu_weight))
    )


@names_shortage
def _backward_of_fused(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    input, weight, value, bias, residual, prelu_weight = ctx.saved_tensors
    if value is None:
        geometry = (ctx.stride, ctx.padding, ctx.output_padding, ctx.dilation, ctx.groups)
        value = torch.ops.volnet.conv_transpose3d_fused(
            input, weight, bias, *geometry, "none", 0.0, None, residual
        )
    grad, grad_prelu = activation_gradient(grad, ctx.activation, ctx.negative_slope, prelu_weight, value)
    after = (None, None, grad_prelu, grad if ctx.needs_input_grad[11] else None)
    return *_gradients(ctx, grad, input, weight), None, None, None, None, None, *after


def _without_unread_end(
    grad: Tensor, stride: list[int], padding: list[int], output_padding: list[int]
) -> tuple[Tensor, list[int]]:
    """``grad`` and the padding with which the convolution gives as many voxels as the input had.

    Where output_padding is larger than padding by a whole stride, as dilation allows, the convolution would
    find room for more; nothing in the input has reached those voxels.
    """
    sides = []
    for axis in range(3):
        excess = output_padding[axis] - padding[axis]
        if excess >= stride[axis]:
            grad = grad.narrow(2 + axis, 0, grad.shape[2 + axis] - excess)
        sides += [padding[axis], max(-excess, 0)]
    return grad, sides


def _sum_of_channels(grad: Tensor) -> Tensor:
    """[K], in an order that does not depend on threads: the gradient of the bias of a convolution, here one
    without input channels."""
    dtype = torch.float64 if grad.dtype == torch.float64 else torch.float32
    nothing = grad.new_empty([grad.shape[0], 0, *grad.shape[2:]], dtype=dtype)
    geometry = ([1] * 3, [0] * 6, [1] * 3, 1)
    _, total = torch.ops.volnet._conv3d_backward_weight(
        grad.to(dtype), nothing, [grad.shape[1], 0, 1, 1, 1], *geometry
    )
    return total.to(grad.dtype)


register_autograd("volnet::conv_transpose3d", _backward, setup_context=_setup_context)
register_autograd("volnet::conv_transpose3d_fused", _backward_of_fused, setup_context=_setup_fused_context)
