from __future__ import annotations

import torch

from tests.cases import Case, Sample, randn
from volnet import ops


def sample(name, images, channels, *space):
    return Sample(name, tuple(randn(images, c, *space, seed=i) for i, c in enumerate(channels)))


def samples():
    return [
        sample("small", 2, (2, 3, 1), 3, 4, 5),
        sample("one_voxel", 2, (2, 3, 4), 1, 1, 1),
        sample("no_images", 0, (2, 3, 4), 3, 4, 5),
        sample("no_channels", 2, (2, 0, 4), 3, 4, 5),
        sample("c16", 1, (16, 16, 16), 3, 4, 5),
        sample("c15", 2, (15, 17, 33), 3, 3, 7),
        sample("c80", 1, (80, 1, 3), 2, 3, 4),
        sample("many_pieces", 2, (3, 2, 4), 24, 32, 33),
    ]


CASES = [
    Case(
        name="cat",
        function=lambda *tensors: ops.cat(tensors, 1),
        reference=lambda *tensors: torch.cat(tensors, 1),
        samples=samples,
        tolerance=0,  # a copy
        gradient_tolerance=1,  # one of the gradient of the result, which is rounded
        differentiable=(0, 1, 2),
        volumes=(0, 1, 2),
    )
]
