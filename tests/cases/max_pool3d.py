from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.cases import Case, Sample, randn
from volnet import ops


def sample(name, shape, **arguments):
    return Sample(name, (randn(*shape),), arguments)


def samples():
    ties = Sample("ties", (randn(1, 3, 6, 7, 37).round(),), {"kernel_size": 3, "stride": 2, "padding": 1})
    nan = randn(1, 3, 6, 7, 37)
    nan[nan > 0.8] = float("nan")
    infinite = torch.full((1, 2, 4, 5, 19), float("-inf"), dtype=torch.float64)
    return [
        sample("small", (1, 2, 4, 4, 6), kernel_size=2),
        sample("one_voxel", (1, 1, 1, 1, 1), kernel_size=1),
        sample("to_one_voxel", (2, 17, 2, 2, 2), kernel_size=2),
        sample("no_images", (0, 3, 4, 5, 6), kernel_size=2),
        sample("one_channel", (2, 1, 5, 6, 33), kernel_size=2),
        sample("c3", (1, 3, 5, 6, 65), kernel_size=3, stride=1, padding=1),
        sample("c15", (1, 15, 4, 5, 7), kernel_size=2, stride=1),
        sample("c16", (1, 16, 4, 6, 15), kernel_size=2, stride=2),
        sample("c17", (2, 17, 5, 4, 16), kernel_size=3, stride=2, padding=1),
        sample("c33", (1, 33, 4, 4, 17), kernel_size=3, stride=2, padding=1, ceil_mode=True),
        sample("c80", (1, 80, 3, 3, 4), kernel_size=2, stride=1),
        sample("stride_3", (1, 3, 7, 8, 50), kernel_size=3),
        sample("stride_5", (1, 2, 6, 6, 70), kernel_size=2, stride=5, ceil_mode=True),
        sample("gaps", (1, 2, 8, 8, 40), kernel_size=(1, 2, 1), stride=(3, 4, 2)),
        sample("anisotropic", (1, 4, 5, 9, 35), kernel_size=(1, 3, 2), stride=(1, 2, 1), padding=(0, 1, 1)),
        sample("dilated", (1, 3, 9, 8, 41), kernel_size=3, stride=2, padding=1, dilation=(2, 1, 3)),
        sample("dilated_ceil", (1, 3, 9, 8, 10), kernel_size=2, stride=3, dilation=(2, 3, 1), ceil_mode=True),
        sample("whole_volume", (2, 5, 3, 4, 21), kernel_size=(3, 4, 21)),
        sample("deep", (1, 2, 33, 3, 4), kernel_size=(5, 1, 1), stride=1, padding=(2, 0, 0)),
        sample("many_windows_share_a_voxel", (1, 19, 6, 6, 9), kernel_size=4, stride=1, padding=2),
        sample("unbatched", (4, 6, 6, 7), kernel_size=2, padding=1),
        ties,
        Sample("nan", (nan,), {"kernel_size": 3, "stride": 2, "padding": 1}),
        Sample("minus_infinity", (infinite,), {"kernel_size": 3, "stride": 2, "padding": 1}),
        Sample("minus_infinity_stride_1", (infinite,), {"kernel_size": 2, "stride": 1, "padding": 1}),
    ]


def with_indices(x, **arguments):
    return ops.max_pool3d(x, return_indices=True, **arguments)


def reference_with_indices(x, **arguments):
    return F.max_pool3d(x, return_indices=True, **arguments)


CASES = [
    Case(
        name="max_pool3d",
        function=ops.max_pool3d,
        reference=F.max_pool3d,
        samples=samples,
        tolerance=0.0,  # a maximum is one of the inputs
        # Overlapping windows add gradients in another order than torch, up to 27 of them.
        gradient_tolerance=16.0,
        differentiable=(0,),
        volumes=(0,),
    ),
    Case(
        name="max_pool3d_with_indices",
        function=with_indices,
        reference=reference_with_indices,
        samples=samples,
        tolerance=0.0,
        gradient_tolerance=16.0,
        differentiable=(0,),
        volumes=(0,),
        kernels="max_pool3d_",
    ),
]
