"""torch's own sample inputs for its functions."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import torch


def opinfo_samples(name: str, dtype: torch.dtype, variant: str = "") -> Iterator[Any]:
    """The sample inputs that torch tests its own function ``name``, in this variant, with."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.testing._internal.common_methods_invocations import op_db

        info = next(op for op in op_db if op.name == name and variant in (op.variant_test_name, ""))
        yield from info.sample_inputs("cpu", dtype, requires_grad=False)
