"""Greedy non-maximum suppression of 3-D boxes."""

from __future__ import annotations

import torch
from torch import Tensor

import volnet._extension  # noqa: F401 - registers torch.ops.volnet
from volnet._errors import names_shortage
from volnet.ops._arguments import check_boxes, check_tensor

__all__ = ["batched_nms3d", "nms3d"]

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


@names_shortage
def nms3d(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """The boxes that greedy non-maximum suppression keeps.

    Boxes are visited by decreasing score, equal scores by increasing index; a box is dropped if its IoU with
    a box kept before it is greater than ``iou_threshold``. The IoU is ``inter / (a + b - inter)`` in float32
    (float64 for float64 boxes); that of two boxes without volume counts as 0. The result does not depend on
    the instruction set or the number of threads.

    Args:
        boxes: float32, float64 or bfloat16 [K, 6], (d1, h1, w1, d2, h2, w2) in voxels, half-open.
        scores: float32, float64 or bfloat16 [K].
        iou_threshold: from 0 to 1.

    Returns:
        int64 [n], indices into `boxes` by decreasing score.

    Raises:
        ValueError: `iou_threshold` is not from 0 to 1.
        RuntimeError: wrong shapes, dtypes or devices; a box that is inverted (d1 > d2, ...), NaN or infinite,
            a score that is NaN: the message names the row.

    >>> boxes = torch.tensor([[0.0, 0, 0, 4, 4, 4], [0, 0, 0, 4, 4, 5], [9, 9, 9, 12, 12, 12]])
    >>> nms3d(boxes, torch.tensor([0.5, 0.75, 0.25]), iou_threshold=0.2).tolist()
    [1, 2]
    """
    _check("nms3d", boxes, scores, iou_threshold)
    result: Tensor = torch.ops.volnet.nms3d(boxes, scores, iou_threshold)
    return result


@names_shortage
def batched_nms3d(boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float) -> Tensor:
    """:func:`nms3d` within each label: boxes of different labels never suppress each other.

    Args:
        boxes: float32, float64 or bfloat16 [K, 6], (d1, h1, w1, d2, h2, w2) in voxels, half-open.
        scores: float32, float64 or bfloat16 [K].
        labels: integers [K]: a class, or the scan of a batch.
        iou_threshold: from 0 to 1.

    Returns:
        int64 [n], indices into `boxes` by decreasing score.

    Raises:
        ValueError, RuntimeError: as :func:`nms3d`.

    >>> boxes = torch.tensor([[0.0, 0, 0, 4, 4, 4], [0, 0, 0, 4, 4, 5], [0, 0, 0, 4, 4, 6]])
    >>> labels = torch.tensor([0, 1, 0])
    >>> batched_nms3d(boxes, torch.tensor([0.5, 0.25, 0.75]), labels, iou_threshold=0.2).tolist()
    [2, 1]
    """
    _check("batched_nms3d", boxes, scores, iou_threshold)
    check_tensor("batched_nms3d", "labels", labels, _INTEGERS)
    _check_length("batched_nms3d", "labels", labels, boxes)
    result: Tensor = torch.ops.volnet.batched_nms3d(boxes, scores, labels.to(torch.int64), iou_threshold)
    return result


def _check(op: str, boxes: Tensor, scores: Tensor, iou_threshold: float) -> None:
    check_boxes(op, "boxes", boxes)
    check_tensor(op, "scores", scores)
    _check_length(op, "scores", scores, boxes)
    if not 0 <= iou_threshold <= 1:
        raise ValueError(f"{op}: iou_threshold must be from 0 to 1, got {iou_threshold}")


def _check_length(op: str, name: str, value: Tensor, boxes: Tensor) -> None:
    if value.dim() != 1 or value.shape[0] != boxes.shape[0]:
        raise RuntimeError(
            f"{op}: {name} must be [{boxes.shape[0]}], one for each box, got shape {tuple(value.shape)}"
        )


@torch.library.register_fake("volnet::nms3d")
def _(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    return boxes.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.int64)


@torch.library.register_fake("volnet::batched_nms3d")
def _(boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float) -> Tensor:
    return boxes.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.int64)
