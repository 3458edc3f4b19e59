from __future__ import annotations

import torch.nn.functional as F

from tests.cases import Case, Sample, randn
from volnet import ops


def sample(name, shape, *output_size):
    return Sample(
        name, (randn(*shape),), {"output_size": output_size[0] if len(output_size) == 1 else output_size}
    )


def samples():
    return [
        sample("small", (1, 2, 4, 4, 6), 2),
        sample("one_voxel", (1, 1, 1, 1, 1), 1),
        sample("to_one_voxel", (2, 17, 7, 6, 21), 1),
        sample("no_images", (0, 3, 4, 5, 6), 2),
        sample("one_channel", (2, 1, 5, 6, 33), 2, 4, 16),
        sample("c3", (1, 3, 5, 6, 65), 3, None, 40),
        sample("c15", (1, 15, 4, 5, 7), None, 2, 3),
        sample("c16", (1, 16, 4, 6, 15), None, None, None),
        sample("c17_overlapping", (2, 17, 5, 4, 16), 3, 3, 7),
        sample("c33", (1, 33, 4, 4, 18), 2, 3, 18),
        sample("c80", (1, 80, 3, 3, 4), 2),
        sample("more_outputs_than_voxels", (1, 3, 2, 3, 20), 5, 4, 47),
        sample("wide_windows", (1, 2, 4, 4, 70), 2, 2, 3),
        sample("long_columns", (1, 2, 20, 15, 5), 1, 1, 3),
        sample("unbatched", (4, 6, 6, 7), 3, 6, 2),
    ]


CASES = [
    Case(
        name="adaptive_avg_pool3d",
        function=ops.adaptive_avg_pool3d,
        reference=F.adaptive_avg_pool3d,
        samples=samples,
        # Sums of up to 882 numbers that cancel: sqrt(882) roundings of partial sums.
        tolerance=32.0,
        differentiable=(0,),
        volumes=(0,),
        kernels="avg_pool3d_",
    )
]
