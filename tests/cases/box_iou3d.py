from __future__ import annotations

import torch
from torch import Tensor

from tests import references
from tests.cases import Case, Sample, rand
from volnet import ops


def boxes(count: int, seed: int) -> Tensor:
    """Boxes with sides from 3 to 9 in a small cube: most pairs overlap."""
    start = 6 * rand(count, 3, seed=seed)
    return torch.cat([start, start + 3 + 6 * rand(count, 3, seed=seed + 1)], dim=1)


def samples() -> list[Sample]:
    counts = [(3, 4), (0, 0), (0, 5), (5, 0), (1, 1), (1, 15), (2, 16), (33, 17), (40, 3)]
    # More than finite differences are tried on: at ties and without volume there is no derivative to compare.
    grid = torch.cartesian_prod(*[torch.arange(5.0)] * 3).double()
    faces = torch.cat([grid, grid + 1], dim=1)  # touching faces: ties of every kind
    flat = torch.cat([grid, grid], dim=1)  # without volume
    return [
        *(Sample(f"{n}_by_{m}", (boxes(n, 10 + n), boxes(m, 50 + m))) for n, m in counts),
        Sample("apart", (boxes(3, 1), boxes(20, 2) + 100)),
        Sample("touching", (faces, faces)),
        Sample("without_volume", (flat, torch.cat([flat, faces]))),
    ]


CASES = [
    Case(
        "box_iou3d",
        ops.box_iou3d,
        references.box_iou3d,
        samples,
        tolerance=8,  # three differences, five products and a quotient round; the volumes' errors count twice
        gradient_tolerance=32,  # sums of up to 250 such terms of both signs
        differentiable=(0, 1),
    )
]
