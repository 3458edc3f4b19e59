"""Several processes do what one does: volumes in slabs, batches in parts, both."""

from __future__ import annotations

import json
import runpy
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch.multiprocessing

from tests import distributed_cases
from tests.distributed_cases import CASES, FOUR, Plain

ROOT = Path(__file__).parents[1]


@cache
def results(size: int) -> list[Any]:
    """Of every rank."""
    what = "spatial halo batches refusals" if size == 2 else "spatial halo both"
    with TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(distributed_cases.run, (size, folder, what), size)
        return [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(size)]


@pytest.mark.parametrize(("name", "size"), [*((n, 2) for n in CASES), *((n, 4) for n in FOUR)])
def test_slabs_have_the_loss_and_gradients_of_one_process(name: str, size: int) -> None:
    for result in results(size):
        errors = result["spatial"][name]
        assert max(errors.values()) < 1e-5, errors


@pytest.mark.parametrize("size", [2, 4])
def test_bytes_are_those_of_the_halo_formula(size: int) -> None:
    """Twice: layer by layer by hand, and as benchmarks/scaling.py counts them."""
    cuts, n, plane = size - 1, 2, 8 * 12
    first, down = 2 * n * 1 * plane, 1 * n * 4 * plane
    wide, grow = 4 * n * 6 * plane // 4, 2 * n * 6 * plane // 16
    last = 2 * n * 4 * plane
    forward = cuts * 4 * (first + down + wide + grow + last)
    backward = forward - cuts * 4 * first  # the network's input has no gradient
    sent = [sum(result["halo"][i] for result in results(size)) for i in range(2)]
    assert sent == [forward, backward]

    scaling = runpy.run_path(str(ROOT / "benchmarks" / "scaling.py"))
    found = scaling["halo_bytes"](scaling["halos"](Plain().to("meta"), (2, 1, 24, 8, 12)))
    assert [cuts * b for b in found] == sent


def test_an_optimized_network_learns_from_uneven_batches_as_one_process_does() -> None:
    assert max(result["batches"] for result in results(2)) < 1e-5


def test_slabs_and_volumes_together_learn_as_one_process_does() -> None:
    assert max(result["both"] for result in results(4)) < 1e-5


def test_what_cannot_be_split_is_named() -> None:
    for result in results(2):
        flatten, few, unbatched, mesh = result["refusals"]
        assert "flatten" in flatten
        assert "1 planes cannot be split over 2 ranks" in few
        assert "none" in unbatched
        assert "3 x 2 ranks asked for, but there are 2" in mesh
