from __future__ import annotations

import torch.nn.functional as F

from tests.cases import Case, Sample, randn
from volnet import ops

SHAPES = {
    "small": (2, 3, 3, 4, 5),
    "one_voxel": (1, 4, 1, 1, 1),
    "one_channel": (2, 1, 3, 4, 5),
    "no_images": (0, 3, 4, 5, 6),
    "no_channels": (2, 0, 4, 5, 6),
    "no_voxels": (2, 3, 0, 5, 6),
    "c2": (2, 2, 5, 6, 7),
    "c8": (1, 8, 5, 6, 33),
    "c9": (1, 9, 4, 5, 7),
    "c15": (1, 15, 4, 5, 7),
    "c16": (2, 16, 3, 3, 4),
    "c17": (1, 17, 3, 3, 4),
    "c33": (2, 33, 4, 4, 18),
    "c300": (1, 300, 2, 3, 5),
    "many_pieces": (2, 6, 24, 32, 48),
}


def samples():
    return [
        *(Sample(name, (3 * randn(*shape),), {"dim": 1}) for name, shape in SHAPES.items()),
        # Powers of these would overflow, or vanish.
        Sample("offset", (1e3 + 3 * randn(1, 5, 4, 5, 6),), {"dim": 1}),
        Sample("far_apart", (60 * randn(1, 5, 4, 5, 6),), {"dim": 1}),
    ]


def other_axes():
    return [Sample(f"dim{dim}", (3 * randn(2, 3, 4, 5, 17),), {"dim": dim}) for dim in (0, 2, 3, -1)]


def case(name, samples, gradient_tolerance):
    return Case(
        name=name,
        kernels="softmax_",
        function=ops.softmax,
        reference=F.softmax,
        samples=samples,
        # A power good to a few units in the last place, and a quotient.
        tolerance=4,
        gradient_tolerance=gradient_tolerance,
        differentiable=(0,),
        volumes=(0,),
    )


# The gradient is what is left of a difference. That of the result grows slowly from voxel to voxel: along any
# axis but that of the channels there is hardly a difference.
CASES = [
    case("softmax", samples, gradient_tolerance=64),
    case("softmax_other_axes", other_axes, gradient_tolerance=4096),
]
