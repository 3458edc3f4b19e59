from __future__ import annotations

import torch

from tests.cases import Case, Sample, randn
from tests.cases.softmax import SHAPES
from volnet import ops


def samples():
    result = [
        # Rounded, so that there are ties.
        Sample(name, ((3 * randn(*shape)).round(),), {"dtype": torch.int16})
        for name, shape in SHAPES.items()
        if name != "no_channels"
    ]
    x = randn(2, 3, 4, 5, 17)
    result += [Sample(f"dim{dim}", (x,), {"dim": dim, "keepdim": dim == 2}) for dim in (0, 2, 3, -1)]
    types = (torch.uint8, torch.int16, torch.int32, torch.int64)
    result += [Sample(str(t).removeprefix("torch."), (x,), {"dtype": t, "keepdim": True}) for t in types]
    return [*result, Sample("flat", (x,), {"dim": None, "dtype": torch.int32})]


def reference(x, dim=1, keepdim=False, dtype=torch.uint8):
    return torch.argmax(x, dim, keepdim).to(dtype)


CASES = [
    Case(
        name="argmax",
        function=ops.argmax,
        reference=reference,
        samples=samples,
        tolerance=0,
        volumes=(0,),
        same_layout=False,  # no volume: a channel less
    ),
]
