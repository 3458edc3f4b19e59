from __future__ import annotations

from dataclasses import replace

import torch

from tests import references
from tests.cases import Case, Sample, randn
from volnet.ops import sample_patches


def centers(*rows: tuple[int, int, int]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.int64).reshape(-1, 3)


FAR = centers((2, 3, 4), (0, 0, 0), (6, 5, 40), (3, 3, -9), (-1, 2, 3), (5, 9, 39), (3, 3, 20))


def samples() -> list[Sample]:
    return [
        Sample("every_border", (randn(7, 6, 41), FAR), {"size": (4, 3, 19), "pad_value": -1024}),
        Sample("one_voxel", (randn(1, 1, 1), centers((0, 0, 0), (0, 0, 1))), {"size": (1, 1, 1)}),
        Sample("channels", (randn(3, 5, 4, 9), centers((2, 2, 2), (4, 0, 8))), {"size": (3, 2, 5)}),
        Sample("larger_than_volume", (randn(2, 3, 70), centers((1, 1, 35))), {"size": (5, 8, 150)}),
        Sample("row_of_vectors", (randn(3, 4, 80), centers((1, 2, 33), (1, 1, 70))), {"size": (3, 3, 64)}),
        Sample("same_patch_thrice", (randn(4, 4, 18), centers(*[(2, 2, 9)] * 3)), {"size": (2, 2, 17)}),
        Sample("no_patch", (randn(2, 3, 4), centers()), {"size": (2, 2, 2)}),
        Sample("no_channel", (randn(0, 2, 3, 4), centers((1, 1, 1))), {"size": (2, 2, 2)}),
        Sample("no_voxel", (randn(2, 0, 3, 4), centers((1, 1, 1))), {"size": (2, 1, 2), "pad_value": 0.5}),
    ]


def integer_samples() -> list[Sample]:
    """The integer dtypes, one of each element size among them."""
    dtypes = (torch.int16, torch.uint8, torch.int8, torch.int32, torch.int64)
    volume = torch.arange(7 * 6 * 41).reshape(7, 6, 41)
    arguments = {"size": (4, 3, 19), "pad_value": 77}
    return [Sample(str(dtype).removeprefix("torch."), (volume.to(dtype), FAR), arguments) for dtype in dtypes]


COPY = Case(
    name="sample_patches",
    function=sample_patches,
    reference=references.sample_patches,
    samples=samples,
    tolerance=0,  # a copy
    differentiable=(0,),
    # Up to five patches cover a voxel; each bfloat16 gradient is rounded before they are summed in float32.
    gradient_tolerance=4,
)
CASES = [
    COPY,
    replace(
        COPY,
        name="sample_patches_integer",
        samples=integer_samples,
        dtypes=(torch.float32,),  # once: integers stay as they are
        differentiable=(),
        kernels="sample_patches_",
    ),
]
