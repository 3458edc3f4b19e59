from __future__ import annotations

import torch
from torch import Tensor

from tests import references
from tests.cases import Case, Sample, randn
from tests.cases.roi_align3d import regions
from volnet import ops


def sample(
    name: str,
    batch: int,
    channels: int,
    size: tuple[int, int, int],
    boxes: int | Tensor,
    pad_value: float = 0,
) -> Sample:
    if isinstance(boxes, int):
        boxes = regions(boxes, batch, size, seed=len(name))
    return Sample(name, (randn(batch, channels, *size), boxes.double()), {"pad_value": pad_value})


def samples() -> list[Sample]:
    halves = torch.tensor([[0.0, 0.5, 1.5, 2.5, 3.5, 4.5, 5.5], [0, -0.5, -1.5, -2.5, 3, 4, 5]])
    outside = torch.tensor([[0.0, 30, 0, 0, 33, 5, 5], [0, 0, -9, 0, 5, -3, 5], [0, -2, -2, -2, 9, 9, 9]])
    empty = torch.tensor([[0.0, 2, 3, 4, 2, 3, 4], [0, 2, 3, 4, 5, 3, 6], [0, 1, 1, 1, 3, 3, 3]])
    return [
        sample("plain", 2, 3, (5, 6, 7), 4, pad_value=-1.5),
        *(sample(f"channels_{c}", 1, c, (4, 5, 6), 3) for c in (1, 15, 16, 17, 33)),
        sample("no_channels", 1, 0, (5, 6, 7), 2),
        sample("one_voxel", 1, 2, (1, 1, 1), 3, pad_value=7),
        sample("halves", 1, 2, (5, 6, 7), halves),
        sample("outside", 1, 2, (5, 6, 7), outside, pad_value=2),
        sample("empty", 1, 2, (5, 6, 7), empty),
        sample("long_rows", 1, 2, (2, 3, 70), 2),
    ]


CASES = [
    Case(
        "roi_crop3d",
        ops.roi_crop3d,
        references.roi_crop3d,
        samples,
        tolerance=0,
        gradient_tolerance=2,  # sums of a few crops
        differentiable=(0,),
        volumes=(0,),
        kernels="sample_patches_bytes_",
        same_layout=False,  # crops are [C, d, h, w]
    )
]
