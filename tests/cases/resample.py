from __future__ import annotations

import torch

from tests.cases import Case, Sample, randn
from tests.references import resample
from volnet import ops


def sample(name, shape, index_map, size, **arguments):
    return Sample(name, (randn(*shape),), {"index_map": index_map, "size": size, **arguments})


def aligned(start, step):
    """Axis by axis start + step * o."""
    rows = []
    for axis, (t, s) in enumerate(zip(start, step, strict=True)):
        rows.append((*(s if axis == column else 0.0 for column in range(3)), t))
    return tuple(rows)


FINER = aligned((-0.25, 0.13, -0.31), (0.5, 0.8, 0.7))
COARSER = aligned((0.3, 0.4, 0.2), (1.7, 2.3, 2.9))
FLIPPED = aligned((5.0, 4.0, 39.5), (-1.0, 0.5, -1.3))
TURNED = ((0.0, 0.0, 0.9, 0.2), (-0.7, 0.0, 0.0, 4.3), (0.0, 1.1, 0.0, 0.1))
OBLIQUE = ((0.813, -0.307, 0.0211, 1.01703), (0.319, 0.907, -0.103, 0.52307), (-0.101, 0.149, 0.953, 2.01107))


def samples():
    return [
        sample("small", (3, 4, 5), FINER, (4, 5, 6)),
        sample("nothing", (3, 4, 5), FINER, (4, 0, 6)),
        sample("from_nothing", (3, 0, 5), FINER, (4, 5, 6), pad_value=-3.0),
        sample("finer", (6, 7, 40), FINER, (11, 8, 55)),
        sample("finer_cubic", (6, 7, 40), FINER, (11, 8, 55), mode="cubic"),
        sample("finer_nearest", (6, 7, 40), FINER, (11, 8, 55), mode="nearest"),
        sample("coarser", (9, 20, 70), COARSER, (5, 8, 24)),
        sample("coarser_cubic", (9, 20, 70), COARSER, (5, 8, 24), mode="cubic"),
        sample(
            "past_the_ends",
            (6, 7, 40),
            aligned((-2.0, -0.5, 3.0), (0.9, 1.0, 1.0)),
            (12, 9, 50),
            pad_value=7.0,
        ),
        sample("elsewhere", (3, 4, 5), aligned((50.0, 0.0, 0.0), (1.0, 1.0, 1.0)), (3, 4, 5), pad_value=7.0),
        sample("flipped", (6, 7, 40), FLIPPED, (6, 12, 33)),
        sample("flipped_cubic", (6, 7, 40), FLIPPED, (6, 12, 33), mode="cubic"),
        sample("turned", (6, 7, 40), TURNED, (7, 35, 8)),
        sample(
            "one_plane_cubic", (1, 2, 40), aligned((0.0, 0.2, 0.0), (1.0, 0.5, 0.6)), (1, 3, 60), mode="cubic"
        ),
        sample("oblique", (9, 11, 80), OBLIQUE, (8, 9, 90), pad_value=-2.0),
        sample("oblique_nearest", (9, 11, 80), OBLIQUE, (8, 9, 90), mode="nearest"),
        sample("oblique_cubic", (9, 11, 80), OBLIQUE, (8, 9, 90), mode="cubic"),
        sample("oblique_cubic_one_plane", (1, 11, 30), OBLIQUE, (3, 9, 40), mode="cubic"),
    ]


CASES = [
    Case(
        name="resample",
        function=ops.resample,
        reference=resample,
        samples=samples,
        # A spline's weights sum to 6 in magnitude over three axes, those below 1e-8 are left out, and places
        # are rounded to an epsilon of a voxel.
        tolerance=64.0,
        dtypes=(torch.float32,),
    )
]
