from __future__ import annotations

from tests.cases import Case, Sample, randn
from tests.references import gaussian_filter3d
from volnet import ops


def sample(name, shape, **arguments):
    return Sample(name, (randn(*shape),), arguments)


def samples():
    return [
        sample("small", (1, 2, 3, 4, 6), sigma=1.0),
        sample("no_images", (0, 3, 4, 5, 6), sigma=1.0),
        sample("empty", (1, 3, 4, 0, 6), sigma=1.0),
        sample("one_voxel", (1, 1, 1, 1, 1), sigma=2.0, mode="mirror"),
        sample("c1", (2, 1, 5, 6, 41), sigma=(0.5, 1.5, 2.0)),
        sample("c3", (1, 3, 6, 5, 33), sigma=1.2, mode="mirror"),
        sample("c15", (1, 15, 4, 5, 7), sigma=0.8, mode="nearest"),
        sample("c16", (1, 16, 4, 6, 15), sigma=1.0, mode="wrap"),
        sample("c17", (2, 17, 5, 4, 9), sigma=1.0, mode="constant"),
        sample("c33", (1, 33, 4, 4, 6), sigma=1.0, mode="constant", cval=2.5),
        sample("c80", (1, 80, 3, 3, 4), sigma=0.7),
        sample("wider_than_the_volume", (1, 2, 3, 2, 20), sigma=4.0),
        sample("wraps_twice", (1, 2, 3, 2, 7), sigma=4.0, mode="wrap"),
        sample("mirrors_twice", (1, 2, 3, 2, 7), sigma=4.0, mode="mirror"),
        sample("one_axis", (1, 3, 4, 5, 30), sigma=(0, 0, 2)),
        sample("truncated", (1, 3, 4, 5, 30), sigma=2, truncate=1.5),
        sample("identity", (1, 5, 3, 4, 18), sigma=0),
        sample("unbatched", (4, 6, 6, 7), sigma=1.0),
    ]


CASES = [
    Case(
        name="gaussian_filter3d",
        function=ops.gaussian_filter3d,
        reference=gaussian_filter3d,
        samples=samples,
        # Smoothing cancels: the largest result is up to a tenth of the largest voxel, and cval is taken away
        # before and added after.
        tolerance=32.0,
        differentiable=(0,),
        volumes=(0,),
        kernels="separable_",
    )
]
