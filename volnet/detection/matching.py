"""Which anchor is responsible for which nodule."""

from __future__ import annotations

import torch
from torch import Tensor

from volnet.ops import box_iou3d

NEGATIVE = -1
IGNORED = -2


def match_anchors(
    anchors: Tensor,
    boxes: Tensor,
    *,
    positive_iou: float = 0.35,
    negative_iou: float = 0.1,
) -> Tensor:
    """Assign every anchor a box, the background, or neither.

    An anchor takes the box that it overlaps most if that IoU is at least `positive_iou`, is background if all
    its IoUs are below `negative_iou`, and is ignored between the two. The best anchor (or anchors, on a tie)
    of every box takes that box in any case: a small nodule between two grid points still has a positive.

    Args:
        anchors: float [K, 6] (d1, h1, w1, d2, h2, w2), voxels.
        boxes: float [M, 6], likewise; M may be 0.
        positive_iou: at or above: positive.
        negative_iou: below: background.

    Returns:
        int64 [K]: the index of the box, `NEGATIVE` (-1) or `IGNORED` (-2).

    Raises:
        ValueError: if the thresholds are not 0 < negative_iou <= positive_iou <= 1.

    Example:
        >>> anchors = torch.tensor([[0.0, 0, 0, 4, 4, 4], [8, 8, 8, 12, 12, 12]])
        >>> match_anchors(anchors, torch.tensor([[0.0, 0, 0, 4, 4, 5]])).tolist()
        [0, -1]
    """
    if not 0 < negative_iou <= positive_iou <= 1:
        raise ValueError(
            "thresholds must satisfy 0 < negative_iou <= positive_iou <= 1, "
            f"got {negative_iou}, {positive_iou}"
        )
    labels = torch.full((len(anchors),), NEGATIVE, dtype=torch.int64)
    if len(boxes) == 0 or len(anchors) == 0:
        return labels
    iou = box_iou3d(anchors, boxes)  # [K, M]
    best_iou, best_box = iou.max(dim=1)
    labels[best_iou >= negative_iou] = IGNORED
    positive = best_iou >= positive_iou
    labels[positive] = best_box[positive]
    best_of_box = iou.max(dim=0).values
    anchor, box = torch.nonzero((iou == best_of_box) & (best_of_box > 0), as_tuple=True)
    labels[anchor] = box
    return labels
