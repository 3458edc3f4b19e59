from __future__ import annotations

import torch.nn.functional as F

from tests.cases import Case, Sample, randn
from volnet import ops


def sample(name, shape, **arguments):
    return Sample(name, (randn(*shape),), arguments)


def samples():
    overlapping = {"kernel_size": 3, "stride": 2, "padding": 1}
    return [
        sample("small", (1, 2, 4, 4, 6), kernel_size=2),
        sample("one_voxel", (1, 1, 1, 1, 1), kernel_size=1),
        sample("to_one_voxel", (2, 17, 2, 2, 2), kernel_size=2),
        sample("no_images", (0, 3, 4, 5, 6), kernel_size=2),
        sample("one_channel", (2, 1, 5, 6, 33), kernel_size=2),
        sample("c3", (1, 3, 5, 6, 65), kernel_size=3, stride=1, padding=1),
        sample("c15", (1, 15, 4, 5, 7), kernel_size=2, stride=1),
        sample("c16", (1, 16, 4, 6, 15), kernel_size=2, stride=2),
        sample("c17", (2, 17, 5, 4, 16), **overlapping),
        sample("c33_ceil", (1, 33, 4, 4, 18), ceil_mode=True, **overlapping),
        sample("c80", (1, 80, 3, 3, 4), kernel_size=2, stride=1),
        sample("without_padding", (1, 3, 5, 6, 37), count_include_pad=False, **overlapping),
        sample(
            "ceil_without_padding", (1, 3, 6, 6, 38), count_include_pad=False, ceil_mode=True, **overlapping
        ),
        sample(
            "stride_1_without_padding",
            (1, 2, 4, 4, 20),
            kernel_size=3,
            stride=1,
            padding=1,
            count_include_pad=False,
        ),
        sample("divisor", (1, 3, 5, 6, 37), divisor_override=5, **overlapping),
        sample("negative_divisor", (1, 3, 4, 4, 9), kernel_size=2, divisor_override=-3),
        sample("stride_3", (1, 3, 7, 8, 50), kernel_size=3),
        sample("stride_5_ceil", (1, 2, 6, 6, 68), kernel_size=2, stride=5, ceil_mode=True),
        sample("wide_windows", (1, 2, 4, 4, 60), kernel_size=(2, 2, 15), stride=(2, 2, 4), padding=(0, 0, 7)),
        sample("fewer_outputs_than_taps", (1, 2, 4, 4, 40), kernel_size=(2, 2, 36), stride=1),
        sample("gaps", (1, 2, 8, 8, 40), kernel_size=(1, 2, 1), stride=(3, 4, 2)),
        sample("anisotropic", (1, 4, 5, 9, 35), kernel_size=(1, 3, 2), stride=(1, 2, 1), padding=(0, 1, 1)),
        sample("whole_volume", (2, 5, 3, 4, 21), kernel_size=(3, 4, 21)),
        sample("deep", (1, 2, 33, 3, 4), kernel_size=(5, 1, 1), stride=1, padding=(2, 0, 0)),
        sample("unbatched", (4, 6, 6, 7), kernel_size=2, padding=1),
    ]


CASES = [
    Case(
        name="avg_pool3d",
        function=ops.avg_pool3d,
        reference=F.avg_pool3d,
        samples=samples,
        # Sums of up to 252 numbers that cancel: sqrt(252) roundings of partial sums, some of them larger than
        # the largest mean.
        tolerance=32.0,
        differentiable=(0,),
        volumes=(0,),
    )
]
