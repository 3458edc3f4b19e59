"""Several processes do what one does: volumes in slabs, batches in parts, both."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch.multiprocessing

from tests import distributed_cases
from tests.distributed_cases import CASES, FOUR


@cache
def results(what: str, size: int) -> list[Any]:
    """Of every rank."""
    with TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(distributed_cases.run, (size, folder, what), size)
        return [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(size)]


@pytest.mark.parametrize(("name", "size"), [*((n, 2) for n in CASES), *((n, 4) for n in FOUR)])
def test_slabs_have_the_loss_and_gradients_of_one_process(name: str, size: int) -> None:
    for errors in results("spatial", size):
        assert max(errors[name].values()) < 1e-5, errors[name]
