"""Overlaps of boxes, and non-maximum suppression."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from operators.work import HAS_MONAI, Shape, Work, nbytes, operator, partial, relative_l2, uniform
from volnet import ops


@operator("volnet", "torch", "monai")
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


@operator("volnet", "numpy", "monai")
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


def boxes_in(size: Sequence[int], count: int, sides: Sequence[int], seed: int = 0) -> Tensor:
    """``[count, 6]``: inside a volume of ``size``, with sides uniform between the two given."""
    extent = sides[0] + (sides[1] - sides[0]) * uniform(count, 3, seed=seed)
    start = uniform(count, 3, seed=seed + 1000) * (torch.tensor(size) - 1 - extent)
    return torch.cat([start, start + extent], dim=1)
