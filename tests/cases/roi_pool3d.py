from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests import references
from tests.cases import Case, Sample, randn
from tests.cases.roi_align3d import regions
from volnet import ops


def sample(
    name: str, batch: int, channels: int, size: tuple[int, int, int], boxes: int | Tensor, **arguments: Any
) -> Sample:
    # Few different values, exact in every dtype: ties in nearly every bin.
    x = (8 * randn(batch, channels, *size, seed=len(name))).round() / 4
    if isinstance(boxes, int):
        boxes = regions(boxes, batch, size, seed=len(name))
    return Sample(name, (x, boxes), {"output_size": (2, 3, 2), **arguments})


def distinct(name: str, size: tuple[int, int, int], boxes: int) -> Sample:
    """Without ties, as finite differences need it."""
    x = torch.randperm(2 * size[0] * size[1] * size[2]).double().reshape(1, 2, *size)
    return Sample(name, (x, regions(boxes, 1, size)), {"output_size": (2, 3, 2)})


def samples() -> list[Sample]:
    halves = torch.tensor([[0.0, 0.5, 1.5, 2.5, 3.5, 4.5, 5.5], [0, -0.5, -1.5, -2.5, 3, 4, 5]]).double()
    outside = torch.tensor([[0.0, 30, 0, 0, 40, 5, 5], [0, 0, -9, 0, 5, -3, 5], [0, 0, 0, 0, 20, 20, 20]])
    points = torch.tensor([[0.0, 2, 3, 4, 2, 3, 4]]).double()
    return [
        sample("plain", 2, 3, (7, 8, 9), 5),
        sample("no_boxes", 2, 3, (5, 6, 7), 0),
        sample("no_batch", 0, 3, (5, 6, 7), 0),
        sample("no_channels", 1, 0, (5, 6, 7), 2),
        sample("one_voxel", 1, 1, (1, 1, 1), 3, output_size=(1, 1, 1)),
        *(sample(f"channels_{c}", 1, c, (6, 7, 8), 3) for c in (1, 15, 16, 17, 33)),
        sample("scaled", 1, 2, (7, 8, 9), 3 * regions(4, 1, (7, 8, 9)), spatial_scale=0.3),
        sample("halves", 1, 2, (7, 8, 9), halves),
        sample("outside", 1, 2, (7, 8, 9), outside.double()),
        sample("points", 1, 2, (7, 8, 9), points),
        sample("more_bins_than_voxels", 1, 2, (3, 2, 9), 3, output_size=(5, 4, 7)),
        sample("one_bin", 1, 2, (7, 8, 40), 2, output_size=(1, 1, 1)),
        distinct("distinct", (5, 6, 7), 3),
    ]


CASES = [
    Case(
        "roi_pool3d",
        ops.roi_pool3d,
        references.roi_pool3d,
        samples,
        tolerance=0,
        gradient_tolerance=4,  # sums of the gradients of a few bins that share a voxel
        differentiable=(0,),
        volumes=(0,),
    )
]
