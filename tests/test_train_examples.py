"""volnet inside other trainers: the examples run on tiny data, learn, and keep the names of weights."""

from __future__ import annotations

import importlib.util
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

monai_networks = pytest.importorskip("monai.networks.nets")

EXAMPLES = Path(__file__).parents[1] / "examples"
pytestmark = pytest.mark.filterwarnings("ignore")  # Dynamo's, MONAI's and Lightning's own
HAS_LIGHTNING = any(importlib.util.find_spec(name) for name in ("lightning", "pytorch_lightning"))


@pytest.fixture(autouse=True)
def _from_scratch() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch._dynamo.reset()


def example(name: str) -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))


def test_monai_training() -> None:
    pytest.importorskip("ignite")
    losses = example("monai_training")["train"](32, 6)
    assert len(losses) == 6
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.skipif(not HAS_LIGHTNING, reason="lightning is not installed")
def test_lightning_training(tmp_path: Path) -> None:
    module = example("lightning_training")["train"](32, 6, tmp_path)
    assert len(module.losses) == 6
    assert module.losses[-1] < 0.9 * module.losses[0]
    weights = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    plain = monai_networks.BasicUNet(spatial_dims=3, out_channels=2, features=(8, 8, 16, 32, 64, 8))
    plain.load_state_dict({name.removeprefix("network."): value for name, value in weights.items()})
