from __future__ import annotations

import torch
from torch import Tensor

from tests import references
from tests.cases import Case, Sample, rand
from volnet import ops


def boxes_and_scores(count: int, extent: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Boxes with sides from 2 to 10 in a cube, and scores among which there are ties."""
    start = extent * rand(count, 3, seed=seed)
    size = 2 + 8 * rand(count, 3, seed=seed + 1)
    scores = (50 * rand(count, seed=seed + 2)).floor() / 64
    return torch.cat([start, start + size], dim=1), scores


def named(name: str, inputs: tuple[Tensor, ...], iou_threshold: float) -> Sample:
    return Sample(name, inputs, {"iou_threshold": iou_threshold})


def samples() -> list[Sample]:
    one_by_one = torch.tensor([[0.0, 0, 0, 4, 4, 4]]).repeat(7, 1).double()
    one_by_one[:, 5] += torch.arange(7)
    point = torch.tensor([[3.0, 3, 3, 3, 3, 3]]).double()
    nested = torch.tensor([[-(2.0**i)] * 3 + [2.0**i] * 3 for i in range(20)]).double()
    rods = torch.cat([torch.eye(3) * 40 + 1] * 12).double() + 3 * rand(36, 3)
    start = 20 * rand(36, 3, seed=1)
    return [
        named("thirty", boxes_and_scores(30, 12.0), 0.1),
        named("none", (torch.zeros(0, 6).double(), torch.zeros(0).double()), 0.5),
        named("one", boxes_and_scores(1, 1.0), 0.5),
        *(named(f"count_{n}", boxes_and_scores(n, 10.0, seed=n), 0.05) for n in (15, 16, 17, 33)),
        named("grid", boxes_and_scores(1500, 60.0), 0.2),
        named("flat_grid", (*boxes_and_scores(600, 60.0)[:1], torch.zeros(600).double()), 0.01),
        # Sides 4 to 10: the IoU of 6 and 8 is 3/4, that of 7 and 8 is 7/8.
        named("iou_at_three_quarters", (one_by_one, torch.arange(7).double()), 0.75),
        named("iou_at_seven_eighths", (one_by_one, -torch.arange(7).double()), 0.875),
        named("iou_at_half", (one_by_one[[0, 4]], torch.tensor([1.0, 1.0]).double()), 0.5),
        named("all_tied", (one_by_one, torch.ones(7).double()), 0.5),
        named("signed_zero_scores", (one_by_one[[0, 0]], torch.tensor([-0.0, 0.0]).double()), 0.5),
        named("points", (torch.cat([point, point, one_by_one]), torch.arange(9).double()), 0.0),
        named("all_points", (point.repeat(300, 1), torch.arange(300).double()), 0.0),
        named("threshold_zero", boxes_and_scores(60, 20.0, seed=5), 0.0),
        named("threshold_one", boxes_and_scores(60, 20.0, seed=6), 1.0),
        named("nested", (nested, -torch.arange(20).double()), 0.1),
        named("rods", (torch.cat([start, start + rods], 1), rand(36, seed=2)), 0.05),
        named("far_apart", (torch.cat([one_by_one, one_by_one + 2.0**20]), torch.ones(14).double()), 0.3),
    ]


def batched_samples() -> list[Sample]:
    boxes, scores = boxes_and_scores(400, 12.0)
    labels = (5 * rand(400, seed=3)).long()
    empty = torch.zeros(0).double()
    return [
        named("five_labels", (boxes, scores, labels), 0.1),
        named("none", (torch.zeros(0, 6).double(), empty, empty.long()), 0.5),
        named("one", (boxes[:1], scores[:1], labels[:1]), 0.5),
        named("one_label", (boxes, scores, torch.full_like(labels, -3)), 0.1),
        named("own_labels", (boxes[:40], scores[:40], torch.arange(40) - 2**62), 0.1),
        named("int32_labels", (boxes[:99], scores[:99], labels[:99].int()), 0.1),
    ]


CASES = [
    Case("nms3d", ops.nms3d, references.nms3d, samples, tolerance=0),
    Case(
        "batched_nms3d",
        ops.batched_nms3d,
        references.batched_nms3d,
        batched_samples,
        tolerance=0,
        kernels="nms3d_",
    ),
]
