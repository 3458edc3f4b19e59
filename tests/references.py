"""The obvious version of every operator that torch has not: slow, in its input's dtype, differentiable."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter1d, map_coordinates
from torch import Tensor


def sample_patches(
    volume: Tensor, centers: Tensor, size: tuple[int, int, int], pad_value: float = 0
) -> Tensor:
    """``[P, (C,) *size]``: voxels of [D, H, W] or [C, D, H, W] around each centre, ``pad_value`` outside."""
    # A border of one padding voxel, to which everything further out is led.
    padded = F.pad(volume, (1,) * 6, value=pad_value)
    patches = []
    for center in centers.tolist():
        d, h, w = (
            torch.tensor([min(max(c - s // 2 + i, -1), n) + 1 for i in range(s)])
            for c, s, n in zip(center, size, volume.shape[-3:], strict=True)
        )
        patches.append(padded[..., d[:, None, None], h[:, None], w])
    if not patches:
        return volume.new_empty((0, *volume.shape[:-3], *size)) + 0 * volume.sum()
    return torch.stack(patches)


def gaussian_filter3d(
    input: Tensor, sigma: float | tuple, mode: str = "reflect", cval: float = 0.0, truncate: float = 4.0
) -> Tensor:
    """Axis by axis the matrix that SciPy's filter is, which its answers to unit vectors make up."""
    sigmas = sigma if isinstance(sigma, tuple) else (sigma,) * 3
    for axis, s in zip((-3, -2, -1), sigmas, strict=True):
        n = input.shape[axis]
        if s == 0 or n == 0:
            continue
        arguments = {"sigma": s, "mode": mode, "truncate": truncate}
        matrix = gaussian_filter1d(np.eye(n), axis=0, **arguments)
        outside = gaussian_filter1d(np.zeros(n), cval=cval, **arguments)
        rows = input.movedim(axis, -1) @ torch.from_numpy(matrix).to(input.dtype).T
        input = (rows + torch.from_numpy(outside).to(input.dtype)).movedim(-1, axis)
    return input


def resample(
    volume: Tensor,
    index_map: tuple,
    size: tuple[int, int, int],
    mode: str = "linear",
    pad_value: float = 0.0,
) -> Tensor:
    """SciPy's splines at every voxel's place; the volume ends half a voxel past the outer centres, and a
    millionth more."""
    matrix = np.array(index_map)
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in size], indexing="ij"))
    places = np.einsum("ij,jdhw->idhw", matrix[:, :3], grid) + matrix[:, 3, None, None, None]
    ends = np.array(volume.shape)[:, None, None, None] - 0.5
    inside = ((places >= -0.5 - 1e-6) & (places < ends + 1e-6)).all(axis=0)
    voxels = volume.double().numpy()
    if mode == "nearest":
        nearest = np.clip(
            np.floor(places + 0.5).astype(int), 0, np.array(volume.shape)[:, None, None, None] - 1
        )
        result = voxels[tuple(nearest)]
    elif mode == "linear":
        result = map_coordinates(voxels, places, order=1, mode="nearest")
    else:
        result = map_coordinates(voxels, places, order=3, mode="mirror")
    return torch.from_numpy(np.where(inside, result, pad_value))


def nms3d(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Greedy suppression as it is defined: one box after the other, against all those kept before it."""
    kept: list[int] = []
    order = sorted(range(len(scores)), key=lambda i: -float(scores[i]))  # stable: ties by lower index
    rows = boxes.tolist()
    for i in order:
        if all(box_iou(rows[i], rows[k]) <= iou_threshold for k in kept):
            kept.append(i)
    return torch.tensor(kept, dtype=torch.int64)


def batched_nms3d(boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float) -> Tensor:
    kept = []
    for label in labels.unique():
        of_label = (labels == label).nonzero()[:, 0]
        kept.append(of_label[nms3d(boxes[of_label], scores[of_label], iou_threshold)])
    chosen = torch.cat([*kept, torch.zeros(0, dtype=torch.int64)]).tolist()
    return torch.tensor(sorted(chosen, key=lambda i: (-float(scores[i]), i)), dtype=torch.int64)


def box_iou(a: list[float], b: list[float]) -> float:
    """IoU of two boxes (d1, h1, w1, d2, h2, w2); 0 where neither has a volume."""
    inter = volume_a = volume_b = 1.0
    for axis in range(3):
        inter *= max(min(a[3 + axis], b[3 + axis]) - max(a[axis], b[axis]), 0.0)
        volume_a *= a[3 + axis] - a[axis]
        volume_b *= b[3 + axis] - b[axis]
    union = volume_a + volume_b - inter
    return inter / union if union > 0 else 0.0


def box_iou3d(a: Tensor, b: Tensor) -> Tensor:
    """IoU of each pair; 0 where neither box has a volume."""
    a, b = a[:, None], b[None]
    side = torch.minimum(a[..., 3:], b[..., 3:]) - torch.maximum(a[..., :3], b[..., :3])
    inter = side.clamp(min=0).prod(-1)
    union = (a[..., 3:] - a[..., :3]).prod(-1) + (b[..., 3:] - b[..., :3]).prod(-1) - inter
    return torch.where(union > 0, inter / torch.where(union > 0, union, 1), 0)


def roi_align3d(
    x: Tensor,
    boxes: Tensor,
    output_size: tuple[int, int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = True,
) -> Tensor:
    """Every sample of every bin by itself, from the eight voxels around it. boxes: [K, 7]."""

    def samples(lo: float, hi: float, bins: int, extent: int) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
        shift = 0.5 if aligned else 0.0
        start = lo * spatial_scale - shift
        size = hi * spatial_scale - shift - start
        size = size if aligned else max(size, 1.0)
        count = sampling_ratio if sampling_ratio > 0 else math.ceil(size / bins)
        bin_size = size / bins
        p = torch.tensor(
            [start + b * bin_size + (i + 0.5) * bin_size / count for b in range(bins) for i in range(count)],
            dtype=torch.float64,
        )
        inside = (p >= -1) & (p <= extent)
        p = p.clamp(min=0)
        low = p.floor().long()
        last = low >= extent - 1
        low = torch.where(last, extent - 1, low)
        high = torch.where(last, extent - 1, low + 1)
        fraction = torch.where(last, 0.0, p - low)
        return low, high, fraction, inside, count

    results = []
    for image, *box in boxes.tolist():
        axes = [samples(box[a], box[a + 3], output_size[a], x.shape[2 + a]) for a in range(3)]
        total = torch.zeros(x.shape[1], *(len(axis[0]) for axis in axes), dtype=x.dtype)
        for corner in itertools.product((0, 1), repeat=3):
            index = [axis[side] for axis, side in zip(axes, corner, strict=True)]
            d, h, w = (
                torch.where(axis[3], axis[2] if side else 1 - axis[2], 0.0)
                for axis, side in zip(axes, corner, strict=True)
            )
            values = x[int(image)][:, index[0][:, None, None], index[1][:, None], index[2]]
            total = total + values * d[:, None, None] * h[:, None] * w
        counts = [axis[4] for axis in axes]
        split = [n for pair in zip(output_size, counts, strict=True) for n in pair]
        bins = total.reshape(x.shape[1], *split).sum((2, 4, 6)) / max(math.prod(counts), 1)
        results.append(bins)
    return torch.stack(results) if results else x.new_zeros(0, x.shape[1], *output_size) + 0 * x.sum()


def roi_align2d(
    x: list[list[float]],
    box: tuple[float, float, float, float],
    output_size: tuple[int, int],
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> list[list[float]]:
    """The published 2-D definition for one channel and one box (y1, x1, y2, x2), number by number."""
    height, width = len(x), len(x[0])

    def bilinear(py: float, px: float) -> float:
        if py < -1.0 or py > height or px < -1.0 or px > width:
            return 0.0
        py, px = max(py, 0.0), max(px, 0.0)
        y_low, x_low = int(py), int(px)
        if y_low >= height - 1:
            y_high = y_low = height - 1
            py = float(y_low)
        else:
            y_high = y_low + 1
        if x_low >= width - 1:
            x_high = x_low = width - 1
            px = float(x_low)
        else:
            x_high = x_low + 1
        ly, lx = py - y_low, px - x_low
        hy, hx = 1.0 - ly, 1.0 - lx
        return (
            hy * hx * x[y_low][x_low]
            + hy * lx * x[y_low][x_high]
            + ly * hx * x[y_high][x_low]
            + ly * lx * x[y_high][x_high]
        )

    offset = 0.5 if aligned else 0.0
    start_y, start_x = box[0] * spatial_scale - offset, box[1] * spatial_scale - offset
    roi_height = box[2] * spatial_scale - offset - start_y
    roi_width = box[3] * spatial_scale - offset - start_x
    if not aligned:
        roi_height, roi_width = max(roi_height, 1.0), max(roi_width, 1.0)
    bins_y, bins_x = output_size
    bin_height, bin_width = roi_height / bins_y, roi_width / bins_x
    grid_y = sampling_ratio if sampling_ratio > 0 else math.ceil(roi_height / bins_y)
    grid_x = sampling_ratio if sampling_ratio > 0 else math.ceil(roi_width / bins_x)
    result = []
    for by in range(bins_y):
        row = []
        for bx in range(bins_x):
            total = 0.0
            for iy in range(grid_y):
                py = start_y + by * bin_height + (iy + 0.5) * bin_height / grid_y
                for ix in range(grid_x):
                    px = start_x + bx * bin_width + (ix + 0.5) * bin_width / grid_x
                    total += bilinear(py, px)
            row.append(total / max(grid_y * grid_x, 1))
        result.append(row)
    return result


def roi_pool3d(
    x: Tensor, boxes: Tensor, output_size: tuple[int, int, int], spatial_scale: float = 1.0
) -> Tensor:
    """The maximum of each bin by itself. boxes: [K, 7]."""

    def bins(lo: float, hi: float, count: int, extent: int) -> list[slice]:
        def nearest(value: float) -> int:
            return int(math.copysign(math.floor(abs(value) + 0.5), value))

        start = nearest(lo * spatial_scale)
        size = max(nearest(hi * spatial_scale) - start + 1, 1)
        edges = [
            (
                start + math.floor(Fraction(i * size, count)),
                start + math.ceil(Fraction((i + 1) * size, count)),
            )
            for i in range(count)
        ]
        return [slice(min(max(a, 0), extent), min(max(b, 0), extent)) for a, b in edges]

    results = []
    for image, *box in boxes.tolist():
        axes = [bins(box[a], box[a + 3], output_size[a], x.shape[2 + a]) for a in range(3)]
        values = []
        for d, h, w in itertools.product(*axes):
            voxels = x[int(image)][:, d, h, w].flatten(1)
            # gather, because torch's own maximum shares the gradient among equals
            empty = voxels.shape[1] == 0
            values.append(
                0 * x[int(image)].sum((1, 2, 3))
                if empty
                else voxels.gather(1, voxels.argmax(1, keepdim=True))[:, 0]
            )
        results.append(torch.stack(values, 1).reshape(x.shape[1], *output_size))
    return torch.stack(results) if results else x.new_zeros(0, x.shape[1], *output_size) + 0 * x.sum()


def roi_pool2d(
    x: list[list[float]],
    box: tuple[float, float, float, float],
    output_size: tuple[int, int],
    spatial_scale: float,
) -> list[list[float]]:
    """The published 2-D definition for one channel and one box (y1, x1, y2, x2), number by number."""
    height, width = len(x), len(x[0])
    y1, x1, y2, x2 = (int(math.copysign(math.floor(abs(v * spatial_scale) + 0.5), v)) for v in box)
    roi_height, roi_width = max(y2 - y1 + 1, 1), max(x2 - x1 + 1, 1)
    bins_y, bins_x = output_size
    result = []
    for by in range(bins_y):
        row = []
        for bx in range(bins_x):
            y_start = min(max(by * roi_height // bins_y + y1, 0), height)
            y_end = min(max(-(-(by + 1) * roi_height // bins_y) + y1, 0), height)
            x_start = min(max(bx * roi_width // bins_x + x1, 0), width)
            x_end = min(max(-(-(bx + 1) * roi_width // bins_x) + x1, 0), width)
            voxels = [x[i][j] for i in range(y_start, y_end) for j in range(x_start, x_end)]
            row.append(max(voxels) if voxels else 0.0)
        result.append(row)
    return result


def roi_crop3d(x: Tensor, boxes: Tensor, pad_value: float = 0) -> list[Tensor]:
    """Each box by indexing a volume with a border of one padding voxel. boxes: [K, 7]."""
    crops = []
    for image, *box in boxes.tolist():
        low = [math.floor(v + 0.5) for v in box]
        padded = F.pad(x[int(image)], (1,) * 6, value=pad_value)
        d, h, w = (
            torch.tensor([min(max(i, -1), n) + 1 for i in range(a, b)], dtype=torch.int64)
            for a, b, n in zip(low[:3], low[3:], x.shape[2:], strict=True)
        )
        crops.append(padded[:, d[:, None, None], h[:, None], w])
    return crops
