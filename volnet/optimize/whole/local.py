"""Operators that need but some planes of their inputs for some planes of their result.

Every one says which planes [lo, hi) along D it needs of each volume it reads for the planes [a, b) of its
result, and computes these. The operator's own padding is at the ends of the volume only.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg
from torch.utils._pytree import tree_leaves

from volnet import ops
from volnet.ops._arguments import triple
from volnet.ops._epilogue import activate
from volnet.ops._pooling import output_size
from volnet.optimize.graph import argument, value
from volnet.optimize.norm_coefficients import apply_norm
from volnet.optimize.rules.layout import channels_last, with_strides_of
from volnet.optimize.whole.result import finish

__all__ = ["Convolution", "Local", "local", "shape_of"]

Get = Callable[[Any], Any]  # what a node whose value is there as a whole stands for; anything else as it is
Range = tuple[int, int]

ELEMENTWISE: tuple[Any, ...] = (
    *(ops.relu, ops.leaky_relu, ops.silu, ops.gelu, ops.prelu, ops.elu, ops.sigmoid, F.relu, F.leaky_relu),
    *(
        F.silu,
        F.gelu,
        F.elu,
        F.prelu,
        F.sigmoid,
        torch.relu,
        torch.sigmoid,
        torch.tanh,
        torch.prelu,
        torch.exp,
    ),
    *(F.hardtanh, F.hardswish, F.hardsigmoid, F.mish, F.softplus, torch.add, torch.sub, torch.mul, torch.div),
    *(torch.exp, torch.abs, torch.sqrt),
    *(operator.add, operator.sub, operator.mul, operator.truediv, operator.neg, torch.clamp),
    *("add", "sub", "mul", "div", "relu", "sigmoid", "tanh", "clamp", "float", "contiguous", "clone"),
    *(channels_last, with_strides_of, apply_norm),
)


def shape_of(node: Node) -> tuple[int, ...]:
    return tuple(int(n) for n in value(node).shape)


class Local:
    """What ``node`` [N, C, D, H, W] computes, plane by plane along D. This class is of those that need of
    every volume they read just the planes that they make."""

    def __init__(self, node: Node, sources: Sequence[Node]) -> None:
        self.node = node
        self.sources = tuple(sources)  # volumes of which planes are read; one may occur twice
        read = set(self.sources)
        self.whole = tuple(n for n in node.all_input_nodes if n not in read)
        self.shape = shape_of(node)
        self.dtype: torch.dtype = value(node).dtype

    @property
    def depth(self) -> int:
        return self.shape[2]

    @property
    def plane_bytes(self) -> int:
        n, c, _, h, w = self.shape
        return n * c * h * w * self.dtype.itemsize

    def needs(self, a: int, b: int) -> list[Range]:
        """Planes of each of ``sources``; none of them empty."""
        return [(a, b)] * len(self.sources)

    def run(self, a: int, b: int, planes: Sequence[Tensor], get: Get) -> Tensor:
        """The planes [a, b) from those that they need."""
        given = dict(zip(self.sources, planes, strict=True))
        args, kwargs = map_arg(
            (self.node.args, self.node.kwargs), lambda n: given[n] if n in given else get(n)
        )
        if self.node.op == "call_method":
            result = getattr(args[0], str(self.node.target))(*args[1:], **kwargs)
        else:
            result = self.node.target(*args, **kwargs)  # type: ignore[operator]
        return result

    def flop(self) -> float:
        """Of a plane."""
        return 0.0


class Convolution(Local):
    def __init__(self, node: Node) -> None:
        names = [n for n in ("input", "skip", "residual") if argument(node, n) is not None]
        super().__init__(node, [argument(node, n) for n in names])
        self.names = names
        self.weight_shape = shape_of(argument(node, "weight"))
        kernel = self.weight_shape[2:]
        self.stride = triple("conv3d", "stride", argument(node, "stride"))
        self.dilation = triple("conv3d", "dilation", argument(node, "dilation"))
        padding = argument(node, "padding")
        if padding == "same":
            total = [d * (k - 1) for d, k in zip(self.dilation, kernel, strict=True)]
            self.padding = [side for t in total for side in (t // 2, t - t // 2)]
        else:
            sides = [0] * 3 if padding == "valid" else triple("conv3d", "padding", padding)
            self.padding = [side for p in sides for side in (p, p)]
        self.reach = self.dilation[0] * (kernel[0] - 1) + 1
        self.input_depth = shape_of(self.sources[0])[2]

    def _span(self, a: int, b: int) -> Range:
        """Of the padded input, counted from the first plane of the input."""
        first = a * self.stride[0] - self.padding[0]
        return first, first + (b - a - 1) * self.stride[0] + self.reach

    def needs(self, a: int, b: int) -> list[Range]:
        lo, hi = self._span(a, b)
        span = (max(lo, 0), min(hi, self.input_depth))
        return [(a, b) if name == "residual" else span for name in self.names]

    def run(self, a: int, b: int, planes: Sequence[Tensor], get: Get) -> Tensor:
        return self._convolve(False, a, b, planes, get)[0]

    def with_statistics(
        self, a: int, b: int, planes: Sequence[Tensor], get: Get
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As :func:`volnet.ops.conv3d_with_statistics`, of these planes."""
        return self._convolve(True, a, b, planes, get)

    def _convolve(
        self, statistics: bool, a: int, b: int, planes: Sequence[Tensor], get: Get
    ) -> tuple[Tensor, Tensor, Tensor]:
        given = dict(zip(self.names, planes, strict=True))
        node, x, skip = self.node, given["input"], given.get("skip")
        lo, hi = self._span(a, b)
        padding = [max(-lo, 0), max(hi - self.input_depth, 0), *self.padding[2:]]

        def affine(name: str, volume: Tensor | None) -> Tensor | None:
            coefficient = get(argument(node, name))
            return None if coefficient is None or volume is None else coefficient.expand(volume.shape[:2])

        # The operator itself: ops.conv3d has the same padding on both sides.
        results: tuple[Tensor, Tensor, Tensor] = torch.ops.volnet.conv3d_fused(
            x,
            get(argument(node, "weight")),
            get(argument(node, "bias")),
            self.stride,
            padding,
            self.dilation,
            argument(node, "groups"),
            argument(node, "activation") or "none",
            float(argument(node, "negative_slope")),
            get(argument(node, "prelu_weight")),
            given.get("residual"),
            statistics,
            affine("input_scale", x),
            affine("input_shift", x),
            argument(node, "input_activation") or "none",
            skip,
            affine("skip_scale", skip),
            affine("skip_shift", skip),
            argument(node, "skip_activation") or "none",
            float(argument(node, "input_negative_slope")),
        )
        return results

    def flop(self) -> float:
        n, _, _, h, w = self.shape
        return 2.0 * n * h * w * math.prod(self.weight_shape)


class TransposedConvolution(Local):
    def __init__(self, node: Node) -> None:
        names = [n for n in ("input", "residual") if argument(node, n) is not None]
        super().__init__(node, [argument(node, n) for n in names])
        self.names = names
        op = "conv_transpose3d"
        self.weight_shape = shape_of(argument(node, "weight"))
        self.stride = triple(op, "stride", argument(node, "stride"))
        self.padding = triple(op, "padding", argument(node, "padding"))
        self.extra = triple(op, "output_padding", argument(node, "output_padding"))
        self.dilation = triple(op, "dilation", argument(node, "dilation"))
        self.reach = self.dilation[0] * (self.weight_shape[2] - 1) + 1
        self.input_shape = shape_of(self.sources[0])

    def needs(self, a: int, b: int) -> list[Range]:
        # Plane i reaches the planes [i * stride - padding, i * stride - padding + reach). Where the stride
        # leaves gaps, those in a gap are computed from the plane before it.
        stride, depth = self.stride[0], self.input_shape[2]
        first = min(-(-(a + self.padding[0] - self.reach + 1) // stride), (a + self.padding[0]) // stride)
        last = (b - 1 + self.padding[0]) // stride
        span = (min(max(first, 0), depth - 1), min(last, depth - 1) + 1)
        return [(a, b) if name == "residual" else span for name in self.names]

    def run(self, a: int, b: int, planes: Sequence[Tensor], get: Get) -> Tensor:
        given = dict(zip(self.names, planes, strict=True))
        node, x, residual = self.node, given["input"], given.get("residual")
        begin = self.needs(a, b)[0][0] * self.stride[0] - self.padding[0]
        end = begin + (x.shape[2] - 1) * self.stride[0] + self.reach
        after = (
            argument(node, "activation") or "none",
            float(argument(node, "negative_slope")),
            get(argument(node, "prelu_weight")),
        )
        exact = begin == a and end == b
        y: Tensor = torch.ops.volnet.conv_transpose3d_fused(
            x,
            get(argument(node, "weight")),
            get(argument(node, "bias")),
            self.stride,
            [0, *self.padding[1:]],
            [max(b - end, 0), *self.extra[1:]],
            self.dilation,
            argument(node, "groups"),
            *(after if exact or residual is None else ("none", 0.0, None)),
            residual if exact else None,
        )
        if exact:
            return y
        y = y.narrow(2, a - begin, b - a)
        return y if residual is None else activate(y + residual, *after)

    def flop(self) -> float:
        n, _, d, h, w = self.input_shape
        return 2.0 * n * d * h * w * math.prod(self.weight_shape) / self.depth


class Pool(Local):
    """Maximum or mean of windows."""

    def __init__(self, node: Node) -> None:
        super().__init__(node, [argument(node, "input")])
        kernel = argument(node, "kernel_size")
        stride = argument(node, "stride")
        self.kernel = triple("pool", "kernel_size", kernel)
        self.stride = triple("pool", "stride", kernel if stride is None else stride)
        self.padding = triple("pool", "padding", argument(node, "padding"))
        self.is_max = node.target is ops.max_pool3d
        self.dilation = triple("pool", "dilation", argument(node, "dilation")) if self.is_max else [1, 1, 1]
        self.input_depth = shape_of(self.sources[0])[2]
        self.reach = self.dilation[0] * (self.kernel[0] - 1) + 1

    def is_local(self) -> bool:
        """Not where a window reaches past the padding, or has another divisor at the ends."""
        node, window = self.node, (self.kernel, self.stride, self.padding, self.dilation)
        regular = self.depth == output_size(value(self.sources[0]), window, False)[2]
        return regular and (
            self.is_max
            or self.padding[0] == 0
            or argument(node, "count_include_pad")
            or argument(node, "divisor_override") is not None
        )

    def _span(self, a: int, b: int) -> Range:
        first = a * self.stride[0] - self.padding[0]
        return first, first + (b - a - 1) * self.stride[0] + self.reach

    def needs(self, a: int, b: int) -> list[Range]:
        lo, hi = self._span(a, b)
        return [(max(lo, 0), min(hi, self.input_depth))]

    def run(self, a: int, b: int, planes: Sequence[Tensor], get: Get) -> Tensor:
        lo, hi = self._span(a, b)
        before, after = max(-lo, 0), max(hi - self.input_depth, 0)
        (x,) = planes
        if before or after:
            border = -math.inf if self.is_max else 0.0
            x = torch.ops.volnet.pad(x, [0, 0, 0, 0, before, after], "constant", border)
        changed = {"input": x, "padding": (0, *self.padding[1:])}
        return self.node.target(**{**self.node.kwargs, **changed})  # type: ignore[operator]


class Interpolation(Local):
    """Along D from the planes on both sides, then along H and W by the operator."""

    def __init__(self, node: Node) -> None:
        super().__init__(node, [argument(node, "input")])
        self.linear = argument(node, "mode") == "trilinear"
        depth = shape_of(self.sources[0])[2]
        factors = argument(node, "scale_factor")
        recompute = argument(node, "recompute_scale_factor")
        align_corners = bool(argument(node, "align_corners"))
        if factors is not None:
            factors = (
                [float(f) for f in factors] if isinstance(factors, (tuple, list)) else [float(factors)] * 3
            )
        self.factors = None if factors is None or recompute else [1.0, *factors[1:]]
        # Where the operator looks: what it makes of the numbers of the planes.
        dtype = torch.float64 if self.linear else torch.float32
        ramp = torch.arange(depth, dtype=dtype).reshape(1, 1, -1, 1, 1).expand(1, 2, -1, 1, 1)
        places = torch.ops.volnet.interpolate(
            ramp.contiguous(memory_format=torch.channels_last_3d),
            [self.depth, 1, 1],
            argument(node, "mode"),
            align_corners,
            None if self.factors is None or factors is None else [factors[0], 1.0, 1.0],
        )[0, 0].flatten()
        self.first = places.floor().long()
        self.fraction = (places - self.first).float()
        self.second = (self.first + (self.fraction > 0)).clamp(max=depth - 1)
        self.same = torch.equal(places, torch.arange(self.depth, dtype=dtype))
        self.align_corners = align_corners

    def needs(self, a: int, b: int) -> list[Range]:
        return [(int(self.first[a]), int(self.second[b - 1]) + 1)]

    def run(self, a: int, b: int, planes: Sequence[Tensor], get: Get) -> Tensor:
        (x,) = planes
        if not self.same:
            first = self.first[a:b] - self.first[a]
            y = _planes(x, first)
            if self.linear:
                second = self.second[a:b] - self.first[a]
                weight = self.fraction[a:b].reshape(-1, 1, 1, 1)
                # In float32, so that bfloat16 is rounded once.
                y = torch.lerp(y.float(), _planes(x, second).float(), weight)
            x = y.permute(0, 4, 1, 2, 3)
        mode, size = argument(self.node, "mode"), [b - a, *self.shape[3:]]
        result: Tensor = torch.ops.volnet.interpolate(x, size, mode, self.align_corners, self.factors)
        return result.to(self.dtype)


def _planes(x: Tensor, index: Tensor) -> Tensor:
    """[N, planes, H, W, C], which is how channels_last_3d lies in memory."""
    return x.permute(0, 2, 3, 4, 1).index_select(1, index)


class Padding(Local):
    """Along D as well, with a constant or the planes at the ends."""

    def __init__(self, node: Node) -> None:
        super().__init__(node, [argument(node, "input")])
        pads = list(argument(node, "pad"))
        self.pads = [*pads, *[0] * (6 - len(pads))]
        self.input_depth = shape_of(self.sources[0])[2]

    def needs(self, a: int, b: int) -> list[Range]:
        lo, hi = (min(max(end - self.pads[4], 0), self.input_depth) for end in (a, b))
        if lo == hi:  # nothing but padding, which the operator makes from the plane beside it
            lo, hi = (lo, lo + 1) if lo < self.input_depth else (lo - 1, lo)
        return [(lo, hi)]

    def run(self, a: int, b: int, planes: Sequence[Tensor], get: Get) -> Tensor:
        ((lo, hi),) = self.needs(a, b)
        ends = [lo - (a - self.pads[4]), (b - self.pads[4]) - hi]
        mode, fill = argument(self.node, "mode"), float(argument(self.node, "value") or 0)
        before, after = ends
        x: Tensor = torch.ops.volnet.pad(
            planes[0], [*self.pads[:4], max(before, 0), max(after, 0)], mode, fill
        )
        # Nothing but padding: as many planes are left over as there is of the volume.
        return x.narrow(2, max(-before, 0), b - a)


def local(node: Node, is_volume: Callable[[Any], bool]) -> Local | None:
    """How ``node`` is computed plane by plane; None where it is not known to be possible. ``is_volume`` says
    of an argument whether it is [N, C, D, H, W]."""
    if not is_volume(node) or shape_of(node)[2] == 0:
        return None
    target = node.target
    if target is ops.conv3d:
        convolution = Convolution(node)
        return (
            convolution
            if convolution.padding[0] < convolution.reach and convolution.padding[1] < convolution.reach
            else None
        )
    if target is ops.conv_transpose3d:
        return TransposedConvolution(node)
    if target in (ops.max_pool3d, ops.avg_pool3d):
        pool = Pool(node)
        return pool if pool.is_local() else None
    if target is ops.interpolate:
        return Interpolation(node) if argument(node, "mode") != "area" else None
    if target is ops.pad:
        pads, mode = argument(node, "pad"), argument(node, "mode")
        if len(pads) > 6:  # of channels or images: a tensor whose axes are others
            return None
        if len(pads) < 6 or (pads[4], pads[5]) == (0, 0):
            return _planewise(node, is_volume)
        whole = mode == "replicate" and min(pads[4:]) < 0
        return Padding(node) if mode in ("constant", "replicate") and not whole else None
    if target is ops.batch_norm:
        return None if argument(node, "training") else _planewise(node, is_volume)
    if target is ops.instance_norm:
        return None if argument(node, "use_input_stats") else _planewise(node, is_volume)
    if target in (ops.cat, torch.cat):
        dim = argument(node, "dim") if target is ops.cat else None
        return _planewise(node, is_volume) if dim in (1, -4) else None
    if target is finish:
        return _planewise(node, is_volume)
    if target == "repeat":
        sizes = node.args[1] if isinstance(node.args[1], (tuple, list)) else node.args[1:]
        return _planewise(node, is_volume) if len(sizes) == 5 and sizes[2] == 1 else None
    return _planewise(node, is_volume) if target in ELEMENTWISE else None


def _planewise(node: Node, is_volume: Callable[[Any], bool]) -> Local | None:
    """Of volumes as deep as the result planes are read; others must be the same for all planes."""
    depth, sources = shape_of(node)[2], []
    for leaf in tree_leaves((node.args, node.kwargs)):
        if not isinstance(leaf, Node) or not isinstance(value(leaf), Tensor):
            continue
        shape = shape_of(leaf)
        if is_volume(leaf) and shape[2] == depth:
            sources.append(leaf)
        elif len(shape) >= 3 and shape[-3] != 1:
            return None
    return Local(node, list(dict.fromkeys(sources))) if sources else None
