"""What each operator is tested on: samples, reference, dtypes and tolerances, as data.

Every module here defines ``CASES``, a list of :class:`Case`; ``test_contract.py`` runs all of them.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

# Unit roundoff of the arithmetic or of the storage, whichever is coarser.
EPSILON = {torch.float32: 2.0**-23, torch.bfloat16: 2.0**-8, torch.float64: 2.0**-52}


@dataclass(frozen=True)
class Sample:
    """One call: tensors in float64, cast to the dtype under test; integer tensors stay as they are."""

    name: str
    inputs: tuple[Tensor, ...]
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """An operator, its reference, and what it is called with.

    ``tolerance`` is the largest error in units of epsilon times the largest value of the reference: say
    next to it why it is that large. ``0`` demands equality.
    """

    name: str  # stem of the operator; kernels are called NAME_...
    function: Callable[..., Any]
    reference: Callable[..., Any]  # same arguments, any dtype, differentiable where the operator is
    samples: Callable[[], list[Sample]]
    tolerance: float
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16, torch.float64)
    differentiable: tuple[int, ...] = ()  # which inputs have gradients
    volumes: tuple[int, ...] = ()  # which inputs are [N, C, D, H, W] and come in both layouts
    gradient_tolerance: float | None = None  # where it differs from `tolerance`
    kernels: str = ""  # prefix of the kernels' names, where it is not NAME_
    precision: str = "high"  # of volnet.set_precision
    same_layout: bool = True  # the result is a volume in the layout of the first input


def randn(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal values in float64."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def rand(*shape: int, seed: int = 0) -> Tensor:
    """Uniform values in [0, 1) in float64."""
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def all_cases() -> list[Case]:
    cases: list[Case] = []
    for module in pkgutil.iter_modules(__path__):
        cases += importlib.import_module(f"{__name__}.{module.name}").CASES
    return cases
