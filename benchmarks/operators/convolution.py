"""Convolutions, their gradients, transposed convolutions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from operators.work import (
    BOTH,
    LAYOUTS,
    Shape,
    Work,
    integers,
    nbytes,
    operator,
    partial,
    random,
    relative_l2,
)
from volnet import _C, ops


@dataclass(frozen=True)
class Layer:
    """A convolution of benchmarks/shapes/conv3d.toml, with its tensors in plain layout."""

    dtype: torch.dtype
    groups: int
    kernel: list[int]
    stride: list[int]
    dilation: list[int]
    padding: list[int]
    space: list[int]  # of the output
    x: Tensor  # [1, C, D, H, W]
    weight: Tensor  # [K, C / groups, *kernel]
    bias: Tensor  # [K]

    @property
    def arguments(self) -> dict[str, Any]:
        return {n: getattr(self, n) for n in ("stride", "padding", "dilation", "groups")}

    @property
    def flops(self) -> float:
        return 2.0 * self.weight.numel() * math.prod(self.space)

    @property
    def winograd(self) -> float:
        """Multiplications of Winograd's algorithm over those of the direct one, with the tile of the plan:
        wino244 computes 2x4x4 outputs from 4x6x6 products, amx_winograd tiles of 1x2x2."""
        padding = [p for p in self.padding for _ in range(2)]
        geometry = (list(self.x.shape), list(self.weight.shape), self.stride, padding, self.dilation)
        dtype = str(self.dtype).removeprefix("torch.")
        plan = _C.conv3d_plans(*geometry, self.groups, dtype, torch.get_num_threads())[0]["name"]
        part = 1.0
        tile = "122" if plan == "amx_winograd" else plan.removeprefix("wino")
        if "wino" in plan:
            for kernel, n, m in zip(self.kernel, self.space, map(int, tile), strict=True):
                part *= (m + 2) * math.ceil(n / m) / (3 * n) if kernel > 1 else 1
        return part


def layer(shape: Shape) -> Layer:
    dtype = getattr(torch, shape.get("dtype", "float32"))
    cin, cout, groups = shape["in_channels"], shape["out_channels"], shape.get("groups", 1)
    kernel = shape.get("kernel_size", [3, 3, 3])
    stride, dilation = (
        v if isinstance(v, list) else [v] * 3 for v in (shape.get("stride", 1), shape.get("dilation", 1))
    )
    padding = [d * (k // 2) for d, k in zip(dilation, kernel, strict=True)]
    space = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, p, d, k, s in zip(shape["size"], padding, dilation, kernel, stride, strict=True)
    ]
    x = random(1, cin, *shape["size"]).to(dtype)
    terms = cin // groups * math.prod(kernel)
    weight = (random(cout, cin // groups, *kernel, seed=1) / math.sqrt(terms)).to(dtype)
    bias = random(cout, seed=2).to(dtype)
    return Layer(dtype, groups, kernel, stride, dilation, padding, space, x, weight, bias)


@operator(*BOTH, "torch prepacked")
def conv3d(shape: Shape) -> Work:
    at = layer(shape)
    cout, cin = at.weight.shape[:2]
    voxels = torch.stack([integers(0, n, 64) for n in at.space], dim=1)

    # A float64 convolution of the whole layer would take minutes and gigabytes: 64 of its voxels do.
    padded = F.pad(at.x, [p for p in reversed(at.padding) for _ in range(2)])
    axes = list(zip(at.kernel, at.stride, at.dilation, strict=True))
    windows = []
    for voxel in voxels.tolist():
        cut = [slice(v * s, v * s + d * (k - 1) + 1, d) for v, (k, s, d) in zip(voxel, axes, strict=True)]
        windows.append(padded[(0, slice(None), *cut)])
    expected = (
        torch.einsum(
            "vgcijk,gocijk->vgo",
            torch.stack(windows).double().reshape(64, at.groups, cin, *at.kernel),
            at.weight.double().reshape(at.groups, cout // at.groups, cin, *at.kernel),
        ).reshape(64, cout)
        + at.bias.double()
    )

    def error(y: Tensor) -> float:
        return relative_l2(y[0][:, voxels[:, 0], voxels[:, 1], voxels[:, 2]].T, expected)

    implementations = {}
    for layout, memory_format in LAYOUTS.items():
        inputs = [t.contiguous(memory_format=memory_format) for t in (at.x, at.weight)]
        for name, function in (("volnet", ops.conv3d), ("torch", F.conv3d)):
            implementations[f"{name} {layout}"] = partial(function, *inputs, at.bias, **at.arguments)
    # torch brings the weights into its own order at each call, unless it is given them in that order.
    if 4 * at.weight.numel() > at.x.numel() and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        implementations["torch prepacked"] = prepacked(at)
    outputs = cout * math.prod(at.space)
    return Work(
        implementations,
        error,
        tolerance=2e-5 if at.dtype == torch.float32 else 1e-2,
        flops=at.flops,
        winograd=at.winograd,
        bytes=float(nbytes(at.x, at.weight) + outputs * at.x.element_size()),
    )


def prepacked(at: Layer) -> Callable[[], Tensor]:
    """The convolution as torch.compile lays it down for frozen weights."""
    x = at.x.contiguous(memory_format=torch.channels_last_3d)
    geometry = (at.padding, at.stride, at.dilation, at.groups)
    weight = torch._C._nn.mkldnn_reorder_conv3d_weight(at.weight.to_mkldnn(), *geometry, list(x.shape))
    run = torch.ops.mkldnn._convolution_pointwise
    return partial(run, x, weight, at.bias, *geometry, "none", [], "")


@operator(*BOTH, shapes="conv3d")
@torch.inference_mode(False)
def conv3d_backward(shape: Shape) -> Work:
    """All gradients of a layer: of the bias, the weight, and of the input unless it is the image."""
    at = layer(shape)
    (cout, cin), image = at.weight.shape[:2], at.x.shape[1] == 1
    dy = random(1, cout, *at.space, seed=3).to(at.dtype)
    axes = list(zip(at.kernel, at.stride, at.dilation, at.padding, strict=True))

    # As for conv3d, 64 voxels of the input's gradient: each gathers the outputs that its value went into.
    voxels = torch.stack([integers(0, n, 64) for n in at.x.shape[2:]], dim=1)
    gathered = torch.zeros(64, cout, *at.kernel, dtype=torch.float64)
    for row, voxel in zip(gathered, voxels.tolist(), strict=True):
        for tap in np.ndindex(*at.kernel):
            steps = [divmod(v + p - t * d, s) for v, t, (_, s, d, p) in zip(voxel, tap, axes, strict=True)]
            if all(rest == 0 and 0 <= o < n for (o, rest), n in zip(steps, at.space, strict=True)):
                row[(slice(None), *tap)] = dy[(0, slice(None), *(o for o, _ in steps))]
    expected_dx = torch.einsum(
        "vgoijk,gocijk->vgc",
        gathered.reshape(64, at.groups, cout // at.groups, *at.kernel),
        at.weight.double().reshape(at.groups, cout // at.groups, cin, *at.kernel),
    ).flatten(1)

    # And all taps of two pairs of filter and channel of the weight's gradient.
    padded = F.pad(at.x, [p for p in reversed(at.padding) for _ in range(2)])
    pairs = [(0, 0), (cout - 1, cin - 1)]
    expected_dw = torch.zeros(2, *at.kernel, dtype=torch.float64)
    for dw, (k, c) in zip(expected_dw, pairs, strict=True):
        channel, outputs = padded[0, k // (cout // at.groups) * cin + c].double(), dy[0, k].double()
        for tap in np.ndindex(*at.kernel):
            cut = [
                slice(t * d, t * d + s * (n - 1) + 1, s)
                for t, n, (_, s, d, _) in zip(tap, at.space, axes, strict=True)
            ]
            dw[tap] = (channel[tuple(cut)] * outputs).sum()
    expected_db = dy.sum((0, 2, 3, 4), dtype=torch.float64)

    def error(gradients: Sequence[Tensor]) -> float:
        db, dw, *dx = gradients
        errors = [relative_l2(db, expected_db)]
        errors += [relative_l2(torch.stack([dw[pair] for pair in pairs]), expected_dw)]
        errors += [relative_l2(d[0][:, voxels[:, 0], voxels[:, 1], voxels[:, 2]].T, expected_dx) for d in dx]
        return max(errors)

    implementations = {}
    for layout, memory_format in LAYOUTS.items():
        x, weight, grad = (t.to(memory_format=memory_format, copy=True) for t in (at.x, at.weight, dy))
        bias = at.bias.clone()
        leaves = (bias, weight) if image else (bias, weight, x)
        for leaf in leaves:
            leaf.requires_grad_()
        for name, function in (("volnet", ops.conv3d), ("torch", F.conv3d)):
            with torch.enable_grad():
                y = function(x, weight, bias, **at.arguments)
            gradients = partial(torch.autograd.grad, y, leaves, grad, retain_graph=True)
            implementations[f"{name} {layout}"] = torch.inference_mode(False)(gradients)
    passes = 1 if image else 2
    return Work(
        implementations,
        error,
        tolerance=5e-5 if at.dtype == torch.float32 else 2e-2,
        flops=passes * at.flops,
        winograd=at.winograd,
        bytes=float(passes * (nbytes(at.x, dy) + nbytes(at.weight))),
    )


@operator(*BOTH)
def conv_transpose3d(shape: Shape) -> Work:
    dtype = getattr(torch, shape.get("dtype", "float32"))
    cin, cout, kernel, stride = (shape[n] for n in ("in_channels", "out_channels", "kernel_size", "stride"))
    padding, extra = shape.get("padding", 0), shape.get("output_padding", 0)
    x = random(1, cin, *shape["size"]).to(dtype)
    weight = (random(cin, cout, *kernel) / np.sqrt(cin * np.prod(kernel) / stride**3)).to(dtype)
    bias = random(cout).to(dtype)
    space = [(n - 1) * stride - 2 * padding + k + extra for n, k in zip(shape["size"], kernel, strict=True)]
    voxels = torch.stack([integers(0, n, 64) for n in space], dim=1)

    # As for conv3d, 64 voxels of the result: each gathers the inputs whose taps reach it.
    expected = bias.double().repeat(64, 1)
    for row, voxel in zip(expected, voxels.tolist(), strict=True):
        for tap in np.ndindex(*kernel):
            steps = [divmod(v + padding - t, stride) for v, t in zip(voxel, tap, strict=True)]
            if all(rest == 0 and 0 <= i < n for (i, rest), n in zip(steps, shape["size"], strict=True)):
                d, h, w = (i for i, _ in steps)
                row += x[0, :, d, h, w].double() @ weight[(slice(None), slice(None), *tap)].double()

    def error(y: Tensor) -> float:
        return relative_l2(y[0][:, voxels[:, 0], voxels[:, 1], voxels[:, 2]].T, expected)

    implementations = {}
    for layout, memory_format in LAYOUTS.items():
        inputs = [t.contiguous(memory_format=memory_format) for t in (x, weight)]
        for name, function in (("volnet", ops.conv_transpose3d), ("torch", F.conv_transpose3d)):
            implementations[f"{name} {layout}"] = partial(
                function, *inputs, bias, stride=stride, padding=padding, output_padding=extra
            )
    outputs = cout * int(np.prod(space))
    return Work(
        implementations,
        error,
        tolerance=2e-5 if dtype == torch.float32 else 1e-2,
        flops=2.0 * x.numel() * cout * int(np.prod(kernel)),
        bytes=float(nbytes(x, weight) + outputs * x.element_size()),
    )
