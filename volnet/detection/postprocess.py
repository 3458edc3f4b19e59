"""From scored boxes to a short list without duplicates."""

from __future__ import annotations

from torch import Tensor

from volnet.ops import nms3d


def select_boxes(
    boxes: Tensor,
    scores: Tensor,
    *,
    score_threshold: float,
    iou_threshold: float = 0.1,
    max_boxes: int = 100,
) -> tuple[Tensor, Tensor]:
    """The best boxes, each suspect once.

    Greedy non-maximum suppression, then one more rule, because a small box inside a large one has a small
    IoU: a box whose centre lies inside a better one, or that has the centre of a better one inside it, goes.

    Args:
        boxes: float [K, 6] (d1, h1, w1, d2, h2, w2), voxels.
        scores: float [K].
        score_threshold: boxes that score less are dropped first.
        iou_threshold: overlap above which the worse of two boxes is dropped.
        max_boxes: at most so many are returned.

    Returns:
        boxes [n, 6] and scores [n], best first.

    Raises:
        ValueError: if `max_boxes` is not positive.

    Example:
        >>> import torch
        >>> boxes = torch.tensor([[0.0, 0, 0, 8, 8, 8], [2, 2, 2, 6, 6, 6], [20, 20, 20, 24, 24, 24]])
        >>> select_boxes(boxes, torch.tensor([0.75, 0.5, 0.25]), score_threshold=0.1)[1].tolist()
        [0.75, 0.25]
    """
    if max_boxes <= 0:
        raise ValueError(f"max_boxes must be positive, got {max_boxes}")
    above = scores >= score_threshold
    boxes, scores = boxes[above], scores[above]
    keep = nms3d(boxes, scores, iou_threshold)
    boxes, scores = boxes[keep], scores[keep]
    centers = (boxes[:, :3] + boxes[:, 3:]) / 2
    chosen: list[int] = []
    for i in range(len(boxes)):
        if len(chosen) == max_boxes:
            break
        better = boxes[chosen]
        inside = ((centers[i] >= better[:, :3]) & (centers[i] < better[:, 3:])).all(dim=1)
        around = ((centers[chosen] >= boxes[i, :3]) & (centers[chosen] < boxes[i, 3:])).all(dim=1)
        if not bool((inside | around).any()):
            chosen.append(i)
    return boxes[chosen], scores[chosen]
