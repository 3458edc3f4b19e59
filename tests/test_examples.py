"""The examples run, on random weights, and volnet answers in them as torch does."""

from __future__ import annotations

import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("monai")
pytest.importorskip("dynamic_network_architectures")

from torch import nn

from volnet.bench.networks import import_torchvision
from volnet.optimize.optimize import Optimized

EXAMPLES = Path(__file__).parents[1] / "examples"
pytestmark = pytest.mark.filterwarnings("ignore")  # Dynamo's and MONAI's own
import_torchvision()


@pytest.fixture(autouse=True)
def _from_scratch() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch._dynamo.reset()


def example(name: str) -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))


def test_monai_sliding_window(capsys: pytest.CaptureFixture[str]) -> None:
    example("monai_sliding_window")["main"](["--size", "40", "32", "32", "--window", "32"])
    found = re.search(r"relative difference (\S+)", capsys.readouterr().out)
    assert found
    assert float(found[1]) < 5e-5


def test_nnunet_without_nnunet(capsys: pytest.CaptureFixture[str]) -> None:
    size = ["64", "32", "32"]
    example("nnunet")["main"](["--size", *size, "--window", *size])
    found = re.search(r"same class: (\S+)%", capsys.readouterr().out)
    assert found
    assert float(found[1]) > 99.9


def test_nnunet_gets_an_optimized_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for nnU-Net's predictor, which has its methods."""
    calls: list[Any] = []

    class Predictor(SimpleNamespace):
        def initialize_from_trained_model_folder(self, folder: str, **options: Any) -> None:
            self.network = nn.Sequential(nn.Conv3d(1, 2, 1))
            calls.append(folder)

        def predict_from_files(self, images: str, results: str) -> None:
            # As nnU-Net does for each of its folds.
            self.network.load_state_dict(
                {"0.weight": torch.full((2, 1, 1, 1, 1), 3.0), "0.bias": torch.ones(2)}
            )
            self.network = self.network.to(self.device)
            self.network.eval()
            with torch.inference_mode():
                calls.append((images, results, self.network, self.network(torch.ones(1, 1, 2, 2, 2))))

    module = ModuleType("nnunetv2.inference.predict_from_raw_data")
    module.__dict__["nnUNetPredictor"] = Predictor
    for name in ("nnunetv2", "nnunetv2.inference"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    example("nnunet")["main"](["--model", "trained", "in", "out"])
    folder, (images, results, network, answer) = calls
    assert (folder, images, results) == ("trained", "in", "out")
    assert isinstance(network, Optimized)
    assert torch.equal(answer, torch.full((1, 2, 2, 2, 2), 4.0))
