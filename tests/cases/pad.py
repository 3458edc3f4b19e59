from __future__ import annotations

import torch.nn.functional as F

from tests.cases import Case, Sample, randn
from volnet import ops

SHAPES = {
    "small": (2, 3, 3, 4, 5),
    "no_images": (0, 3, 4, 5, 6),
    "c15": (1, 15, 4, 5, 7),
    "c16": (2, 16, 3, 5, 17),
    "c17": (1, 17, 3, 3, 4),
    "c33": (2, 33, 4, 4, 18),
    "one_channel": (2, 1, 5, 6, 33),
    "many_pieces": (2, 6, 24, 32, 48),
    "unbatched": (4, 4, 6, 7),
}
PADS = {
    "one": (1,) * 6,
    "uneven": (2, 1, 0, 2, 1, 0),
    "crop": (-1, -2, 0, -1, -1, 0),
    "mixed": (2, -1, -1, 2, 1, -1),
}


def samples(**arguments):
    result = [
        Sample(name, (randn(*shape),), {"pad": PADS["one"], **arguments}) for name, shape in SHAPES.items()
    ]
    for name, pads in PADS.items():
        result.append(Sample(name, (randn(1, 3, 4, 5, 37),), {"pad": pads, **arguments}))
    result.append(Sample("most", (randn(1, 3, 3, 4, 5),), {"pad": (4, 4, 3, 3, 2, 2), **arguments}))
    return result


def constant_samples():
    return [
        *samples(value=0.5),
        Sample("one_axis", (randn(2, 3, 4, 5, 6),), {"pad": (1, 2)}),
        Sample("two_axes", (randn(2, 3, 4, 5, 6),), {"pad": (1, 2, 3, -1), "value": -1}),
        Sample("nothing", (randn(2, 3, 4, 5, 6),), {"pad": (0,) * 6}),
        Sample("all_gone", (randn(2, 3, 4, 5, 6),), {"pad": (-3, -3)}),
        Sample("no_voxels", (randn(2, 3, 4, 0, 6),), {"pad": (1,) * 6, "value": 2.0}),
        Sample("far", (randn(1, 2, 2, 2, 3),), {"pad": (70, 5, 3, 4, 5, 6)}),
    ]


def crops():
    sizes = {"start": (1, 0, 2), "size": (2, 3, 4)}
    return [
        Sample("small", (randn(2, 3, 3, 4, 6),), sizes),
        Sample("c17", (randn(1, 17, 5, 5, 40),), {"start": 1, "size": (3, 4, 33)}),
        Sample("nothing", (randn(2, 3, 3, 4, 6),), {"start": 1, "size": 0}),
        Sample("all", (randn(2, 3, 4, 4, 4),), {"start": 0, "size": 4}),
        Sample("unbatched", (randn(3, 3, 4, 6),), sizes),
    ]


def cropped(x, start, size):
    starts, sizes = ([n] * 3 if isinstance(n, int) else n for n in (start, size))
    return x[(..., *(slice(s, s + n) for s, n in zip(starts, sizes, strict=True)))]


def case(mode, gradient_tolerance=1, **others):
    return Case(
        name=f"pad_{mode}",
        kernels="pad_",
        function=ops.pad,
        reference=F.pad,
        tolerance=0,  # a copy
        gradient_tolerance=gradient_tolerance,
        differentiable=(0,),
        volumes=(0,),
        **{"samples": lambda: samples(mode=mode), **others},
    )


# The gradient of the result is rounded, and where those of several voxels meet they are summed.
CASES = [
    case("constant", samples=constant_samples),
    case("reflect", gradient_tolerance=4),
    case("replicate", gradient_tolerance=4),
    case("circular", gradient_tolerance=4),
    Case(
        name="crop3d",
        kernels="pad_",
        function=ops.crop3d,
        reference=cropped,
        samples=crops,
        tolerance=0,
        gradient_tolerance=1,
        differentiable=(0,),
        volumes=(0,),
    ),
]
