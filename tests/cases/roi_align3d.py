from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests import references
from tests.cases import Case, Sample, rand, randn
from volnet import ops


def regions(count: int, batch: int, size: tuple[int, int, int], seed: int = 0) -> Tensor:
    """[K, 7]: boxes of up to the size of the volume, some of which reach beyond its border."""
    extent = torch.tensor(size, dtype=torch.float64)
    start = (1.2 * rand(count, 3, seed=seed) - 0.3) * extent
    side = rand(count, 3, seed=seed + 1) * extent
    images = (batch * rand(count, 1, seed=seed + 2)).floor()
    return torch.cat([images, start, start + side], dim=1)


def sample(
    name: str, batch: int, channels: int, size: tuple[int, int, int], boxes: int | Tensor, **arguments: Any
) -> Sample:
    x = randn(batch, channels, *size, seed=len(name))
    if isinstance(boxes, int):
        boxes = regions(boxes, batch, size, seed=len(name))
    return Sample(name, (x, boxes), {"output_size": (2, 3, 2), **arguments})


def samples() -> list[Sample]:
    whole = torch.tensor([[0.0, 0, 0, 0, 5, 6, 7], [0, -9, -9, -9, 20, 20, 20]]).double()
    outside = torch.tensor(
        [[0.0, 30, 0, 0, 40, 5, 5], [0, 0, -9, 0, 5, -3, 5], [0, 0, 0, 0, 5, 5, 5]]
    ).double()
    points = torch.tensor([[0.0, 2, 3, 4, 2, 3, 4], [0, 2.5, 3.5, 4.5, 2.5, 5, 4.5]]).double()
    edges = torch.tensor([[0.0, -0.5, -1, 0, 5, 6, 7.5], [0, -1.5, 6, 7, 5.5, 7, 8]]).double()
    return [
        sample("adaptive", 2, 3, (5, 6, 7), 4),
        sample("no_boxes", 2, 3, (5, 6, 7), 0),
        sample("no_batch", 0, 3, (5, 6, 7), 0),
        sample("no_channels", 1, 0, (5, 6, 7), 2),
        sample("one_voxel", 1, 1, (1, 1, 1), 3, output_size=(1, 1, 1)),
        *(sample(f"channels_{c}", 1, c, (4, 5, 6), 3, sampling_ratio=2) for c in (1, 15, 16, 17, 33)),
        sample("not_aligned", 2, 2, (5, 6, 7), 5, aligned=False),
        sample("not_aligned_one_sample", 2, 2, (5, 6, 7), 5, aligned=False, sampling_ratio=1),
        sample("scaled", 1, 2, (5, 6, 7), 4 * regions(4, 1, (5, 6, 7)), spatial_scale=0.25, sampling_ratio=3),
        sample("whole", 1, 2, (5, 6, 7), whole, output_size=(5, 6, 7)),
        sample("outside", 1, 2, (5, 6, 7), outside, sampling_ratio=2),
        sample("points", 1, 2, (5, 6, 7), points, sampling_ratio=2),
        sample("points_adaptive", 1, 2, (5, 6, 7), points),
        sample("points_not_aligned", 1, 2, (5, 6, 7), points, aligned=False),
        sample("edges", 1, 2, (5, 6, 7), edges, sampling_ratio=2),
        sample("more_bins_than_voxels", 1, 2, (3, 2, 3), 3, output_size=(5, 4, 7)),
        sample("wide", 1, 2, (3, 4, 80), 2, output_size=(1, 2, 3), sampling_ratio=4),
        sample("sparse", 1, 20, (12, 12, 40), 3, output_size=(1, 2, 2), sampling_ratio=1),
    ]


CASES = [
    Case(
        "roi_align3d",
        ops.roi_align3d,
        references.roi_align3d,
        samples,
        # Averages of up to some hundred values that cancel; in float64 the reference rounds the positions
        # of its samples, up to 80 voxels.
        tolerance=64,
        differentiable=(0,),
        volumes=(0,),
    )
]
