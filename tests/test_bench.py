"""`volnet bench`: what it measures, and what it says when it cannot."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

pytest.importorskip("typer")

from typer.testing import CliRunner

from volnet.bench import run, worker
from volnet.bench.networks import NETWORKS, answers, make, volume
from volnet.bench.peers import PEERS, VOLNET
from volnet.bench.report import machine_line, plot, summary, table
from volnet.bench.run import Case, Measured, measure
from volnet.cli.info import collect
from volnet.cli.main import app

ROOT = Path(__file__).parents[1]
runner = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"})

TINY = """
from torch import nn

def make():
    return nn.Sequential(nn.Conv3d(1, 8, 3, padding=1), nn.BatchNorm3d(8), nn.ReLU(), nn.Conv3d(8, 2, 1))

def broken():
    raise RuntimeError("no weights today")
"""


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    file = tmp_path / "tiny.py"
    file.write_text(TINY)
    return str(file)


def test_a_file_of_the_users_is_measured_beside_its_peers(tiny: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    peers = ["--peer", "default malloc", "--peer", "OpenVINO, b", "--peer", "ONNX"]
    few = ["--size", "1x12x8x10", "--rounds", "2", "--threads", "1", "--out", str(out)]
    result = runner.invoke(app, ["bench", f"{tiny}:make", *few, *peers])
    assert result.exit_code == 0, result.output
    record = json.loads((out / "bench.json").read_text())
    assert record["machine"]["cpu"]["model"]
    (case,) = record["cases"]
    assert (case["batch"], case["threads"], case["size"], case["check"]) == (1, 1, [1, 12, 8, 10], [6, 4, 5])
    peers = {peer["peer"]: peer for peer in case["peers"] if peer["failure"] is None}
    assert {VOLNET, "torch, default malloc"} <= set(peers)
    for name, peer in peers.items():
        assert len(peer["seconds"]) == len(peer["volnet_seconds"]) == 2
        assert peer["voxels_per_second"] == pytest.approx(960 / peer["median_seconds"])
        assert peer["peak"] > 2**20
        bound = 5e-5 if peer["precision"] == "float32" else 3e-2
        assert peer["error"] < bound, name
        assert peer["difference"] < bound, name
    assert f"| {VOLNET} | float32 |" in result.stdout
    assert f"| {tiny}:make 1x1x12x8x10, 1 thread |" in result.stdout
    assert (out / "bench.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["unet"], "unet is neither module:factory, file.py:factory nor one of dynunet"),
        (["missing.module:make", "--size", "1x8x8x8"], "No module named 'missing'"),
        (["TINY:other", "--size", "1x8x8x8"], "has no attribute 'other'"),
        (["TINY:make"], "needs the size of its volume"),
        (["TINY:make", "--size", "8,8"], "--size is sizes with an x between them, got 8,8"),
        (["TINY:make", "--size", "8x8"], "a size is channels and three spatial sizes, got 8x8"),
        (["TINY:make", "--size", "1x8x8x8", "--check", "8"], "--check is three spatial sizes, got 8"),
        (["dynunet", "--precision", "int8"], "--precision is float32 or bfloat16, got int8"),
        (["dynunet", "--peer", "tensorflow"], "no peer has tensorflow in its name"),
        (["TINY:broken", "--size", "1x8x8x8"], "RuntimeError: no weights today"),
    ],
)
def test_bad_input_is_one_line(tiny: str, arguments: list[str], message: str) -> None:
    result = runner.invoke(app, ["bench", *(a.replace("TINY", tiny) for a in arguments)])
    assert result.exit_code == 2, result.output
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("volnet: error: ")]
    assert message in line


class FakeProcess:
    """A worker that takes 1 GiB and answers as it should."""

    free = 0
    alive: ClassVar[list[str]] = []
    broken: tuple[str, ...] = ()

    def __init__(self, peer: Any, case: Case, folder: Path, python: str) -> None:
        self.peer, self.folder = peer, folder / peer.name.replace(" ", "_")
        self.folder.mkdir(exist_ok=True)

    def ask(self, what: str) -> dict[str, Any]:
        for name in ("weights.pt", "check.pt", "timed.pt"):
            torch.save([torch.ones(2, dtype=torch.float64)], self.folder / name)
        if what == "prepare":
            FakeProcess.alive.append(self.peer.name)
            FakeProcess.free -= 1 << 30
            if self.peer.name in self.broken:
                return {"error": "it does not compile"}
            return {"prepare_seconds": 1.0, "peak": 1 << 30}
        return {"seconds": 2.0 if self.peer.name == VOLNET else 6.0, "joules": None, "peak": 1 << 30}

    def end(self) -> None:
        if self.peer.name in FakeProcess.alive:
            FakeProcess.alive.remove(self.peer.name)
            FakeProcess.free += 1 << 30


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FakeProcess]]:
    monkeypatch.setattr(run, "_Process", FakeProcess)
    monkeypatch.setattr(run, "proc", lambda file, name: FakeProcess.free)
    monkeypatch.setattr(run, "missing", lambda peer: None)
    monkeypatch.setattr(run, "PAUSE", 0)
    FakeProcess.free, FakeProcess.broken = 4 << 30, ("Inductor",)
    yield FakeProcess
    assert FakeProcess.alive == []


def test_peers_that_do_not_fit_together_run_in_heats_with_volnet(fake: Any, tiny: str) -> None:
    case = measure(f"{tiny}:make", size=(1, 8, 8, 8), precisions=["float32"], rounds=3)
    float32 = [peer.name for peer in PEERS.values() if peer.precision == "float32"]
    assert sorted(measured.peer for measured in case.peers) == sorted(float32)
    assert case.peers[0].peer == VOLNET
    heats = [measured.heat for measured in case.peers]
    assert all(2 <= heats.count(heat) + (heat > 0) <= 4 for heat in set(heats))
    assert len(set(heats)) >= 3
    for measured in case.peers:
        if measured.peer == "Inductor":
            assert (measured.failure, measured.seconds) == ("it does not compile", [])
        else:
            assert measured.ratios == [1.0 if measured.peer == VOLNET else 3.0] * 3


def case_of(*peers: Measured) -> Case:
    return Case("net", (1, 10, 10, 10), (5, 5, 5), 2, 4, list(peers))


def of(peer: str, seconds: float, error: float, joules: float | None = None) -> Measured:
    precision = PEERS[peer].precision
    return Measured(peer, precision, [seconds] * 3, [0.5] * 3, 0, 1.5, 1 << 30, joules, error, error)


CASE = case_of(
    of(VOLNET, 0.5, 1e-5, 20.0),
    of("torch", 2.0, 1e-6),
    of("OpenVINO", 1.5, 2e-6),
    of("OpenVINO, bfloat16", 0.75, 1e-2),
    Measured("IPEX", "float32", failure="not installed"),
)


def test_the_table_has_a_row_a_peer_fastest_first() -> None:
    lines = table(CASE)
    assert lines[0].startswith("| net 2x1x10x10x10, 4 threads | computes in | ms | Mvoxels/s |")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:6]]
    assert [row[0] for row in rows] == [VOLNET, "OpenVINO", "torch", "OpenVINO, bfloat16"]
    assert rows[0][2:8] == ["500", "0.004", "1", "1.00", "20", "1.0e-05"]
    assert rows[2][2:5] == ["2000", "0.001", "4.00 (4.00-4.00)"]
    assert lines[-1] == "| IPEX | not installed |"


def test_the_summary_takes_the_best_peers() -> None:
    (row,) = summary([CASE])[2:]
    assert [cell.strip() for cell in row.strip("|").split("|")] == [
        *("net 2x1x10x10x10, 4 threads", "500", "OpenVINO", "3.00 (3.00-3.00)"),
        *("OpenVINO, bfloat16", "1.50 (1.50-1.50)", "1000", "1.00"),
    ]
    assert summary([case_of(of("torch", 1.0, 0.0))])[2:] == []


def test_the_plot_is_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plot([CASE, CASE], tmp_path / "bench.png")
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")


def test_the_machine_is_described_as_in_other_tables() -> None:
    assert re.match(r".* threads, .*; torch ", machine_line(collect()))


def test_energy_is_that_of_all_packages_and_survives_an_overflow(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(worker, "RAPL", tmp_path)
    assert worker._energy() == {}
    assert worker._joules({}, {}) is None
    for zone, counter in (("intel-rapl:0", 4_000_000), ("intel-rapl:1", 9_500_000), ("intel-rapl:0:0", 7)):
        (tmp_path / zone).mkdir()
        (tmp_path / zone / "energy_uj").write_text(f"{counter}\n")
        (tmp_path / zone / "max_energy_range_uj").write_text("10000000\n")
    before = worker._energy()
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("6000000\n")
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("1000000\n")
    assert worker._joules(before, worker._energy()) == pytest.approx(2.0 + 1.5)


def test_statistics_are_those_of_a_volume() -> None:
    model = nn.Sequential(nn.Conv3d(1, 2, 1), nn.BatchNorm3d(2), nn.Dropout(0.5)).eval()
    x = volume(1, 1, (6, 6, 6))
    with torch.no_grad():
        worker.with_statistics(model, x)
        assert not any(module.training for module in model.modules())
        assert model[1].momentum == 0.1
        normal = model(x)
    torch.testing.assert_close(normal.mean((0, 2, 3, 4)), torch.zeros(2), atol=1e-5, rtol=0)


def test_volumes_and_sizes() -> None:
    assert torch.equal(volume(2, 1, (4, 5, 6)), volume(2, 1, (4, 5, 6)))
    assert volume(2, 3, (4, 5, 6)).shape == (2, 3, 4, 5, 6)
    assert make("dynunet").size == (1, 128, 128, 128)
    assert make("dynunet", check=(32, 32, 32)).check == (32, 32, 32)
    assert make("dynunet", (1, 64, 96, 64)).check == (32, 48, 32)
    x = torch.ones(2)
    assert [a.tolist() for a in answers({"b": [x.numpy(), None], "a": (x * 2,)})] == [[1, 1], [2, 2]]


def test_the_five_networks_are_what_the_tables_say() -> None:
    """Floating-point operations by torch's own counter."""
    pytest.importorskip("monai")
    from torch.utils.flop_counter import FlopCounterMode

    counted = {}
    for name in ("dynunet", "basic_unet", "resnet50"):
        network = NETWORKS[name]
        with torch.device("meta"):
            model = network.factory().eval()
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(torch.empty(1, *network.size, device="meta"))
        counted[name] = round(counter.get_total_flops() * 1e-9)
    assert counted == {"dynunet": 945, "basic_unet": 252, "resnet50": 633}


def test_published_networks_are_those_of_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pytest_benchmark")
    pytest.importorskip("dynamic_network_architectures")
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    known = importlib.import_module("published").networks()
    cases = importlib.import_module("tests.networks")
    assert list(known) == [network.name for network in cases.NETWORKS]


@pytest.mark.filterwarnings("ignore")
def test_a_published_network_gets_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    published = importlib.import_module("published")
    factory = lambda: nn.Sequential(nn.Conv3d(1, 8, 3), nn.ReLU())  # noqa: E731
    with torch.no_grad():
        size, share, *_, theirs, ours = published.row(factory, (1, 1, 12, 12, 12))
    assert (size, share) == ("1x1x12x12x12", "100%")
    assert float(theirs) < 1e-6
    assert float(ours) < 5e-5
    torch._dynamo.reset()
    sys.modules.pop("published")
