"""What the operators on regions of a batch of volumes share: torchvision's two ways of saying which boxes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from volnet.ops._arguments import check_boxes, check_tensor


def regions(op: str, x: Tensor, boxes: Tensor | Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The boxes of a call as [K, 6], and for each the index of its image in the batch, int64 [K].

    ``x`` is [N, C, D, H, W] with a list of N tensors [K_i, 6] or one [K, 7] with the index first, or
    [C, D, H, W] with one [K, 6].
    """
    if isinstance(boxes, Tensor):
        check_tensor(op, "boxes", boxes)
        columns = 7 if x.dim() == 5 else 6
        if boxes.dim() != 2 or boxes.shape[1] != columns:
            raise RuntimeError(
                f"{op}: boxes must be [K, {columns}] for an input of shape {tuple(x.shape)}"
                f"{' (or a list of [K_i, 6])' if columns == 7 else ''}, got shape {tuple(boxes.shape)}"
            )
        if columns == 6:
            return boxes, torch.zeros(boxes.shape[0], dtype=torch.int64, device=boxes.device)
        return boxes[:, 1:], boxes[:, 0].to(torch.int64)
    if not isinstance(boxes, (list, tuple)):
        raise TypeError(f"{op}: boxes must be a Tensor or a list of Tensors, got {type(boxes).__name__}")
    if x.dim() != 5 or len(boxes) != x.shape[0]:
        raise RuntimeError(
            f"{op}: a list of boxes must have one entry for each volume of the batch, got {len(boxes)} for "
            f"an input of shape {tuple(x.shape)}"
        )
    for i, of_image in enumerate(boxes):
        check_boxes(op, f"boxes[{i}]", of_image)
        if of_image.dtype != boxes[0].dtype:
            raise RuntimeError(
                f"{op}: boxes must have one dtype, got {boxes[0].dtype} and {of_image.dtype} in boxes[{i}]"
            )
    if not boxes:
        return torch.zeros(0, 6), torch.zeros(0, dtype=torch.int64)
    images = [torch.full((b.shape[0],), i, dtype=torch.int64, device=b.device) for i, b in enumerate(boxes)]
    return torch.cat(list(boxes)), torch.cat(images)
