"""Regions of interest and patches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from operators.boxes import boxes_in
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
from volnet import ops


@operator(*BOTH[:2], "torch grid_sample")
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


@operator(*BOTH[:2], "torch loop")
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


@operator("volnet", "numpy")
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


@operator("volnet", "numpy")
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
