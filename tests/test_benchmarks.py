from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("pytest_benchmark")
pytest.importorskip("typer")  # the machine's description is that of `volnet info`

ROOT = Path(__file__).parents[1]


def run(*arguments: str) -> str:
    command = [sys.executable, "-m", "pytest", "benchmarks/ops.py", "--quick", "-p", "no:cacheprovider"]
    done = subprocess.run([*command, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    return done.stdout


def test_every_operator_runs_once_and_its_peers_agree() -> None:
    output = run("--benchmark-disable", "-v")
    for shapes in (ROOT / "benchmarks" / "shapes").glob("*.toml"):
        assert f"test_operator[{shapes.stem}: quick" in output
    assert "test_operator[conv3d_backward: quick" in output


def test_a_timed_run_writes_the_machine_and_both_sides(tmp_path: Path) -> None:
    file = tmp_path / "ops.json"
    output = run(
        "-k", "max_pool3d and not adaptive and not fractional and not backward", f"--benchmark-json={file}"
    )
    written = json.loads(file.read_text())
    machine = written["machine_info"]["volnet"]
    assert machine["cpu"]["model"]
    assert machine["isa"]["in_use"]
    assert machine["versions"]["torch"]
    names = [entry["name"] for entry in written["benchmarks"]]
    assert [any(f": {side} plain]" in name for name in names) for side in ("volnet", "torch")] == [True, True]
    for entry in written["benchmarks"]:
        assert entry["group"].startswith("max_pool3d: quick")
        assert entry["stats"]["median"] > 0
        assert entry["extra_info"]["bandwidth"] > 0
    assert "| max_pool3d | volnet plain, ms |" in output


def test_layers_are_summed_up_by_group() -> None:
    output = run("-k", "conv3d and 9x8x7")
    rows = [line.split(" | ")[:2] for line in output.splitlines() if line.startswith("| 3x3x3")]
    assert rows == [["| 3x3x3", "1"], ["| 3x3x3, bfloat16", "1"], ["| 3x3x3, both gradients", "1"]]


def test_measured_tables_of_the_documentation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    figures = importlib.import_module("figures")
    printed = "print('collected'); print('| a |'); print('.....'); print(); print('| b |')"
    assert figures.tables(f'-c "{printed}"') == "| a |\n\n| b |"
    pages = [page.read_text() for page in (ROOT / "docs").glob("*.md")]
    commands = [block[2] for page in pages for block in figures.BLOCK.finditer(page)]
    assert commands
    for command in commands:
        (script,) = re.findall(r"benchmarks/\S+\.py", command)
        assert (ROOT / script).is_file()


def test_a_training_step_gives_the_same_loss_on_every_peer() -> None:
    command = [sys.executable, "benchmarks/training.py", "nodule_rpn x2", "--quick"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    losses = [float(found) for found in re.findall(r"loss ([\d.]+)", done.stdout)]
    assert len(losses) == 4
    assert max(losses) < 1.001 * min(losses)
    assert "best of torch is" in done.stdout
