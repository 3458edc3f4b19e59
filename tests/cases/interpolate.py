from __future__ import annotations

import torch.nn.functional as F

from tests.cases import Case, Sample, randn
from volnet import ops


def sample(name, shape, **arguments):
    return Sample(name, (randn(*shape),), arguments)


def samples():
    twice = {"scale_factor": 2, "mode": "trilinear"}
    corners = {"mode": "trilinear", "align_corners": True}
    return [
        sample("small", (1, 2, 3, 4, 6), size=(6, 8, 12), mode="trilinear"),
        sample("no_images", (0, 3, 4, 5, 6), scale_factor=2),
        sample("one_voxel", (1, 1, 1, 1, 1), size=1, mode="trilinear"),
        sample("from_one_voxel", (2, 1, 1, 1, 1), size=(2, 3, 4), mode="trilinear"),
        sample("to_one_voxel", (2, 17, 3, 2, 5), size=1, **corners),
        sample("nearest", (1, 3, 3, 4, 17), scale_factor=2),
        sample("nearest_c16", (1, 16, 3, 4, 5), size=(6, 4, 15)),
        sample("nearest_down", (1, 5, 7, 6, 70), size=(3, 4, 33)),
        sample("nearest_exact", (1, 5, 5, 4, 23), size=(11, 4, 40), mode="nearest-exact"),
        sample("nearest_exact_down", (1, 3, 9, 6, 90), size=(4, 5, 11), mode="nearest-exact"),
        sample("twice_c1", (2, 1, 3, 4, 33), **twice),
        sample("twice_c3", (1, 3, 3, 2, 20), **twice),
        sample("twice_c15", (1, 15, 3, 4, 5), **twice),
        sample("twice_c16", (1, 16, 2, 3, 9), **twice),
        sample("twice_c33", (2, 33, 2, 3, 4), **twice),
        sample("twice_c80", (1, 80, 2, 2, 3), **twice),
        sample("twice_corners", (1, 17, 4, 3, 18), scale_factor=2, **corners),
        sample("one_axis", (1, 4, 5, 4, 21), scale_factor=(1, 2, 1), mode="trilinear"),
        sample("factors", (1, 3, 5, 6, 19), scale_factor=(1.5, 2.5, 1.25), mode="trilinear"),
        sample(
            "recomputed",
            (1, 3, 5, 6, 19),
            scale_factor=(1.7, 2.5, 1.3),
            mode="trilinear",
            recompute_scale_factor=True,
        ),
        sample("down", (1, 4, 9, 8, 75), size=(4, 5, 17), mode="trilinear"),
        sample("down_a_little", (1, 2, 4, 5, 60), size=(3, 5, 40), **corners),
        sample("up_much", (1, 2, 2, 3, 4), size=(3, 4, 70), mode="trilinear"),
        sample("area", (1, 3, 6, 7, 50), size=(3, 2, 20), mode="area"),
        sample("area_c16", (1, 16, 5, 4, 7), scale_factor=0.5, mode="area"),
        sample("area_up", (1, 5, 2, 3, 9), size=(3, 5, 21), mode="area"),
        sample("area_of_all", (2, 3, 3, 4, 40), size=1, mode="area"),
    ]


CASES = [
    Case(
        name="interpolate",
        function=ops.interpolate,
        reference=F.interpolate,
        samples=samples,
        # Three products and sums, and weights from positions of up to 90 voxels, which are rounded to 45
        # epsilon in float32, as torch does it too.
        tolerance=64.0,
        differentiable=(0,),
        volumes=(0,),
        kernels="separable_",
    )
]
