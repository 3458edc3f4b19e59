from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.cases import Case, Sample, rand, randn
from volnet import ops


def sample(name, shape, size, reach=1.2, **arguments):
    """Places all over the volume and a little past it, off the kinks where voxels meet."""
    grid = (rand(shape[0], *size, 3, seed=1) * 2 - 1) * reach
    extent = torch.tensor(shape[:1:-1], dtype=torch.float64)
    aligned = arguments.setdefault("align_corners", False)
    scale = (extent - 1).clamp(min=1) / 2 if aligned else extent / 2
    at = (grid + 1) * scale - (0 if aligned else 0.5)
    # Eighths of a voxel, each with a sixteenth added: exact in bfloat16 where sides are powers of
    # two, and far from whole and half voxels.
    at = (at * 8).floor() / 8 + 1 / 16
    grid = (at + (0 if aligned else 0.5)) / scale - 1
    return Sample(name, (randn(*shape), grid), arguments)


def samples():
    return [
        sample("small", (1, 2, 4, 4, 8), (3, 4, 5)),
        sample("no_images", (0, 3, 4, 4, 4), (2, 2, 2)),
        sample("no_places", (1, 3, 4, 4, 4), (2, 0, 2)),
        sample("c1", (2, 1, 4, 8, 16), (5, 6, 7)),
        sample("c3", (1, 3, 4, 8, 8), (5, 6, 9), padding_mode="border"),
        sample("c5", (1, 5, 4, 8, 8), (5, 6, 9), padding_mode="reflection"),
        sample("c15", (1, 15, 4, 4, 4), (3, 4, 5)),
        sample("c16", (1, 16, 4, 4, 4), (3, 4, 5), padding_mode="border"),
        sample("c17", (2, 17, 4, 4, 4), (3, 4, 5), padding_mode="reflection"),
        sample("c33", (1, 33, 4, 4, 2), (3, 4, 5)),
        sample("c80", (1, 80, 2, 4, 4), (3, 2, 5)),
        sample("far_outside", (1, 2, 4, 4, 4), (3, 4, 5), reach=6.0),
        sample("far_border", (1, 2, 4, 4, 4), (3, 4, 5), reach=6.0, padding_mode="border"),
        sample("far_reflection", (1, 2, 4, 4, 4), (3, 4, 5), reach=6.0, padding_mode="reflection"),
        sample("nearest_c1", (1, 1, 4, 8, 8), (3, 6, 7), mode="nearest"),
        sample("nearest_c6", (1, 6, 4, 8, 8), (3, 6, 7), mode="nearest", padding_mode="reflection"),
        sample("aligned", (1, 3, 5, 9, 17), (3, 6, 7), align_corners=True),
        sample("aligned_border", (1, 6, 5, 9, 9), (3, 6, 7), align_corners=True, padding_mode="border"),
        sample(
            "aligned_reflection",
            (1, 2, 5, 9, 9),
            (3, 6, 7),
            reach=4.0,
            align_corners=True,
            padding_mode="reflection",
        ),
        sample("one_voxel", (1, 3, 1, 1, 1), (3, 2, 7)),
    ]


CASES = [
    Case(
        name="grid_sample",
        function=ops.grid_sample,
        reference=F.grid_sample,
        samples=samples,
        # Weights are rounded to a few epsilon of a voxel, and reflected places to as many of the places far
        # outside. The gradient of the grid sums differences of voxels over 80 channels, times the extent.
        tolerance=64.0,
        differentiable=(0, 1),
        volumes=(0,),
    )
]
