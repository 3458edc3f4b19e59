"""The `volnet` command: exit codes, what is left behind, and what it says."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("typer")
pytest.importorskip("jinja2")
pytest.importorskip("SimpleITK")

from typer.testing import CliRunner

import volnet
import volnet.data.phantom
import volnet.data.read
import volnet.models
from volnet.cli.info import collect
from volnet.cli.main import app
from volnet.cli.tables import match_planted
from volnet.data.errors import InvalidScanError
from volnet.data.geometry import Geometry
from volnet.data.volume import CTVolume
from volnet.detection.finding import Finding
from volnet.report import RESEARCH_USE

COMMANDS = ["detect", "demo", "phantom", "info", "bench", "train", "train-detector"]
FILES = ["findings.csv", "findings.json", "report.html"]

runner = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"})


def finding(lps: tuple[float, float, float], score: float, diameter_mm: float = 8.0) -> Finding:
    center = (lps[2], lps[1], lps[0])
    box = (*(c - 3.5 for c in center), *(c + 4.5 for c in center))
    return Finding(center, lps, box, diameter_mm, score)


FINDINGS = [finding((20.0, 10.0, 5.0), 0.91), finding((8.0, 30.0, 12.0), 0.34)]


def a_ct(**fields: Any) -> CTVolume:
    geometry = Geometry((20, 40, 40), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
    noise = np.random.default_rng(0).integers(-1000, 100, geometry.shape).astype(np.int16)
    return CTVolume(noise, geometry, **{"series_uid": "1.2.3", "source": "scan", **fields})


@pytest.fixture
def detector(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SimpleNamespace:
    """A reader and a detector that answer at once; `.findings` and `.error` say with what."""
    state = SimpleNamespace(ct=a_ct(), findings=FINDINGS, error=None, read=[], asked=[])

    def read_ct(path: Path) -> CTVolume:
        state.read.append(path)
        return state.ct

    def detect_nodules(
        ct: CTVolume, model: object = None, *, progress: Callable[[int, int], None], **asked: Any
    ):
        state.asked.append(asked)
        progress(0, 2)
        progress(1, 2)
        if state.error is not None:
            raise state.error
        progress(2, 2)
        return state.findings

    weights = tmp_path / "weights"
    weights.write_bytes(b"abc")
    monkeypatch.setattr("volnet.data.read.read_ct", read_ct)
    monkeypatch.setattr("volnet.models.detect_nodules", detect_nodules)
    monkeypatch.setattr("volnet.models.nodule_rpn.detect.DEFAULT_WEIGHTS", weights)
    return state


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "folder"
    path.mkdir()
    return path


def run(*arguments: object) -> Any:
    return runner.invoke(app, [str(argument) for argument in arguments])


def error_line(result: Any) -> str:
    assert result.exit_code == 2, result.output
    errors = [line for line in result.stderr.splitlines() if line.startswith("volnet: error: ")]
    assert len(errors) == 1
    assert "Traceback" not in result.output
    assert result.stderr.splitlines()[-1] == errors[0]
    return errors[0]


def test_detect_writes_the_three_files_and_prints_the_findings(detector: Any, folder: Path) -> None:
    result = run("detect", "scan", "--out", folder / "out", "--score-threshold", "0.2", "--max-findings", "7")
    assert result.exit_code == 0, result.output
    assert detector.read == [Path("scan")]
    assert detector.asked == [{"score_threshold": 0.2, "max_findings": 7}]
    assert os.listdir(folder) == ["out"]
    assert sorted(os.listdir(folder / "out")) == FILES
    record = json.loads((folder / "out/findings.json").read_text())
    assert record["settings"] == {"score_threshold": 0.2, "max_findings": 7}
    # SHA-256 of "abc", from FIPS 180-2.
    assert record["model"] == {"name": "nodule_rpn", "version": "ba7816bf8f01"}
    assert [entry["score"] for entry in record["findings"]] == [0.91, 0.34]
    assert re.search(r"0\.91.+8\.0.+6.+20\.0, 10\.0, 5\.0", result.stdout)
    assert re.search(r"0\.34.+8\.0.+13.+8\.0, 30\.0, 12\.0", result.stdout)
    assert str(folder / "out/report.html") in result.stdout
    assert RESEARCH_USE in " ".join(result.stdout.split())
    for step in ("Read the scan", "Find the lungs", "Look for nodules", "Write the report"):
        assert step in result.stderr


def test_detect_without_findings_says_so(detector: Any, folder: Path) -> None:
    detector.findings = []
    result = run("detect", "scan", "--out", folder / "out")
    assert result.exit_code == 0
    assert "No findings" in result.stdout


def test_defaults_are_the_detectors_own(detector: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from volnet.models.nodule_rpn.detect import detect_nodules

    own = inspect.signature(detect_nodules).parameters
    assert run("detect", "scan", "--out", folder / "out").exit_code == 0
    assert detector.asked == [{name: own[name].default for name in ("score_threshold", "max_findings")}]


def test_identity_is_written_and_printed_only_when_asked_for(detector: Any, folder: Path) -> None:
    detector.ct = a_ct(identity={"patient_name": "Quixotel^Zebedee", "patient_id": "PID-778899"})
    quiet = run("detect", "scan", "--out", folder / "quiet")
    asked = run("detect", "scan", "--out", folder / "asked", "--identify-patient")
    assert quiet.exit_code == asked.exit_code == 0
    for secret in ("quixotel", "zebedee", "pid-778899"):
        assert secret not in quiet.output.lower()
        for name in FILES:
            assert secret.encode() not in (folder / "quiet" / name).read_bytes().lower()
        assert secret.encode() in (folder / "asked/report.html").read_bytes().lower()


@pytest.mark.parametrize("missing", ["nothing-here", "nothing.nii.gz"])
def test_a_missing_input_is_one_line_and_code_2(folder: Path, missing: str) -> None:
    result = run("detect", folder / missing, "--out", folder / "out")
    assert missing in error_line(result)
    assert os.listdir(folder) == []


def test_an_unreadable_scan_names_file_and_reason(
    detector: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(path: Path) -> CTVolume:
        raise InvalidScanError(path, "4-D image\nof size (2, 3, 4, 5)")

    monkeypatch.setattr("volnet.data.read.read_ct", broken)
    result = run("detect", "brain.nii", "--out", folder / "new" / "out")
    assert error_line(result) == "volnet: error: brain.nii: 4-D image of size (2, 3, 4, 5)"
    assert os.listdir(folder) == []


def test_a_filled_output_folder_is_refused_before_any_work(detector: Any, folder: Path) -> None:
    (folder / "mine").write_text("mine")
    line = error_line(run("detect", "scan", "--out", folder))
    assert str(folder) in line
    assert "not empty" in line
    assert "--overwrite" in line
    assert detector.read == []
    assert os.listdir(folder) == ["mine"]


def test_overwrite_replaces_only_after_success(detector: Any, folder: Path) -> None:
    assert run("detect", "scan", "--out", folder / "out").exit_code == 0
    before = {name: (folder / "out" / name).read_bytes() for name in FILES}

    detector.error = RuntimeError("out of luck")
    result = run("detect", "scan", "--out", folder / "out", "--overwrite")
    assert isinstance(result.exception, RuntimeError)
    assert {name: (folder / "out" / name).read_bytes() for name in FILES} == before

    detector.error, detector.findings = None, FINDINGS[:1]
    assert run("detect", "scan", "--out", folder / "out", "--overwrite").exit_code == 0
    assert len(json.loads((folder / "out/findings.json").read_text())["findings"]) == 1
    assert os.listdir(folder) == ["out"]
    assert sorted(os.listdir(folder / "out")) == FILES


@pytest.mark.parametrize("error", [RuntimeError("x"), KeyboardInterrupt(), MemoryError()])
def test_a_detector_that_stops_half_way_leaves_nothing(
    detector: Any, folder: Path, error: BaseException
) -> None:
    detector.error = error
    assert run("detect", "scan", "--out", folder / "a" / "out").exit_code != 0
    assert os.listdir(folder) == []


def test_a_full_disk_is_one_line(detector: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device", "report.html")

    monkeypatch.setattr("volnet.report.write.write_html", full)
    line = error_line(run("detect", "scan", "--out", folder / "out"))
    assert line == "volnet: error: report.html: No space left on device"
    assert os.listdir(folder) == []


@pytest.mark.parametrize(
    "option", [("--score-threshold", "1.5"), ("--max-findings", "0"), ("--no-such-option",)]
)
def test_wrong_options_are_code_2(detector: Any, folder: Path, option: tuple[str, ...]) -> None:
    result = run("detect", "scan", "--out", folder / "out", *option)
    assert result.exit_code == 2
    assert option[0] in result.stderr
    assert detector.read == []


@pytest.fixture
def small_phantom(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    small = functools.partial(
        volnet.data.phantom.chest_phantom, shape=(48, 160, 160), spacing=(5.0, 2.1, 2.1)
    )
    monkeypatch.setattr("volnet.data.phantom.chest_phantom", small)
    return small


def test_phantom_is_a_series_with_its_truth_beside_it(small_phantom: Any, folder: Path) -> None:
    result = run("phantom", folder / "out", "--seed", "3", "--nodules", "2")
    assert result.exit_code == 0, result.output
    assert sorted(os.listdir(folder / "out")) == ["ct", "truth.json"]
    truth = json.loads((folder / "out/truth.json").read_text())
    ct = volnet.data.read.read_ct(folder / "out/ct")
    made, planted = small_phantom(seed=3, nodules=2)
    assert ct.series_uid == truth["series_uid"]
    np.testing.assert_array_equal(ct.voxels, made.voxels)
    assert truth["seed"] == 3
    assert truth["nodules"] == json.loads(json.dumps([dataclasses.asdict(nodule) for nodule in planted]))
    for nodule in truth["nodules"]:
        # Through the headers and back: the truth is in the frame of the files.
        np.testing.assert_allclose(
            ct.geometry.lps_to_voxel(nodule["center_lps"]), nodule["center_voxel"], atol=0.02
        )
        assert f"{nodule['diameter_mm']:.1f}" in result.stdout
    assert "not empty" in error_line(run("phantom", folder / "out"))


def test_more_nodules_than_there_is_room_for_is_code_2(small_phantom: Any, folder: Path) -> None:
    result = run("phantom", folder / "out", "--nodules", "100000")
    assert result.exit_code == 2
    assert "100000" in result.stderr
    assert os.listdir(folder) == []


def test_demo_prints_found_against_planted(
    small_phantom: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ct, planted = small_phantom(seed=0, nodules=3)
    seen: list[CTVolume] = []

    def detect_nodules(scan: CTVolume, **asked: Any) -> list[Finding]:
        seen.append(scan)
        asked["progress"](0, 1)
        # The first two planted, the first of them twice, and one that is nowhere.
        places = [planted[0].center_lps, (0.0, 0.0, 9999.0), planted[1].center_lps, planted[0].center_lps]
        return [
            Finding((1.0, 1.0, 1.0), tuple(p), (0, 0, 0, 2, 2, 2), 8.0, 0.9 - i / 10)
            for i, p in enumerate(places)
        ]

    weights = folder / "weights"
    weights.write_bytes(b"abc")
    monkeypatch.setattr("volnet.models.nodule_rpn.detect.DEFAULT_WEIGHTS", weights)
    monkeypatch.setattr("volnet.models.detect_nodules", detect_nodules)
    result = runner.invoke(app, ["demo", "--out", str(folder / "out"), "--nodules", "3"])
    assert result.exit_code == 0, result.output
    np.testing.assert_array_equal(seen[0].voxels, ct.voxels)
    assert sorted(os.listdir(folder / "out")) == ["ct", *FILES, "truth.json"]
    assert sorted(os.listdir(folder)) == ["out", "weights"]
    assert "2 of 3 planted nodules found; 1 of 4 findings lie in no nodule" in result.stdout
    assert "missed" in result.stdout
    assert "not empty" in error_line(runner.invoke(app, ["demo", "--out", str(folder / "out")]))
    again = runner.invoke(app, ["demo", "--out", str(folder / "out"), "--nodules", "3", "--overwrite"])
    assert again.exit_code == 0, again.output


def test_demo_with_a_ct_detects_in_it(detector: Any, folder: Path) -> None:
    result = run("demo", "scan.zip", "--out", folder / "out")
    assert result.exit_code == 0, result.output
    assert detector.read == [Path("scan.zip")]
    assert sorted(os.listdir(folder / "out")) == FILES


def test_matching_is_by_centre_within_the_radius() -> None:
    nodules = [
        SimpleNamespace(center_lps=(0.0, 0.0, 0.0), diameter_mm=10.0),
        SimpleNamespace(center_lps=(50.0, 0.0, 0.0), diameter_mm=6.0),
    ]
    findings = [
        finding((5.0, 0.0, 0.0), 0.9),  # on the surface of the first: outside
        finding((0.0, 3.0, 3.9), 0.8),  # 4.92 mm from its centre
        finding((1.0, 0.0, 0.0), 0.7),  # nearer, but a second hit
        finding((47.0, 0.0, 0.0), 0.6),  # 3 mm from the other: outside
    ]
    matches, false = match_planted(nodules, findings)
    assert [match.finding for match in matches] == [1, None]
    assert matches[0].distance_mm == pytest.approx(np.hypot(3.0, 3.9))
    assert false == [0, 3]
    assert match_planted(nodules, [])[1] == []
    assert match_planted([], findings)[1] == [0, 1, 2, 3]


def test_train_passes_on_what_it_is_given(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    calls: list[Any] = []

    def train(*given: object, log: object, **options: object) -> Path:
        calls.append((given, options))
        return folder / "nodule_rpn.safetensors"

    monkeypatch.setattr("volnet.train.nodule_rpn.train", train)
    result = run("train-detector", "--data", "d", "--out", "o", "--minutes", "3", "--seed", "4")
    assert result.exit_code == 0, result.output
    assert calls == [((Path("d"), Path("o")), {"minutes": 3.0, "seed": 4})]
    assert "nodule_rpn.safetensors" in result.stdout


def test_training_without_its_data_is_one_line(folder: Path) -> None:
    line = error_line(run("train-detector", "--data", folder / "nowhere", "--out", folder / "out"))
    assert "nowhere" in line


def test_version() -> None:
    assert run("--version").stdout.strip() == f"volnet {volnet.__version__}"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches_with_an_example(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert f"$ volnet {command}" in result.stdout.replace("VOLNET_MAX_ISA=avx2 ", "")
    assert command in run("--help").stdout


def test_info_agrees_with_volnet_and_torch() -> None:
    import torch

    facts = json.loads(run("info", "--json").stdout)
    assert facts["isa"]["found"] == list(volnet.isa.available())
    assert facts["isa"]["in_use"] == volnet.isa.active()
    assert facts["threads"]["torch"] == torch.get_num_threads()
    assert facts["memory"]["pool"].keys() == volnet.memory.stats().keys()
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["packages"]["pydicom"]
    text = run("info").stdout
    for shown in (volnet.__version__, torch.__version__, volnet.isa.active(), "huge pages", "NUMA"):
        assert shown in text


def test_info_reads_a_two_socket_machine(tmp_path: Path) -> None:
    files = {
        "proc/cpuinfo": "processor\t: 0\nmodel name\t: A Fast CPU @ 2 GHz\n\nprocessor\t: 1\n",
        "proc/meminfo": "MemTotal:       1000 kB\nMemAvailable:    600 kB\nHugePages_Total:       0\n",
        "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never\n",
        "sys/fs/cgroup/memory.max": "524288\n",
        "sys/fs/cgroup/cpu.max": "150000 100000\n",
        "sys/devices/system/node/node0/cpulist": "0-1\n",
        "sys/devices/system/node/node0/meminfo": "Node 0 MemTotal:       400 kB\n",
        "sys/devices/system/node/node1/cpulist": "2-3\n",
    }
    for cpu in range(4):
        core, cpus = cpu // 2, f"sys/devices/system/cpu/cpu{cpu}"
        pair = f"{2 * core}-{2 * core + 1}"
        files[f"{cpus}/topology/thread_siblings_list"] = pair
        for index, (level, kind, size, shared) in enumerate(
            [(1, "Data", "48K", pair), (1, "Instruction", "32K", pair), (3, "Unified", "30M", "0-3")]
        ):
            for name, value in (
                ("level", level),
                ("type", kind),
                ("size", size),
                ("shared_cpu_list", shared),
            ):
                files[f"{cpus}/cache/index{index}/{name}"] = str(value)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    facts = collect(tmp_path)
    assert facts["cpu"]["model"] == "A Fast CPU @ 2 GHz"
    assert facts["cpu"]["physical_cores"] == 2
    assert facts["cpu"]["caches"] == [
        {"name": "L1d", "size": "48K", "count": 2},
        {"name": "L1i", "size": "32K", "count": 2},
        {"name": "L3", "size": "30M", "count": 1},
    ]
    assert facts["cpu"]["numa_nodes"] == [
        {"node": 0, "cpus": "0-1", "memory_bytes": 400 * 1024},
        {"node": 1, "cpus": "2-3", "memory_bytes": None},
    ]
    assert facts["memory"]["total_bytes"] == 1000 * 1024
    assert facts["memory"]["available_bytes"] == 600 * 1024
    assert facts["memory"]["cgroup_limit_bytes"] == 512 * 1024
    assert facts["memory"]["huge_pages"] == "madvise"
    assert facts["threads"]["cgroup_cpus"] == 1.5


def test_info_copes_with_a_system_that_tells_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("volnet.cli.info.collect", lambda: collect(tmp_path))
    result = run("info")
    assert result.exit_code == 0
    assert "unknown" in result.stdout
    facts = json.loads(run("info", "--json").stdout)
    assert facts["cpu"]["numa_nodes"] == []
    assert facts["memory"]["huge_pages"] is None


def test_help_and_info_load_no_reader_and_no_model() -> None:
    code = (
        "import sys, volnet.cli.main; "
        "print(sorted({'SimpleITK', 'pydicom', 'scipy', 'numba', 'volnet.models'} & set(sys.modules)))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"
