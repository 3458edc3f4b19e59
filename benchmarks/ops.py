"""Every operator side by side with its peers.

    python -m pytest benchmarks/ops.py --benchmark-json=ops.json            # all shapes of benchmarks/shapes
    python -m pytest benchmarks/ops.py -k "nms3d or max_pool3d"
    python -m pytest benchmarks/ops.py --quick --benchmark-disable          # tiny shapes, once, only checked

A case is an operator and a shape. All its implementations run in turn, round after round, in one process:
after a warm-up in which every answer is checked, five rounds or more. Each round also copies memory and
multiplies matrices, which gives the floor that the case is compared with. pytest-benchmark records every
implementation as a benchmark of its own, with the times of that interleaved run.
"""

from __future__ import annotations

import importlib.util
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from volnet import _C, isa, ops

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # comes with pytest there

LAYOUTS = {"plain": torch.contiguous_format, "channels_last": torch.channels_last_3d}
HAS_MONAI = importlib.util.find_spec("monai") is not None

Shape = dict[str, Any]  # one [[shape]] of a file in benchmarks/shapes


@dataclass(frozen=True)
class Work:
    """What a case runs. All implementations compute the same; the names of volnet's begin with volnet."""

    implementations: dict[str, Callable[[], Any]]
    error: Callable[[Any], float]  # of a result, against a reference that is none of the implementations
    tolerance: float
    flops: float = 0.0  # of the direct algorithm
    winograd: float = 1.0  # times as many where a kernel of volnet's is Winograd's
    bytes: float = 0.0  # to be read and written at least


# The operators


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
        wino244 computes 2x4x4 outputs from 4x6x6 products."""
        padding = [p for p in self.padding for _ in range(2)]
        geometry = (list(self.x.shape), list(self.weight.shape), self.stride, padding, self.dilation)
        dtype = str(self.dtype).removeprefix("torch.")
        plan = _C.conv3d_plans(*geometry, self.groups, dtype, torch.get_num_threads())[0]["name"]
        part = 1.0
        if plan.startswith("wino"):
            for kernel, n, m in zip(self.kernel, self.space, map(int, plan[4:]), strict=True):
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


def max_pool3d(shape: Shape) -> Work:
    return pooling(shape, ops.max_pool3d, F.max_pool3d, exact=True)


def avg_pool3d(shape: Shape) -> Work:
    return pooling(shape, ops.avg_pool3d, F.avg_pool3d, exact=False)


def pooling(shape: Shape, ours: Callable[..., Any], theirs: Callable[..., Any], exact: bool) -> Work:
    dtype = getattr(torch, shape.get("dtype", "float32"))
    window = {name: shape[name] for name in ("kernel_size", "stride", "padding") if name in shape}
    x = random(1, shape["channels"], *shape["size"]).to(dtype)
    expected = theirs(x.double(), **window)
    implementations = {}
    for layout, memory_format in LAYOUTS.items():
        y = x.contiguous(memory_format=memory_format)
        implementations[f"volnet {layout}"] = partial(ours, y, **window)
        implementations[f"torch {layout}"] = partial(theirs, y, **window)
    return Work(
        implementations,
        error=lambda y: relative_l2(y, expected),
        tolerance=0.0 if exact else {torch.float32: 1e-6, torch.bfloat16: 4e-3}[dtype],
        bytes=float(nbytes(x) + expected.numel() * x.element_size()),
    )


def box_iou3d(shape: Shape) -> Work:
    a = boxes_in([shape["extent"]] * 3, shape["first"], shape["sides"], seed=1)
    b = boxes_in([shape["extent"]] * 3, shape["second"], shape["sides"], seed=2)
    implementations = {"volnet": partial(ops.box_iou3d, a, b), "torch": partial(plain_iou, a, b)}
    if HAS_MONAI:
        from monai.data.box_utils import box_iou

        implementations["monai"] = partial(box_iou, a, b)
    expected = plain_iou(a.double(), b.double())
    return Work(
        implementations,
        error=lambda y: relative_l2(y, expected),
        tolerance=1e-5,
        flops=17.0 * len(a) * len(b),  # 3 min, 3 max, 3 differences, 3 clamps, 2 products, 2 sums, 1 division
        bytes=float(nbytes(a, b) + len(a) * len(b) * 4),
    )


def nms3d(shape: Shape) -> Work:
    boxes = boxes_in([shape["extent"]] * 3, shape["boxes"], shape["sides"])
    scores = uniform(shape["boxes"], seed=3)
    threshold = shape["iou_threshold"]
    implementations = {
        "volnet": partial(ops.nms3d, boxes, scores, threshold),
        "numpy": partial(greedy_nms, boxes, scores, threshold),
    }
    if HAS_MONAI:
        from monai.data.box_utils import non_max_suppression

        implementations["monai"] = partial(non_max_suppression, boxes, scores, threshold)
    expected = greedy_nms(boxes.double(), scores, threshold)

    def error(keep: Any) -> float:
        return len(set(np.asarray(keep).tolist()) ^ set(expected.tolist())) / max(len(expected), 1)

    # A pair whose IoU is the threshold but for rounding may fall either way in float32.
    return Work(implementations, error, tolerance=1e-3)


def roi_align3d(shape: Shape) -> Work:
    x = random(1, shape["channels"], *shape["size"])
    boxes = boxes_in(shape["size"], shape["boxes"], shape["sides"])
    bins, samples = shape["output_size"], shape["sampling_ratio"]

    def grid_sample(x: Tensor, boxes: Tensor) -> Tensor:
        """The same in torch's words: one grid of sample points for all boxes, then the mean of each bin."""
        steps = (torch.arange(bins * samples, dtype=x.dtype) + 0.5) / (bins * samples)
        sides = boxes[:, 3:] - boxes[:, :3]
        axes = boxes[:, :3, None] - 0.5 + sides[:, :, None] * steps  # [K, 3, bins * samples] voxel indices
        size = torch.tensor(x.shape[2:], dtype=x.dtype)
        d, h, w = (2 * axes / (size - 1)[:, None] - 1).unbind(1)
        grid = torch.stack(
            torch.broadcast_tensors(w[:, None, None, :], h[:, None, :, None], d[:, :, None, None]), dim=-1
        )
        n = bins * samples
        values = F.grid_sample(
            x, grid.reshape(1, -1, n, n, 3), "bilinear", padding_mode="border", align_corners=True
        )
        means = F.avg_pool3d(values, samples)[0].reshape(x.shape[1], len(boxes), bins, bins, bins)
        return means.transpose(0, 1).contiguous()

    implementations: dict[str, Callable[[], Any]] = {}
    for layout, memory_format in LAYOUTS.items():
        y = x.contiguous(memory_format=memory_format)
        implementations[f"volnet {layout}"] = partial(
            ops.roi_align3d, y, [boxes], bins, sampling_ratio=samples
        )
    implementations["torch grid_sample"] = partial(grid_sample, x, boxes)
    expected = grid_sample(x.double(), boxes.double())
    points = len(boxes) * (bins * samples) ** 3
    return Work(
        implementations,
        error=lambda y: relative_l2(y, expected),
        tolerance=1e-5,
        flops=16.0 * points * x.shape[1],  # eight products and sums a point
        bytes=float(nbytes(x) + expected.numel() * 4),
    )


def roi_pool3d(shape: Shape) -> Work:
    x = random(1, shape["channels"], *shape["size"])
    boxes = boxes_in(shape["size"], shape["boxes"], shape["sides"]).round()
    bins = shape["output_size"]

    def crop_and_pool(x: Tensor) -> Tensor:
        """Box by box in torch. As in the 2-D definition, both ends of a rounded box belong to it."""
        results = []
        for d1, h1, w1, d2, h2, w2 in boxes.int().tolist():
            crop = x[0, :, d1 : d2 + 1, h1 : h2 + 1, w1 : w2 + 1]
            results.append(F.adaptive_max_pool3d(crop, bins))
        return torch.stack(results)

    implementations: dict[str, Callable[[], Any]] = {}
    for layout, memory_format in LAYOUTS.items():
        y = x.contiguous(memory_format=memory_format)
        implementations[f"volnet {layout}"] = partial(ops.roi_pool3d, y, [boxes], bins)
    implementations["torch loop"] = partial(crop_and_pool, x)
    expected = crop_and_pool(x.double())
    return Work(
        implementations,
        error=lambda y: relative_l2(y, expected),
        tolerance=0.0,
        bytes=float(nbytes(x) + expected.numel() * 4),
    )


def roi_crop3d(shape: Shape) -> Work:
    volume = random(1, shape["channels"], *shape["size"])
    sides = torch.tensor([shape["sides"][0]] * 3)
    centers = torch.stack(
        [integers(0, n, shape["boxes"], seed=i) for i, n in enumerate(shape["size"])], dim=1
    )
    boxes = torch.cat([centers - sides // 2, centers - sides // 2 + sides], dim=1).float()
    slices = partial(numpy_patches, volume[0].numpy(), centers.numpy(), sides.tolist(), 0)
    expected = slices()
    read = sum(patch_overlap(c, sides.tolist(), shape["size"]) for c in centers.tolist())
    return Work(
        {"volnet": partial(ops.roi_crop3d, volume, [boxes]), "numpy": slices},
        error=lambda crops: max(
            float(np.abs(np.asarray(crop) - e).max()) for crop, e in zip(crops, expected, strict=True)
        ),
        tolerance=0.0,
        bytes=4.0 * (read * shape["channels"] + expected.size),
    )


def sample_patches(shape: Shape) -> Work:
    dtype = getattr(torch, shape["dtype"])
    volume = (1000 * random(*shape["volume"])).to(dtype)
    space, size = shape["volume"][-3:], shape["size"]
    centers = torch.stack([integers(0, n, shape["patches"], seed=i) for i, n in enumerate(space)], dim=1)
    slices = partial(numpy_patches, volume.numpy(), centers.numpy(), size, -1024)
    expected = torch.from_numpy(slices())
    channels = volume.numel() // int(np.prod(space))
    read = channels * sum(patch_overlap(c, size, space) for c in centers.tolist())
    return Work(
        {"volnet": partial(ops.sample_patches, volume, centers, size, pad_value=-1024), "numpy": slices},
        error=lambda patches: float(not torch.equal(torch.as_tensor(patches), expected)),
        tolerance=0.0,
        bytes=float((read + expected.numel()) * volume.element_size()),
    )


OPERATORS = (
    conv3d,
    conv3d_backward,
    conv_transpose3d,
    max_pool3d,
    avg_pool3d,
    box_iou3d,
    nms3d,
    roi_align3d,
    roi_pool3d,
    roi_crop3d,
    sample_patches,
)
SHAPES = {"conv3d_backward": "conv3d"}  # whose shapes are another operator's
BOTH = ("volnet plain", "volnet channels_last", "torch plain", "torch channels_last")
ROI = BOTH[:2]
IMPLEMENTATIONS = {
    "conv3d": (*BOTH, "torch prepacked"),
    "conv3d_backward": BOTH,
    "conv_transpose3d": BOTH,
    "max_pool3d": BOTH,
    "avg_pool3d": BOTH,
    "box_iou3d": ("volnet", "torch", "monai"),
    "nms3d": ("volnet", "numpy", "monai"),
    "roi_align3d": (*ROI, "torch grid_sample"),
    "roi_pool3d": (*ROI, "torch loop"),
    "roi_crop3d": ("volnet", "numpy"),
    "sample_patches": ("volnet", "numpy"),
}


# Inputs and plain versions


def partial(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Callable[[], Any]:
    return lambda: function(*args, **kwargs)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed))


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=generator(seed))


def integers(low: int, high: int, count: int, seed: int = 0) -> Tensor:
    return torch.randint(low, high, (count,), generator=generator(seed))


def boxes_in(size: Sequence[int], count: int, sides: Sequence[int], seed: int = 0) -> Tensor:
    """``[count, 6]``: inside a volume of ``size``, with sides uniform between the two given."""
    extent = sides[0] + (sides[1] - sides[0]) * uniform(count, 3, seed=seed)
    start = uniform(count, 3, seed=seed + 1000) * (torch.tensor(size) - 1 - extent)
    return torch.cat([start, start + extent], dim=1)


def plain_iou(a: Tensor, b: Tensor) -> Tensor:
    low = torch.maximum(a[:, None, :3], b[:, :3])
    high = torch.minimum(a[:, None, 3:], b[:, 3:])
    overlap = (high - low).clamp(min=0).prod(-1)
    volume_a, volume_b = (t[:, 3:] - t[:, :3] for t in (a, b))
    return overlap / (volume_a.prod(-1)[:, None] + volume_b.prod(-1) - overlap)


def greedy_nms(boxes: Tensor, scores: Tensor, threshold: float) -> np.ndarray:
    """The definition, one vector operation for each box that is kept."""
    low, high = boxes[:, :3].numpy(), boxes[:, 3:].numpy()
    volume = (high - low).prod(-1)
    left = np.argsort(-scores.numpy(), kind="stable")
    keep = []
    while left.size:
        best, left = left[0], left[1:]
        keep.append(best)
        sides = np.minimum(high[best], high[left]) - np.maximum(low[best], low[left])
        overlap = np.maximum(sides, 0).prod(-1)
        left = left[overlap <= threshold * (volume[best] + volume[left] - overlap)]
    return np.array(keep, dtype=np.int64)


def numpy_patches(volume: np.ndarray, centers: np.ndarray, size: Sequence[int], pad: float) -> np.ndarray:
    """``[P, (C,) *size]`` with slices: what one writes without an operator."""
    patches = np.full((len(centers), *volume.shape[:-3], *size), pad, dtype=volume.dtype)
    for patch, center in zip(patches, centers, strict=True):
        start = [int(c) - s // 2 for c, s in zip(center, size, strict=True)]
        source = [slice(max(a, 0), max(a + s, 0)) for a, s in zip(start, size, strict=True)]
        part = volume[(..., *source)]
        target = [slice(max(-a, 0), max(-a, 0) + n) for a, n in zip(start, part.shape[-3:], strict=True)]
        patch[(..., *target)] = part
    return patches


def patch_overlap(center: Sequence[int], size: Sequence[int], space: Sequence[int]) -> int:
    """How many voxels of the patch are inside the volume."""
    count = 1
    for c, s, n in zip(center, size, space, strict=True):
        count *= max(0, min(c - s // 2 + s, n) - max(c - s // 2, 0))
    return count


def nbytes(*tensors: Tensor) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def relative_l2(actual: Tensor, expected: Tensor) -> float:
    assert actual.shape == expected.shape, f"shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    return float((actual.double() - expected).norm() / expected.norm())


# The interleaved run


Kernels = tuple[tuple[str, str], ...]  # of convolutions, with their ISA levels


@dataclass(frozen=True, eq=False)
class Result:
    """Times are seconds, one a round; the same position in each list is the same round."""

    shape: Shape
    work: Work
    times: dict[str, list[float]]
    errors: dict[str, float]
    kernels: dict[str, Kernels]
    speed: dict[str, float]  # measured: bytes copied a second, FLOP/s of matrix products

    def best(self, names: Sequence[str]) -> str | None:
        ran = [name for name in names if self.times.get(name)]
        return min(ran, key=lambda name: statistics.median(self.times[name]), default=None)

    @property
    def volnet(self) -> str | None:
        return self.best([name for name in self.times if name.startswith("volnet")])

    @property
    def floor(self) -> dict[str, float]:
        """Seconds of the memory traffic and of the arithmetic, at the speeds measured. The arithmetic is that
        of the algorithms that ran; two of them, for the gradients of input and weight, share it evenly."""
        ran = self.kernels.get(self.volnet or "", ()) or (("", ""),)
        arithmetic = 0.0
        for name, level in ran:
            flops = self.work.flops / len(ran)
            if "wino" in name:
                flops *= self.work.winograd
            if level == "amx" and "f32" in name:
                flops *= 3  # a float32 is the sum of two bfloat16; the product of the low parts is left out
            half = level in ("amx", "avx512_bf16")
            arithmetic += flops / self.speed["bfloat16" if half else "float32"]
        return {"memory": self.work.bytes / self.speed["bandwidth"], "arithmetic": arithmetic}

    @property
    def peer(self) -> str | None:
        return self.best([name for name in self.times if not name.startswith("volnet")])

    def ratio(self, peer: str, ours: str) -> dict[str, float]:
        """How many times as long as ``ours`` the peer takes: the median over the rounds, and its spread."""
        ratios = [p / o for p, o in zip(self.times[peer], self.times[ours], strict=True)]
        return {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}


def measure(work: Work, shape: Shape, timed: bool) -> Result:
    """Checks every answer, and times all implementations in turn."""
    quick = bool(shape.get("quick"))
    errors, first, kernels = {}, {}, {}
    runs = dict(work.implementations)
    for name in work.implementations:
        calls = {kernel: count for kernel, _, count in isa.kernels()}
        try:
            start = time.perf_counter()
            answer = runs[name]()
            first[name] = time.perf_counter() - start
        except RuntimeError as reason:
            if name.startswith("volnet") or "not implemented" not in str(reason):
                raise
            del runs[name]  # torch has no such variant
        else:
            errors[name] = work.error(answer)
            kernels[name] = tuple(
                (kernel, level)
                for kernel, level, count in isa.kernels()
                if kernel.startswith("conv") and count > calls[kernel]
            )
            del answer
    work = replace(work, implementations={}, error=lambda _: 0.0)  # what holds memory
    if not timed:
        return Result(shape, work, {}, errors, kernels, {})

    runs |= {f"speed {name}": run for name, run in speed_runs(quick).items()}
    loops = {}
    for name, run in runs.items():
        if first.get(name, 0) < 1:  # a second warm-up, which tells how often to run in a round
            start = time.perf_counter()
            run()
            first[name] = time.perf_counter() - start
        loops[name] = max(1, int(2e-3 / first[name]))
    times: dict[str, list[float]] = {name: [] for name in runs}
    rounds = min(max(5, int(3 / sum(first.values()))), 5 if quick else 25)
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            for _ in range(loops[name]):
                run()
            times[name].append((time.perf_counter() - start) / loops[name])

    seconds = {name: statistics.median(times.pop(name)) for name in list(times) if name.startswith("speed")}
    speed = {name: 2 * MATMUL_SIZE[quick] ** 3 / seconds[f"speed {name}"] for name in ("float32", "bfloat16")}
    speed["bandwidth"] = 2 * COPY_BYTES[quick] / min(t for name, t in seconds.items() if "copy" in name)
    return Result(shape, work, times, errors, kernels, speed)


COPY_BYTES = {False: 1 << 28, True: 1 << 20}  # larger than most caches; quick or not
MATMUL_SIZE = {False: 1536, True: 64}


def speed_runs(quick: bool) -> dict[str, Callable[[], Any]]:
    """The machine's speed: matrix products, and two ways to copy memory that is mapped already, the faster of
    which counts."""
    source, target = (torch.ones(COPY_BYTES[quick], dtype=torch.uint8) for _ in range(2))
    a = torch.ones(MATMUL_SIZE[quick], MATMUL_SIZE[quick])
    half = a.bfloat16()
    threads = torch.get_num_threads()
    parts = [
        (s.numpy(), t.numpy()) for s, t in zip(source.chunk(threads), target.chunk(threads), strict=True)
    ]
    executor = ThreadPoolExecutor(threads)
    return {
        "copy by torch": partial(target.copy_, source),
        "copy by memcpy": lambda: list(executor.map(lambda part: np.copyto(part[1], part[0]), parts)),
        "float32": partial(torch.mm, a, a),
        "bfloat16": partial(torch.mm, half, half),
    }


_clock = 0.0


def interleaved_clock() -> float:
    """pytest-benchmark's timer. It stands still but for the durations that the interleaved run has measured,
    which the test lets pass one by one."""
    return _clock


def shapes(operator: str) -> list[Shape]:
    """What ``operator`` runs: the shapes of its file, and those that it runs in bfloat16 too."""
    file = Path(__file__).parent / "shapes" / f"{SHAPES.get(operator, operator)}.toml"
    shapes: list[Shape] = tomllib.loads(file.read_text(encoding="utf-8"))["shape"]
    if operator == "conv3d_backward":
        return [
            shape | {"group": f"{shape['group']}, both gradients"}
            for shape in shapes
            if "backward" in shape.get("also", [])
        ]
    half = [
        shape
        | {"name": f"{shape['name']}, bf16", "dtype": "bfloat16", "group": f"{shape['group']}, bfloat16"}
        for shape in shapes
        if "bfloat16" in shape.get("also", [])
    ]
    return shapes + half


def cases() -> list[Any]:
    result = []
    for operator in OPERATORS:
        name = operator.__name__
        for shape in shapes(name):
            for implementation in IMPLEMENTATIONS[name]:
                marks = [pytest.mark.quick] if shape.get("quick") else []
                values = (operator, shape, implementation)
                result.append(
                    pytest.param(*values, id=f"{name}: {shape['name']}: {implementation}", marks=marks)
                )
    return result


@pytest.mark.parametrize(("operator", "shape", "implementation"), cases())
@pytest.mark.benchmark(timer=interleaved_clock)
def test_operator(
    operator: Callable[[Shape], Work],
    shape: Shape,
    implementation: str,
    benchmark: Any,
    results: dict[tuple[str, str], Result],
) -> None:
    key = (operator.__name__, shape["name"])
    if key not in results:
        with torch.inference_mode():
            results[key] = measure(operator(shape), shape, benchmark.enabled)
    result = results[key]
    if implementation not in result.errors:
        pytest.skip("not installed" if implementation == "monai" else "torch has no such variant")
    assert result.errors[implementation] <= result.work.tolerance

    times = result.times.get(implementation, [0.0])
    passing = iter(times)

    def let_one_round_pass() -> None:
        global _clock
        _clock += next(passing)

    benchmark.group = ": ".join(key)
    benchmark.pedantic(let_one_round_pass, rounds=len(times))
    benchmark.extra_info["error"] = result.errors[implementation]
    if not result.times:
        return
    benchmark.extra_info |= result.speed | result.floor
    benchmark.extra_info["kernels"] = [name for name, _ in result.kernels[implementation]]
    if result.volnet and implementation != result.volnet:
        benchmark.extra_info["times_as_long_as_volnet"] = result.ratio(implementation, result.volnet)
