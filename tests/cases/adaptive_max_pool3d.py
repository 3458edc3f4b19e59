from __future__ import annotations

import torch.nn.functional as F

from tests.cases import Case
from tests.cases.adaptive_avg_pool3d import samples
from volnet import ops


def with_indices(x, **arguments):
    return ops.adaptive_max_pool3d(x, return_indices=True, **arguments)


def reference_with_indices(x, **arguments):
    return F.adaptive_max_pool3d(x, return_indices=True, **arguments)


CASES = [
    Case(
        name="adaptive_max_pool3d",
        function=ops.adaptive_max_pool3d,
        reference=F.adaptive_max_pool3d,
        samples=samples,
        tolerance=0.0,  # a maximum is one of the inputs
        gradient_tolerance=16.0,  # overlapping windows add gradients in another order than torch
        differentiable=(0,),
        volumes=(0,),
        kernels="max_pool3d_",
    ),
    Case(
        name="adaptive_max_pool3d_with_indices",
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
