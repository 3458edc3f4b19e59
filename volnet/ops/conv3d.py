"""3-D convolution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import volnet._extension  # noqa: F401 - registers torch.ops.volnet
from volnet._errors import names_shortage
from volnet.ops._arguments import batched, check_at_least, check_tensor, memory_format_of, triple
from volnet.ops._epilogue import (
    activate,
    activation_gradient,
    check_activation,
    check_prelu_weight,
    check_residual,
    check_slope,
    from_result,
    statistics_gradient,
    trains,
)
from volnet.ops._inputs import (
    check_affine,
    check_input_activation,
    check_skip,
    transform,
    transform_gradient,
)
from volnet.ops._precision import register_autograd

__all__ = ["conv3d", "conv3d_with_statistics"]


@names_shortage
def conv3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    activation: str | None = None,
    negative_slope: float = 0.01,
    prelu_weight: Tensor | None = None,
    residual: Tensor | None = None,
    input_scale: Tensor | None = None,
    input_shift: Tensor | None = None,
    input_activation: str | None = None,
    skip: Tensor | None = None,
    skip_scale: Tensor | None = None,
    skip_shift: Tensor | None = None,
    skip_activation: str | None = None,
    input_negative_slope: float = 0.01,
) -> Tensor:
    """Convolves a volume, as :func:`torch.nn.functional.conv3d` does, with what often comes before and
    after it.

    ``y[n, k, o] = activation(bias[k] + residual[n, k, o] + sum over c and t of weight[k, c, t] *
    x[n, c, o * stride - padding + t * dilation])``, where ``x = input_activation(input * input_scale +
    input_shift)``, the same of ``skip`` concatenated to it, and both padded with zeros.

    Args:
        input: [N, C, D, H, W] or [C, D, H, W]; float32, bfloat16 or float64.
        weight: [K, C / groups, kd, kh, kw], of the dtype of ``input``.
        bias: [K] or none.
        stride: step of the output, one number or one an axis.
        padding: zeros added on both sides, or ``"valid"`` (none), or ``"same"`` (as many as keep the size;
            needs ``stride=1``).
        dilation: distance between the taps of the kernel.
        groups: input and output channels are split into this many independent convolutions.
        activation: ``"relu"``, ``"leaky_relu"``, ``"prelu"``, ``"silu"``, ``"gelu"``, ``"gelu_tanh"`` or
            none. The gradient of the first two comes from the result. Where a gradient of the others may be
            asked for, the sum is kept as well, and the activation is a pass of its own.
        negative_slope: of ``"leaky_relu"``.
        prelu_weight: [1] or [K], of the dtype of ``input``, for ``"prelu"``.
        residual: like the result, added before the activation.
        input_scale, input_shift: [N, C], or [1, C] for all images, of float32 (float64 where ``input`` is):
            the norm of the layer before, applied while its result is loaded.
        input_activation: the activation of the layer before, one of those above but ``"prelu"``.
        skip: a second input [N, C2, D, H, W] of the dtype of ``input``, read as if it were concatenated to
            ``input`` over the channels: ``weight`` is [K, (C + C2) / groups, kd, kh, kw].
        skip_scale, skip_shift, skip_activation: of ``skip``, as those of ``input``.
        input_negative_slope: of ``"leaky_relu"`` as activation of ``input`` or ``skip``.

    Returns:
        [N, K, D', H', W'], channels_last_3d where ``input`` or ``weight`` is, else plain. bfloat16 is summed
        in float32 and rounded once, after the activation.

    Raises:
        RuntimeError: shapes, dtypes or devices do not fit, or the kernel is larger than the padded input.
        ValueError: ``padding`` or ``activation`` is another string.

    >>> x, w = torch.ones(1, 2, 4, 4, 4), torch.ones(3, 2, 3, 3, 3)
    >>> conv3d(x, w).shape, float(conv3d(x, w)[0, 0, 0, 0, 0])
    (torch.Size([1, 3, 2, 2, 2]), 54.0)
    >>> float(conv3d(x, -w, activation="relu", residual=torch.full((1, 3, 2, 2, 2), 60.0))[0, 0, 0, 0, 0])
    6.0
    """
    return _convolve(
        False,
        input,
        weight,
        bias,
        stride,
        padding,
        dilation,
        groups,
        activation=activation,
        negative_slope=negative_slope,
        prelu_weight=prelu_weight,
        residual=residual,
        input_scale=input_scale,
        input_shift=input_shift,
        input_activation=input_activation,
        skip=skip,
        skip_scale=skip_scale,
        skip_shift=skip_shift,
        skip_activation=skip_activation,
        input_negative_slope=input_negative_slope,
    )[0]


@names_shortage
def conv3d_with_statistics(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    **fused: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`conv3d`, and the mean and the variance that an instance, group or batch norm after it needs.

    They are gathered while the result is in the cache, are those of the rounded result, and do not suffer
    from a large offset that all its values share.

    Args:
        input, weight, bias, stride, padding, dilation, groups, fused: those of :func:`conv3d`.

    Returns:
        The result y; its mean over the voxels of each image and channel, [N, K] ([K] for an unbatched input);
        and its variance, the mean of the squared deviations. Mean and variance are float32, or float64 where
        ``input`` is.

    >>> x, w = torch.arange(8.0).reshape(1, 1, 2, 2, 2), torch.ones(1, 1, 1, 1, 1)
    >>> y, mean, variance = conv3d_with_statistics(x, w)
    >>> mean, variance
    (tensor([[3.5000]]), tensor([[5.2500]]))

    An instance norm and a ReLU then take no pass of their own:

    >>> scale = (variance + 1e-5).rsqrt()
    >>> conv3d(y, w, input_scale=scale, input_shift=-mean * scale, input_activation="relu").amax()
    tensor(1.5275)
    """
    y, mean, variance = _convolve(True, input, weight, bias, stride, padding, dilation, groups, **fused)
    return y, mean, variance


def _convolve(
    statistics: bool,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int | Sequence[int],
    padding: int | Sequence[int] | str,
    dilation: int | Sequence[int],
    groups: int,
    *,
    activation: str | None = None,
    negative_slope: float = 0.01,
    prelu_weight: Tensor | None = None,
    residual: Tensor | None = None,
    input_scale: Tensor | None = None,
    input_shift: Tensor | None = None,
    input_activation: str | None = None,
    skip: Tensor | None = None,
    skip_scale: Tensor | None = None,
    skip_shift: Tensor | None = None,
    skip_activation: str | None = None,
    input_negative_slope: float = 0.01,
) -> tuple[Tensor, ...]:
    """y, and with ``statistics`` its mean and its variance."""
    if torch.is_autocast_enabled("cpu"):
        input, weight = _autocast(input), _autocast(weight)
        bias = None if bias is None else _autocast(bias)
        prelu_weight = None if prelu_weight is None else _autocast(prelu_weight)
        residual = None if residual is None else _autocast(residual)
        skip = None if skip is None else _autocast(skip)
    volume, unbatched = batched("conv3d", "input", input)
    inputs = volume.shape[1]
    if skip is not None:
        check_skip("conv3d", skip, input)
        skip = skip.unsqueeze(0) if unbatched else skip
        inputs += skip.shape[1]
    check_tensor("conv3d", "weight", weight)
    if weight.dim() != 5:
        raise RuntimeError(f"conv3d: weight must be [K, C / groups, kd, kh, kw], got {tuple(weight.shape)}")
    if weight.dtype != input.dtype:
        raise RuntimeError(f"conv3d: input is {input.dtype} but weight is {weight.dtype}")
    if groups < 1:
        raise RuntimeError(f"conv3d: groups must be positive, got {groups}")
    filters, channels = weight.shape[:2]
    if inputs != channels * groups:
        both = "has" if skip is None else f"and skip of shape {tuple(skip.shape)} have"
        raise RuntimeError(
            f"conv3d: input of shape {tuple(input.shape)} {both} {inputs} channels, but weight of shape "
            f"{tuple(weight.shape)} with groups={groups} expects {channels * groups}"
        )
    if filters % groups != 0 or filters == 0:
        raise RuntimeError(f"conv3d: {filters} filters cannot be divided into groups={groups}")
    if bias is not None:
        check_tensor("conv3d", "bias", bias)
        if bias.shape != (filters,) or bias.dtype != input.dtype:
            raise RuntimeError(
                f"conv3d: bias must be [{filters}] of {input.dtype}, got {tuple(bias.shape)} of {bias.dtype}"
            )
    strides, dilations = triple("conv3d", "stride", stride), triple("conv3d", "dilation", dilation)
    check_at_least("conv3d", "stride", strides, 1)
    check_at_least("conv3d", "dilation", dilations, 1)
    kernel = list(weight.shape[2:])
    check_at_least("conv3d", "kernel size", kernel, 1)
    paddings = _padding(padding, kernel, strides, dilations)
    for axis in range(3):
        padded = volume.shape[2 + axis] + paddings[2 * axis] + paddings[2 * axis + 1]
        reach = dilations[axis] * (kernel[axis] - 1) + 1
        if padded < reach:
            raise RuntimeError(
                f"conv3d: a kernel of {reach} voxels ({kernel[axis]} taps, dilation {dilations[axis]}) "
                f"does not fit the padded input of {padded} on axis {'DHW'[axis]}; input {tuple(input.shape)}"
            )
    geometry = (strides, paddings, dilations, groups)
    act = check_activation("conv3d", "activation", activation)
    slope = check_slope("conv3d", "negative_slope", negative_slope)
    check_prelu_weight("conv3d", act, prelu_weight, filters, input.dtype)
    if residual is not None:
        shape = _output_shape(volume, weight, strides, paddings, dilations)
        check_residual("conv3d", residual, shape[1:] if unbatched else shape, input.dtype)
        residual = residual.unsqueeze(0) if unbatched else residual

    input_slope = check_slope("conv3d", "input_negative_slope", input_negative_slope)
    before_input = (
        check_affine("conv3d", "input_scale", input_scale, volume),
        check_affine("conv3d", "input_shift", input_shift, volume),
        check_input_activation("conv3d", "input_activation", input_activation),
    )
    if skip is None and (skip_scale, skip_shift, skip_activation) != (None, None, None):
        raise ValueError("conv3d: skip_scale, skip_shift and skip_activation need a skip")
    before_skip: tuple[Tensor | None, Tensor | None, str] = (None, None, "none")
    if skip is not None:
        before_skip = (
            check_affine("conv3d", "skip_scale", skip_scale, skip),
            check_affine("conv3d", "skip_shift", skip_shift, skip),
            check_input_activation("conv3d", "skip_activation", skip_activation),
        )
    before = (*before_input, skip, *before_skip, input_slope)

    results: tuple[Tensor, ...]
    nothing_before = input_scale is None and input_shift is None and input_activation is None and skip is None
    if nothing_before and act == "none" and residual is None and not statistics:
        results = (torch.ops.volnet.conv3d(volume, weight, bias, *geometry),)
    else:
        # Where a gradient needs what goes into the activation, that is kept rather than computed twice.
        apart = (
            not statistics
            and not from_result(act, slope)
            and trains(
                input,
                weight,
                bias,
                prelu_weight,
                residual,
                input_scale,
                input_shift,
                skip,
                skip_scale,
                skip_shift,
            )
        )
        after = ("none", 0.0, None) if apart else (act, slope, prelu_weight)
        results = torch.ops.volnet.conv3d_fused(
            volume, weight, bias, *geometry, *after, residual, statistics, *before
        )
        if apart:
            results = (activate(results[0], act, slope, prelu_weight),)
    return tuple(result.squeeze(0) for result in results) if unbatched else results


def _autocast(value: Tensor) -> Tensor:
    """Under autocast, float32 is computed in bfloat16, as torch's own convolution is."""
    return value.to(torch.bfloat16) if isinstance(value, Tensor) and value.dtype == torch.float32 else value


def _padding(
    padding: int | Sequence[int] | str, kernel: list[int], stride: list[int], dilation: list[int]
) -> list[int]:
    """[d begin, d end, h begin, h end, w begin, w end]."""
    if isinstance(padding, str):
        if padding == "valid":
            return [0] * 6
        if padding != "same":
            raise ValueError(
                f"conv3d: padding must be a number, three numbers, 'valid' or 'same', got {padding!r}"
            )
        if stride != [1, 1, 1]:
            raise RuntimeError(f"conv3d: padding='same' needs stride 1, got {tuple(stride)}")
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        return [side for t in total for side in (t // 2, t - t // 2)]
    values = triple("conv3d", "padding", padding)
    check_at_least("conv3d", "padding", values, 0)
    return [side for p in values for side in (p, p)]


def _output_shape(
    input: Tensor, weight: Tensor, stride: list[int], padding: list[int], dilation: list[int]
) -> list[int]:
    space = [
        (
            input.shape[2 + i]
            + padding[2 * i]
            + padding[2 * i + 1]
            - dilation[i] * (weight.shape[2 + i] - 1)
            - 1
        )
        // stride[i]
        + 1
        for i in range(3)
    ]
    return [input.shape[0], weight.shape[0], *space]


@torch.library.register_fake("volnet::conv3d")
def _(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    shape = _output_shape(input, weight, stride, padding, dilation)
    layouts = (memory_format_of(input), memory_format_of(weight))
    last = torch.channels_last_3d in layouts
    return input.new_empty(shape).to(memory_format=torch.channels_last_3d if last else layouts[0])


@torch.library.register_fake("volnet::conv3d_fused")
def _(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    activation: str,
    negative_slope: float,
    prelu_weight: Tensor | None,
    residual: Tensor | None,
    statistics: bool,
    input_scale: Tensor | None,
    input_shift: Tensor | None,
    input_activation: str,
    skip: Tensor | None,
    skip_scale: Tensor | None,
    skip_shift: Tensor | None,
    skip_activation: str,
    input_negative_slope: float,
) -> tuple[Tensor, Tensor, Tensor]:
    y = torch.ops.volnet.conv3d(input, weight, bias, stride, padding, dilation, groups)
    dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
    size = y.shape[:2] if statistics else [0]
    return y, y.new_empty(size, dtype=dtype), y.new_empty(size, dtype=dtype)


@torch.library.register_fake("volnet::_conv3d_backward_input")
def _(
    grad: Tensor,
    weight: Tensor,
    input_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    channels_last: bool,
) -> Tensor:
    layout = torch.channels_last_3d if channels_last else torch.contiguous_format
    return grad.new_empty(input_size).to(memory_format=layout)


@torch.library.register_fake("volnet::_conv3d_backward_weight")
def _(
    grad: Tensor,
    input: Tensor,
    weight_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> tuple[Tensor, Tensor]:
    dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
    return grad.new_empty(weight_size, dtype=dtype), grad.new_empty(weight_size[:1], dtype=dtype)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, weight, bias, ctx.stride, ctx.padding, ctx.dilation, ctx.groups = inputs
    ctx.has_bias = bias is not None
    needs_input, needs_weight = ctx.needs_input_grad[0], any(ctx.needs_input_grad[1:3])
    ctx.input_size, ctx.weight_size = list(input.shape), list(weight.shape)
    ctx.channels_last = memory_format_of(input) == torch.channels_last_3d
    ctx.save_for_backward(input if needs_weight else None, weight if needs_input else None)


@names_shortage
def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    input, weight = ctx.saved_tensors
    geometry = (ctx.stride, ctx.padding, ctx.dilation, ctx.groups)
    grad_input = grad_weight = grad_bias = None
    if input is not None:
        grad_weight, grad_bias = _weight_gradients(ctx, grad, input, ctx.weight_size)
        del input  # it may have been computed for this call alone
    if ctx.needs_input_grad[0]:
        grad_input = torch.ops.volnet._conv3d_backward_input(
            grad, weight, ctx.input_size, *geometry, ctx.channels_last
        )
    return grad_input, grad_weight, grad_bias, None, None, None, None


def _weight_gradients(ctx: Any, grad: Tensor, input: Tensor, size: list[int]) -> tuple[Tensor, Tensor | None]:
    """Of the weight and of the bias."""
    geometry = (ctx.stride, ctx.padding, ctx.dilation, ctx.groups)
    of_weight, of_bias = torch.ops.volnet._conv3d_backward_weight(grad, input, size, *geometry)
    return of_weight.to(input.dtype), of_bias.to(input.dtype) if ctx.has_bias else None


def _setup_fused_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _setup_context(ctx, inputs[:7], output[0])
    input, weight, bias, *_ = inputs
    ctx.activation, ctx.negative_slope, prelu_weight, residual, ctx.statistics, *before = inputs[7:]
    input_scale, input_shift, ctx.input_activation, *before_skip, ctx.input_slope = before
    skip, skip_scale, skip_shift, ctx.skip_activation = before_skip
    y, mean, _ = output
    from_y = from_result(ctx.activation, ctx.negative_slope)
    ctx.save_for_backward(
        *(input, input_scale, input_shift, skip, skip_scale, skip_shift, weight),
        *((None, None, None) if from_y else (bias, residual, prelu_weight)),
        y if (from_y and ctx.activation != "none") or ctx.statistics else None,
        mean if ctx.statistics else None,
    )


@names_shortage
def _backward_of_fused(
    ctx: Any, grad: Tensor, grad_mean: Tensor, grad_variance: Tensor
) -> tuple[Tensor | None, ...]:
    input, input_scale, input_shift, skip, skip_scale, skip_shift, weight, *after = ctx.saved_tensors
    bias, residual, prelu_weight, y, mean = after
    before_input = (input_scale, input_shift, ctx.input_activation)
    before_skip = (skip_scale, skip_shift, ctx.skip_activation)
    slope = ctx.input_slope
    if ctx.statistics:
        grad = statistics_gradient(grad, y, mean, grad_mean, grad_variance)
    value = y
    if not from_result(ctx.activation, ctx.negative_slope):
        geometry = (ctx.stride, ctx.padding, ctx.dilation, ctx.groups)
        before = (*before_input, skip, *before_skip, slope)
        value, _, _ = torch.ops.volnet.conv3d_fused(
            input, weight, bias, *geometry, "none", 0.0, None, residual, False, *before
        )
    grad, grad_prelu = activation_gradient(grad, ctx.activation, ctx.negative_slope, prelu_weight, value)

    needs = ctx.needs_input_grad
    needs_input, needs_weight = needs[0] or any(needs[12:18]), needs[1] or needs[2]
    grads_skip: tuple[Tensor | None, ...] = (None, None, None)
    if skip is None:
        grads_input, grad_weight, grad_bias = _gradients_of_part(
            ctx, grad, input, *before_input, weight, needs_input, needs_weight
        )
    elif ctx.groups == 1:
        # Each part by itself: neither their concatenation nor its gradient is ever in memory.
        part = weight.split((input.shape[1], skip.shape[1]), 1)
        grads_skip, of_skip, grad_bias = _gradients_of_part(
            ctx, grad, skip, *before_skip, part[1], needs_input, needs_weight
        )
        grads_input, of_input, _ = _gradients_of_part(
            ctx, grad, input, *before_input, part[0], needs_input, needs_weight
        )
        grad_weight = None if of_input is None or of_skip is None else torch.cat([of_input, of_skip], 1)
    else:
        channels = input.shape[1]
        whole = torch.cat([transform(input, *before_input, slope), transform(skip, *before_skip, slope)], 1)
        (of_whole, _, _), grad_weight, grad_bias = _gradients_of_part(
            ctx, grad, whole, None, None, "none", weight, needs_input, needs_weight
        )
        grads_input = (None, None, None)
        if of_whole is not None:
            grads_input = transform_gradient(of_whole[:, :channels], input, *before_input, slope)
            grads_skip = transform_gradient(of_whole[:, channels:], skip, *before_skip, slope)
    grads_after = (None, None, grad_prelu, grad if needs[10] else None, None)
    grads_before = (*grads_input[1:], None, *grads_skip, None, None)
    return grads_input[0], grad_weight, grad_bias, None, None, None, None, *grads_after, *grads_before


def _gradients_of_part(
    ctx: Any,
    grad: Tensor,
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    activation: str,
    weight: Tensor,
    needs_input: bool,
    needs_weight: bool,
) -> tuple[tuple[Tensor | None, ...], Tensor | None, Tensor | None]:
    """Of ``x``, its scale and shift; of ``weight``, that reads ``x``; and of the bias."""
    geometry = (ctx.stride, ctx.padding, ctx.dilation, ctx.groups)
    slope = ctx.input_slope
    grad_weight = grad_bias = None
    if needs_weight:
        read = transform(x, scale, shift, activation, slope)
        grad_weight, grad_bias = _weight_gradients(ctx, grad, read, list(weight.shape))
        del read
    if not needs_input:
        return (None, None, None), grad_weight, grad_bias
    of_transformed = torch.ops.volnet._conv3d_backward_input(
        grad, weight, list(x.shape), *geometry, ctx.channels_last
    )
    return transform_gradient(of_transformed, x, scale, shift, activation, slope), grad_weight, grad_bias


def _setup_input_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad, weight, _, ctx.stride, ctx.padding, ctx.dilation, ctx.groups, _ = inputs
    ctx.save_for_backward(grad, weight)


@names_shortage
def _backward_of_input(ctx: Any, twice: Tensor) -> tuple[Tensor | None, ...]:
    """The data gradient is linear in ``grad`` and in ``weight``: its gradients are convolutions again."""
    grad, weight = ctx.saved_tensors
    geometry = (ctx.stride, ctx.padding, ctx.dilation, ctx.groups)
    to_grad = torch.ops.volnet.conv3d(twice, weight, None, *geometry) if ctx.needs_input_grad[0] else None
    to_weight = None
    if ctx.needs_input_grad[1]:
        to_weight, _ = torch.ops.volnet._conv3d_backward_weight(grad, twice, list(weight.shape), *geometry)
        to_weight = to_weight.to(weight.dtype)
    return to_grad, to_weight, None, None, None, None, None, None


def _setup_weight_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    grad, input, _, ctx.stride, ctx.padding, ctx.dilation, ctx.groups = inputs
    ctx.save_for_backward(grad, input)


@names_shortage
def _backward_of_weight(ctx: Any, twice: Tensor, twice_bias: Tensor) -> tuple[Tensor | None, ...]:
    grad, input = ctx.saved_tensors
    geometry = (ctx.stride, ctx.padding, ctx.dilation, ctx.groups)
    twice, twice_bias = twice.to(input.dtype), twice_bias.to(input.dtype)
    to_grad = to_input = None
    if ctx.needs_input_grad[0]:
        to_grad = torch.ops.volnet.conv3d(input, twice, twice_bias, *geometry)
    if ctx.needs_input_grad[1]:
        layout = memory_format_of(input) == torch.channels_last_3d
        to_input = torch.ops.volnet._conv3d_backward_input(grad, twice, list(input.shape), *geometry, layout)
    return to_grad, to_input, None, None, None, None, None


register_autograd("volnet::conv3d", _backward, setup_context=_setup_context)
register_autograd("volnet::conv3d_fused", _backward_of_fused, setup_context=_setup_fused_context)
register_autograd("volnet::_conv3d_backward_input", _backward_of_input, setup_context=_setup_input_context)
register_autograd("volnet::_conv3d_backward_weight", _backward_of_weight, setup_context=_setup_weight_context)
