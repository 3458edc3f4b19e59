from __future__ import annotations

import torch.nn.functional as F

from tests.cases import Case, Sample, randn
from volnet import ops


def sample(name, shape, output_size=None, **window):
    """The maxima of a volume and their places; ``output_size`` where the window leaves that open."""
    y, indices = F.max_pool3d(randn(*shape), **window, return_indices=True)
    arguments = window if output_size is None else {**window, "output_size": output_size}
    return Sample(name, (y, indices), arguments)


def elsewhere(name, shape, output_size, **window):
    """Indices that no window holds, each once in a plane."""
    count, places = randn(*shape)[0, 0].numel(), output_size[0] * output_size[1] * output_size[2]
    planes = shape[0] * shape[1]
    order = randn(planes, places).argsort(1)[:, :count].reshape(shape)
    return Sample(name, (randn(*shape, seed=1), order), {**window, "output_size": output_size})


def samples():
    return [
        sample("small", (1, 2, 4, 4, 6), kernel_size=2),
        sample("one_voxel", (1, 1, 1, 1, 1), kernel_size=1),
        sample("from_one_voxel", (2, 17, 2, 2, 2), kernel_size=2),
        sample("no_images", (0, 3, 4, 5, 6), kernel_size=2),
        sample("one_channel", (2, 1, 5, 6, 33), (5, 6, 33), kernel_size=2),
        sample("c15", (1, 15, 4, 5, 7), (1, 15, 4, 5, 7), kernel_size=2),
        sample("c33", (1, 33, 4, 4, 17), (4, 4, 17), kernel_size=2),
        sample("gaps", (1, 2, 8, 8, 40), (8, 8, 40), kernel_size=1, stride=3),
        sample("padded", (1, 3, 7, 8, 10), (7, 8, 10), kernel_size=3, padding=1),
        # Windows that overlap name a place twice, with the same value.
        sample("overlapping", (1, 18, 7, 8, 9), (7, 8, 9), kernel_size=3, stride=2, padding=1),
        sample("unbatched", (4, 6, 6, 8), kernel_size=2),
        elsewhere("elsewhere", (1, 17, 3, 4, 5), (7, 9, 11), kernel_size=2),
    ]


CASES = [
    Case(
        name="max_unpool3d",
        function=ops.max_unpool3d,
        reference=F.max_unpool3d,
        samples=samples,
        tolerance=0.0,  # values are moved
        gradient_tolerance=1.0,  # one of the gradient of the result, which is rounded
        differentiable=(0,),
        volumes=(0, 1),
    )
]
