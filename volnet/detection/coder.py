"""Boxes as offsets from anchors, and back: what the box branch of a network is trained to say."""

from __future__ import annotations

import math

from torch import Tensor, cat

# Keeps exp() finite for an untrained network: no box is ever more than 64 times its anchor.
_MAX_LOG_SCALE = math.log(64.0)


def _centers_and_sizes(boxes: Tensor, name: str) -> tuple[Tensor, Tensor]:
    if boxes.ndim == 0 or boxes.shape[-1] != 6:
        raise ValueError(f"{name} must have shape [..., 6], got {list(boxes.shape)}")
    low, high = boxes[..., :3], boxes[..., 3:]
    return (low + high) / 2, high - low


def encode_boxes(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Offsets of boxes from their anchors.

    With centre c and size s of the box, c' and s' of the anchor: (c - c') / s' and log(s / s').

    Args:
        boxes: [..., 6] (d1, h1, w1, d2, h2, w2), voxels; sizes must be positive.
        anchors: [..., 6], likewise.

    Returns:
        [..., 6]: three centre offsets in anchor sizes, three logarithms of scale.

    Raises:
        ValueError: if either does not end in 6.

    Example:
        >>> import torch
        >>> encode_boxes(torch.tensor([2.0, 0, 0, 6, 4, 4]), torch.tensor([0.0, 0, 0, 4, 4, 4])).tolist()
        [0.5, 0.0, 0.0, 0.0, 0.0, 0.0]
    """
    center, size = _centers_and_sizes(boxes, "boxes")
    anchor_center, anchor_size = _centers_and_sizes(anchors, "anchors")
    return cat([(center - anchor_center) / anchor_size, (size / anchor_size).log()], dim=-1)


def decode_boxes(deltas: Tensor, anchors: Tensor) -> Tensor:
    """The inverse of `encode_boxes`.

    Args:
        deltas: [..., 6], as `encode_boxes` returns them. Scales beyond 64 are held at 64.
        anchors: [..., 6] (d1, h1, w1, d2, h2, w2), voxels.

    Returns:
        [..., 6] boxes, voxels.

    Raises:
        ValueError: if either does not end in 6.

    Example:
        >>> import torch
        >>> decode_boxes(torch.tensor([0.5, 0, 0, 0, 0, 0]), torch.tensor([0.0, 0, 0, 4, 4, 4])).tolist()
        [2.0, 0.0, 0.0, 6.0, 4.0, 4.0]
    """
    if deltas.ndim == 0 or deltas.shape[-1] != 6:
        raise ValueError(f"deltas must have shape [..., 6], got {list(deltas.shape)}")
    anchor_center, anchor_size = _centers_and_sizes(anchors, "anchors")
    center = anchor_center + deltas[..., :3] * anchor_size
    size = anchor_size * deltas[..., 3:].clamp(-_MAX_LOG_SCALE, _MAX_LOG_SCALE).exp()
    return cat([center - size / 2, center + size / 2], dim=-1)
