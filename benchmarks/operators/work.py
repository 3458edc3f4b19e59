"""What a case of an operator and a shape runs, and what the operators here make it of."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

LAYOUTS = {"plain": torch.contiguous_format, "channels_last": torch.channels_last_3d}
HAS_MONAI = importlib.util.find_spec("monai") is not None

Shape = dict[str, Any]  # one [[shape]] of a file in benchmarks/shapes


@dataclass(frozen=True)
class Work:
    """What a case runs. All implementations compute the same; the names of volnet's begin with volnet."""

    implementations: dict[str, Callable[[], Any]]
    error: Callable[[Any], float]  # of a result, against a reference that is none of the implementations
    tolerance: float
    flops: float = 0.0  # of the direct algorithm
    winograd: float = 1.0  # times as many where a kernel of volnet's is Winograd's
    bytes: float = 0.0  # to be read and written at least


@dataclass(frozen=True)
class Operator:
    name: str
    work: Callable[[Shape], Work]
    implementations: tuple[str, ...]
    shapes: str  # the file in benchmarks/shapes


BOTH = ("volnet plain", "volnet channels_last", "torch plain", "torch channels_last")
OPERATORS: list[Operator] = []


def operator(
    *implementations: str, shapes: str | None = None
) -> Callable[[Callable[[Shape], Work]], Callable[[Shape], Work]]:
    """Registers a function that makes the work of a shape, under its own name and with the names of the
    implementations that the work may have; ``shapes``: the operator whose shapes it takes."""

    def register(work: Callable[[Shape], Work]) -> Callable[[Shape], Work]:
        OPERATORS.append(Operator(work.__name__, work, implementations, shapes or work.__name__))
        return work

    return register


def partial(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Callable[[], Any]:
    return lambda: function(*args, **kwargs)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed))


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=generator(seed))


def integers(low: int, high: int, count: int, seed: int = 0) -> Tensor:
    return torch.randint(low, high, (count,), generator=generator(seed))


def nbytes(*tensors: Tensor) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def relative_l2(actual: Tensor, expected: Tensor) -> float:
    assert actual.shape == expected.shape, f"shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    return float((actual.double() - expected).norm() / expected.norm())
