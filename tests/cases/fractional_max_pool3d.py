from __future__ import annotations

import torch.nn.functional as F

from tests.cases import Case, Sample, rand, randn
from volnet import ops


def sample(name, shape, kernel_size, *output_size):
    """Windows start alike in every dtype: steps and random samples need few bits."""
    planes = shape[-5:-3] if len(shape) == 5 else (1, shape[0])
    sizes = output_size[0] if len(output_size) == 1 else output_size
    arguments = {"kernel_size": kernel_size, "output_size": sizes}
    return Sample(name, (randn(*shape), rand(*planes, 3).mul(2).floor().div(2)), arguments)


def samples():
    return [
        sample("small", (1, 2, 4, 4, 8), 2, 2, 2, 5),
        sample("to_one_voxel", (2, 17, 3, 3, 3), 2, 1),
        sample("no_images", (0, 3, 4, 5, 6), 2, 2),
        sample("c3", (1, 3, 8, 7, 41), 2, 5, 5, 27),
        sample("c15", (1, 15, 5, 5, 7), (2, 3, 2), 3, 2, 5),
        sample("c33", (1, 33, 5, 6, 15), 3, 2, 3, 9),
        sample("wide_windows", (1, 2, 7, 8, 70), (3, 4, 20), 3, 2, 26),
        sample("unbatched", (4, 7, 6, 8), 2, 5, 3, 5),
    ]


def with_indices(x, random_samples, **arguments):
    return ops.fractional_max_pool3d(x, _random_samples=random_samples, return_indices=True, **arguments)


def reference_with_indices(x, random_samples, **arguments):
    return F.fractional_max_pool3d(x, _random_samples=random_samples, return_indices=True, **arguments)


def without_indices(x, random_samples, **arguments):
    return ops.fractional_max_pool3d(x, _random_samples=random_samples, **arguments)


def reference(x, random_samples, **arguments):
    return F.fractional_max_pool3d(x, _random_samples=random_samples, **arguments)


CASES = [
    Case(
        name="fractional_max_pool3d",
        function=without_indices,
        reference=reference,
        samples=samples,
        tolerance=0.0,  # a maximum is one of the inputs
        gradient_tolerance=16.0,  # overlapping windows add gradients in another order than torch
        differentiable=(0,),
        volumes=(0,),
        kernels="max_pool3d_",
    ),
    Case(
        name="fractional_max_pool3d_with_indices",
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
