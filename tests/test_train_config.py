"""`volnet train`: what a config may say, what is said about a wrong one, and what comes out."""

from __future__ import annotations

import csv
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("typer")
pytest.importorskip("safetensors")

from safetensors import safe_open
from safetensors.torch import load_file
from typer.testing import CliRunner

import volnet.data
import volnet.train.run
from volnet.cli.main import app
from volnet.train.config import EXAMPLE, ConfigError, parse_config, read_config, tomllib
from volnet.train.phantom import PhantomBatches
from volnet.train.run import make_loss

runner = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"})

NETWORK = """
from torch import nn

def tiny(channels=4):
    return nn.Sequential(nn.Conv3d(1, channels, 3, padding=1), nn.ReLU(), nn.Conv3d(channels, 2, 1))
"""
CONFIG = """
[model]
name = "network.py:tiny"
optimize = false
[data]
size = [12, 12, 12]
batch = 2
[optimizer.arguments]
lr = 0.03
[schedule]
warmup = 2
[run]
out = "out"
steps = 60
average = 0.8
"""


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "network.py").write_text(NETWORK)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run(text: str) -> Any:
    Path("config.toml").write_text(text)
    return runner.invoke(app, ["train", "config.toml"])


def error_of(text: str) -> str:
    result = run(text)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.stderr
    return result.stderr.splitlines()[-1]


def metrics(folder: str) -> list[dict[str, str]]:
    return list(csv.DictReader(Path(folder, "metrics.csv").read_text().splitlines()))


def test_a_training_from_a_config_learns() -> None:
    result = run(CONFIG.replace("lr = 0.03", "lr = 0.1").replace("steps = 60", "steps = 200"))
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == "Weights: out/weights.safetensors"
    rows = metrics("out")
    assert len(rows) == 200
    assert float(rows[-1]["loss"]) < 0.3 * float(rows[0]["loss"])
    network = volnet.train.run.make_model(parse_config(tomllib.loads(CONFIG)).model)
    network.load_state_dict(load_file("out/weights.safetensors"))
    batch = next(iter(PhantomBatches((12, 12, 12), 2, seed=9)))
    found = network(batch["image"]).argmax(1) == 1
    truth = batch["label"][:, 0] == 1
    assert float(2 * (found & truth).sum() / (found.sum() + truth.sum())) > 0.8
    with safe_open("out/weights.safetensors", "pt") as file:
        assert file.metadata() == {"model": "network.py:tiny", "arguments": "{}", "steps": "200"}


def test_it_is_ended_by_a_signal_and_goes_on_to_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(CONFIG).exit_code == 0
    other = CONFIG.replace('"out"', '"other"')
    draw, told = PhantomBatches._balls, []

    def interrupted(self: PhantomBatches, rng: np.random.Generator) -> np.ndarray:
        if self._next == 11 and not told:
            told.append(True)
            os.kill(os.getpid(), signal.SIGTERM)
        return draw(self, rng)

    with monkeypatch.context() as patch:
        patch.setattr(PhantomBatches, "_balls", interrupted)
        result = run(other)
    assert result.exit_code == 0, result.output
    assert "11 of 60 steps; run again to go on" in result.stdout
    assert len(metrics("other")) == 11
    assert run(other).exit_code == 0
    expected, found = load_file("out/weights.safetensors"), load_file("other/weights.safetensors")
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_the_example_is_a_config_that_runs() -> None:
    pytest.importorskip("monai")
    result = runner.invoke(app, ["train", "--example"])
    assert result.exit_code == 0
    text = re.sub("steps = 100", "steps = 2", result.stdout).replace("warmup = 10", "warmup = 1")
    keys = (
        r"images|labels|positive|patches_per_volume|compressed|window|threads|name|p|\[\[data.transforms\]\]"
    )
    with_data = re.sub(rf"(?m)^# (?=({keys})( |$))", "", result.stdout)
    with_data = with_data.replace('source = "phantom"', 'source = "volumes"')
    data = parse_config(tomllib.loads(with_data)).data
    assert (data.images, data.transforms) == (["scans/*.nii.gz"], [{"name": "RandomFlip", "p": 0.5}])
    result = run(text.replace("optimize = true", "optimize = false"))
    assert result.exit_code == 0, result.output
    assert len(metrics("training")) == 2


def test_the_example_has_every_key_of_its_sections() -> None:
    config = parse_config(tomllib.loads(EXAMPLE))
    for section in ("model", "data", "loss", "optimizer", "schedule", "run"):
        for key in vars(getattr(config, section)):
            assert re.search(rf"\b{key}\b", EXAMPLE), f"[{section}] {key}"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("steps =", "step =", r"\[run\] has no key 'step'; did you mean 'steps'"),
        ("steps = 60", "", r"\[run\] lacks the key 'steps'"),
        ("steps = 60", "steps = 3.5", r"\[run\] steps must be a whole number, got 3\.5"),
        ("steps = 60", "steps = true", r"\[run\] steps must be a whole number, got True"),
        ("average = 0.8", "average = 1.5", r"\[run\] average must be at least 0 and less than 1, got 1\.5"),
        ("[schedule]", "[scheduler]", r"no section \[scheduler\]; did you mean 'schedule'"),
        ("[schedule]", "[schedule]\nname = 'linear'", r"\[schedule\].* got 'linear'"),
        ("warmup = 2", "warmup = 60", r"\[schedule\] warmup .*60 steps, got 60"),
        (
            "size = [12, 12, 12]",
            "size = [12, 12]",
            r"\[data\] size must be three numbers over 0, got \[12, 12\]",
        ),
        (
            "size = [12, 12, 12]",
            "size = [12, 12, '12']",
            r"size must be a list, each a whole number, got \[12, 12",
        ),
        ("batch = 2", "source = 'dicom'", r"source must be 'phantom' or 'volumes', got 'dicom'"),
        ("lr = 0.03", "learning_rate = 0.02", r"\[optimizer\.arguments\].*'learning_rate'"),
        ("lr = 0.03", "lr = -1.0", r"\[optimizer\.arguments\].*-1\.0"),
        (
            "[schedule]",
            "[optimizer]\nname = 'lion'\n[schedule]",
            r"\[optimizer\] name must be one of adamw, adam, sgd, got 'lion'",
        ),
        (
            "[schedule]",
            "[loss]\nname = 'l2'\n[schedule]",
            r"\[loss\] name must be one of .*dice_ce.*, got 'l2'",
        ),
        ("[schedule]", "[loss.arguments]\ngama = 2\n[schedule]", r"\[loss\.arguments\] of dice_ce: .*'gama'"),
        ("network.py:tiny", "network.py:huge", r"\[model\] name: network\.py:huge: .*'huge'"),
        ("network.py:tiny", "nowhere.py:tiny", r"nowhere\.py"),
        ("network.py:tiny", "no.such:tiny", r"No module named 'no'"),
        ("network.py:tiny", "UNett", r"'UNett' is no network"),
        ("network.py:tiny", "math:floor", r"\[model\.arguments\]"),
        ("optimize = false", "arguments = {width = 3}", r"\[model\.arguments\].*'width'"),
        ("[model]", "[model", r"config\.toml: "),
    ],
)
def test_what_is_wrong_is_named(old: str, new: str, message: str) -> None:
    assert re.search(message, error_of(CONFIG.replace(old, new))), error_of(CONFIG.replace(old, new))
    assert not Path("out", "checkpoint.safetensors").exists()


def test_a_missing_config_is_one_line() -> None:
    result = runner.invoke(app, ["train", "nowhere.toml"])
    assert result.exit_code == 2
    assert "nowhere.toml" in result.stderr
    assert "--example" in runner.invoke(app, ["train"]).stderr


def test_another_config_in_the_same_folder_is_refused() -> None:
    short = CONFIG.replace("steps = 60", "steps = 3")
    assert run(short).exit_code == 0
    assert re.search(
        r"\[optimizer\] arguments is .*0\.01.*was .*0\.03", error_of(short.replace("0.03", "0.01"))
    )
    assert run(short.replace("steps = 3", "steps = 3\ncheckpoint_minutes = 1.0")).exit_code == 0


def test_a_config_that_never_ran_may_be_corrected() -> None:
    broken = CONFIG.replace("lr = 0.03", "lr = 1e30").replace("steps = 60", "steps = 3")
    assert "non_finite_step" in error_of(broken)
    assert run(CONFIG.replace("steps = 60", "steps = 3")).exit_code == 0


def test_config_errors_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "some.toml"
    path.write_text("[modle]")
    with pytest.raises(ConfigError, match=r"some\.toml: there is no section \[modle\]; did you mean 'model'"):
        read_config(path)


@pytest.mark.parametrize("name", ["cross_entropy", "dice_ce"])
def test_losses_take_what_the_data_give(name: str) -> None:
    """Labels as volumes of one channel, of uint8; against the formulas in float64."""
    config = parse_config(tomllib.loads(CONFIG + f"[loss]\nname = '{name}'\n")).loss
    batch = next(iter(PhantomBatches((8, 8, 8), 2)))
    logits = torch.randn(2, 2, 8, 8, 8, requires_grad=True)
    found = make_loss(config)(logits, batch["label"])
    share, label = logits.double().softmax(1), batch["label"][:, 0].long()
    expected = nn.functional.nll_loss(share.log(), label)
    if name == "dice_ce":
        truth = torch.stack([label == 0, label == 1], 1).double()
        common, both = (share * truth).sum((2, 3, 4)), (share + truth).sum((2, 3, 4))
        expected = expected + (1 - (2 * common + 1e-5) / (both + 1e-5)).mean()
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    found.backward()


def test_phantoms_follow_from_seed_and_number() -> None:
    first, second = PhantomBatches((8, 9, 10), 2, seed=1), PhantomBatches((8, 9, 10), 2, seed=1)
    batches = [batch for batch, _ in zip(first, range(3), strict=False)]
    second.load_state_dict({"next": 2})
    assert torch.equal(next(iter(second))["image"], batches[2]["image"])
    assert batches[0]["image"].shape == (2, 1, 8, 9, 10)
    assert batches[0]["label"].dtype == torch.uint8
    assert not torch.equal(batches[0]["image"], batches[1]["image"])


@pytest.mark.skipif(not hasattr(volnet.data, "VolumeStore"), reason="volnet.data has no VolumeStore")
def test_training_on_files(tmp_path: Path) -> None:
    """CTs and labels as NIfTI, through the store: read, windowed, turned, and learned."""
    sitk = pytest.importorskip("SimpleITK")
    rng = np.random.default_rng(0)
    for number in range(3):
        label = np.zeros((20, 24, 28), np.uint8)
        label[6:12, 8:15, 10 + number : 18 + number] = 1
        ct = (-850 + 900.0 * label + rng.normal(0, 30, label.shape)).astype(np.int16)
        for name, voxels in (("ct", ct), ("label", label)):
            sitk.WriteImage(sitk.GetImageFromArray(voxels), str(tmp_path / f"{name}_{number}.nii.gz"))
    data = """
source = "volumes"
images = ["ct_*.nii.gz"]
labels = ["label_*.nii.gz"]
patches_per_volume = 4
size = [12, 12, 12]
"""
    transforms = "[[data.transforms]]\nname = 'RandomFlip'\np = 0.5\n"
    text = CONFIG.replace("size = [12, 12, 12]\n", data).replace(
        "[optimizer.arg", transforms + "[optimizer.arg"
    )
    result = run(text)
    assert result.exit_code == 0, result.output
    rows = metrics("out")
    assert float(rows[-1]["loss"]) < 0.6 * float(rows[0]["loss"])
    text = text.replace('"out"', '"wrong"')
    assert "nothing at none_*" in error_of(text.replace("label_*", "none_*"))
    assert "there are 3 images and 1 labels" in error_of(text.replace("label_*", "label_0"))
    assert "'RandomFlop' is no transform" in error_of(text.replace("RandomFlip", "RandomFlop"))
    assert re.search(r"RandomFlip: .*'q'", error_of(text.replace("p = 0.5", "q = 0.5")))
