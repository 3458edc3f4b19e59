"""Anchors: the cubes that a region proposal network scores, one set at every position of its output."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def anchor_boxes(
    feature_shape: Sequence[int],
    stride: int,
    sizes: Sequence[float],
) -> Tensor:
    """Boxes of all anchors of a feature map, in voxels of the network's input.

    The anchors of feature (i, j, k) are centred on the block of `stride`³ input voxels that it stands for.

    Args:
        feature_shape: (D, H, W) of the feature map.
        stride: input voxels per feature, along each axis.
        sizes: edge lengths in voxels; there is one cube per size and position.

    Returns:
        float32 [D * H * W * A, 6], (d1, h1, w1, d2, h2, w2), half-open, position-major: the A anchors of
        feature (0, 0, 0) come first.

    Raises:
        ValueError: if the shape is not three sizes, the stride not positive or a size not positive.

    Example:
        >>> anchor_boxes((1, 1, 2), 4, [4.0]).tolist()
        [[0.0, 0.0, 0.0, 4.0, 4.0, 4.0], [0.0, 0.0, 4.0, 4.0, 4.0, 8.0]]
    """
    if len(feature_shape) != 3:
        raise ValueError(f"feature_shape must be (D, H, W), got {tuple(feature_shape)}")
    if stride <= 0:
        raise ValueError(f"stride must be positive, got {stride}")
    if not sizes or min(sizes) <= 0:
        raise ValueError(f"sizes must be positive, got {list(sizes)}")
    axes = [(torch.arange(n, dtype=torch.float32) + 0.5) * stride for n in feature_shape]
    centers = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 1, 3)
    half = torch.tensor(sizes, dtype=torch.float32).reshape(1, -1, 1) / 2
    return torch.cat([centers - half, centers + half], dim=-1).reshape(-1, 6)
