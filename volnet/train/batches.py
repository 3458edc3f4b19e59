"""Batches without end, from anything that can be iterated, and the way back to a place among them."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch


def random_state() -> dict[str, Any]:
    """Where the global generators of torch, NumPy and Python are."""
    return {"torch": torch.get_rng_state(), "numpy": np.random.get_state(), "python": random.getstate()}


def set_random_state(state: Mapping[str, Any]) -> None:
    """Put the global generators back to where :func:`random_state` found them."""
    torch.set_rng_state(state["torch"])
    np.random.set_state(state["numpy"])
    random.setstate(state["python"])


class EndlessBatches:
    """Pass after pass over the batches, with a state that leads back to the same place.

    Args:
        batches: anything that can be iterated. If it has ``state_dict()`` and ``load_state_dict()``, the
            state taken between two batches must make the next ``iter()`` go on with the second of them.
            Without these, a resumption starts the pass again with the random numbers it was started with,
            and draws and drops as many batches as had been used.

    >>> stream = EndlessBatches([1, 2, 3])
    >>> [next(stream) for _ in range(5)]
    [1, 2, 3, 1, 2]
    >>> again = EndlessBatches([1, 2, 3])
    >>> again.load_state_dict(stream.state_dict())
    >>> next(again)
    3
    """

    def __init__(self, batches: Iterable[Any]) -> None:
        self._batches = batches
        self._has_state = hasattr(batches, "state_dict") and hasattr(batches, "load_state_dict")
        self._iterator: Iterator[Any] | None = None
        self._taken = 0
        self._start: dict[str, Any] | None = None

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        for _ in range(2):
            if self._iterator is None:
                self._start = None if self._has_state else random_state()
                self._iterator = iter(self._batches)
            try:
                batch = next(self._iterator)
            except StopIteration:
                self._iterator = None
                self._taken = 0
            else:
                self._taken += 1
                return batch
        raise ValueError(
            "batches: there are none, or they are an iterator, which can be passed through only once"
        )

    def state_dict(self) -> dict[str, Any]:
        """The place after the last batch that was given out."""
        own = self._batches.state_dict() if self._has_state else None  # type: ignore[attr-defined]
        return {"taken": self._taken, "start": self._start, "batches": own}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to the place where :meth:`state_dict` was called.

        The global generators are left anywhere where ``batches`` has no state of its own.

        Raises:
            ValueError: ``batches`` has a state of its own now and had none, the other way round, or has fewer
                batches than were taken.
        """
        if (state["batches"] is not None) != self._has_state:
            had, has = ("had", "have none") if state["batches"] is not None else ("had none", "have")
            raise ValueError(f"batches: they {had} a state_dict when the state was taken, and {has} now")
        self._taken, self._start = state["taken"], state["start"]
        if self._has_state:
            self._batches.load_state_dict(state["batches"])  # type: ignore[attr-defined]
        elif self._start is not None:
            set_random_state(self._start)
            self._iterator = iter(self._batches)
            for index in range(self._taken):
                try:
                    next(self._iterator)
                except StopIteration:
                    raise ValueError(
                        f"batches: a pass has {index} of them, and {self._taken} were taken before"
                    ) from None
