"""Which plan a convolution gets, and that a measured choice is kept."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from volnet import _C, isa, ops, plans, set_precision

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SHAPES = tomllib.loads(
    (Path(__file__).parents[1] / "benchmarks" / "shapes" / "conv3d.toml").read_text(encoding="utf-8")
)["shape"]
CORES = 112


@pytest.fixture(autouse=True)
def clean_book() -> Iterator[None]:
    _C.plans_forget()
    yield
    _C.plans_measure(False)
    _C.plans_trace(False)
    _C.plans_forget()


def three(value: int | list[int]) -> list[int]:
    return value if isinstance(value, list) else [value] * 3


def plans_of(shape: dict[str, Any], threads: int = CORES, dtype: str = "float32") -> list[dict[str, Any]]:
    kernel, groups = shape.get("kernel_size", [3, 3, 3]), shape.get("groups", 1)
    stride, dilation = three(shape.get("stride", 1)), three(shape.get("dilation", 1))
    padding = [side for k, d in zip(kernel, dilation, strict=True) for side in [d * (k // 2)] * 2]
    volume = [1, shape["in_channels"], *shape["size"]]
    weight = [shape["out_channels"], shape["in_channels"] // groups, *kernel]
    return _C.conv3d_plans(volume, weight, stride, padding, dilation, groups, dtype, threads)


def tile_of(plan: dict[str, Any]) -> list[int]:
    """[2, 4, 4] of conv3d_f32_wino244_avx512; a direct kernel splits along d and h."""
    name = plan["kernel"].split("_")[2]
    return [int(m) for m in name.removeprefix("wino")] if name.startswith("wino") else [1, 1, 1000]


@pytest.mark.parametrize("level", ["avx2", "avx512"])
@pytest.mark.parametrize("shape", [s for s in SHAPES if not s.get("quick")], ids=lambda s: s["name"])
def test_plans_keep_many_cores_busy(shape: dict[str, Any], level: str) -> None:
    """At batch 1: four pieces of work for each of 112 cores, or as many as there are rows or tiles."""
    with isa.limit(level):
        plan = plans_of(shape)[0]
    outputs = [n // s for n, s in zip(shape["size"], three(shape.get("stride", 1)), strict=True)]
    most = math.prod(math.ceil(n / m) for n, m in zip(outputs, tile_of(plan), strict=True))
    assert plan["pieces"] >= min(4 * CORES, most)
    assert plan["scratch_bytes_a_worker"] <= 2 << 20


def test_the_cheapest_candidate_comes_first_and_precision_decides_which_there_are() -> None:
    shape = {"in_channels": 32, "out_channels": 32, "size": [48, 48, 48]}
    with isa.limit("avx2"):
        candidates = plans_of(shape)
        assert [p["cost"] for p in candidates] == sorted(p["cost"] for p in candidates)
        kernels = {p["kernel"] for p in candidates}
        assert {"conv3d_f32_wino444_avx2", "conv3d_f32_wino224_avx2", "conv3d_f32_direct_avx2"} <= kernels
        assert {p["kernel"] for p in plans_of(shape, dtype="float64")} == {"conv3d_f64_direct_scalar"}
        try:
            set_precision("highest")
            assert {p["kernel"] for p in plans_of(shape)} == {"conv3d_f32_direct_avx2"}
        finally:
            set_precision("high")


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s["name"])
def test_the_choice_does_not_depend_on_the_number_of_threads(shape: dict[str, Any]) -> None:
    """Algorithm and tile decide how a result is rounded."""
    assert len({plans_of(shape, threads)[0]["kernel"] for threads in (1, 2, 7, 112)}) == 1


def test_the_plan_that_is_described_runs() -> None:
    shape = {"in_channels": 16, "out_channels": 16, "size": [12, 12, 12]}
    with isa.limit("avx2"):
        _C.plans_trace(True)
        ops.conv3d(torch.zeros(1, 16, 12, 12, 12), torch.zeros(16, 16, 3, 3, 3), padding=1)
        assert _C.plans_take_trace() == [plans_of(shape)[0]["kernel"]]


def test_every_candidate_computes_the_same() -> None:
    x, w = torch.randn(1, 17, 7, 9, 10), torch.randn(19, 17, 3, 3, 3)
    expected = F.conv3d(x.double(), w.double(), padding=1)
    shape = {"in_channels": 17, "out_channels": 19, "size": [7, 9, 10]}
    scale = float(expected.abs().max())
    _C.plans_trace(True)
    for level in isa.available():
        with isa.limit(level):
            for plan in plans_of(shape):
                _C.plans_remember({plan["key"]: plan["name"]})
                assert plans_of(shape)[0] == plan
                y = ops.conv3d(x, w, padding=1)
                assert _C.plans_take_trace() == [plan["kernel"]]
                torch.testing.assert_close(y.double(), expected, rtol=0, atol=1e-4 * scale)


# The file of measured choices


MEASURE = (
    "import sys, torch, volnet\n"
    "from volnet import _C, ops\n"
    "torch.set_num_threads(1)\n"
    "side = int(sys.argv[1])\n"
    "y = ops.conv3d(torch.ones(1, 16, side, side, side), torch.ones(16, 16, 3, 3, 3))\n"
    "print(float(y.mean()), len(_C.plans_measured()))\n"
)


def start(cache: Path, mode: str, side: int = 6, code: str = MEASURE) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code, str(side)],
        env={**os.environ, "XDG_CACHE_HOME": str(cache), "VOLNET_PLANS": mode, "VOLNET_MAX_ISA": "avx2"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def measured(cache: Path, mode: str, side: int = 6) -> int:
    """How many choices a process has that convolves one shape; its answer is checked on the way."""
    process = start(cache, mode, side)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "")
    mean, count = out.split()
    assert float(mean) == 432.0
    return int(count)


def choices(cache: Path) -> dict[str, str]:
    (entries,) = json.loads((cache / "volnet" / "plans.json").read_text())["machines"].values()
    return entries


def test_choices_are_measured_once_and_read_by_later_processes(tmp_path: Path) -> None:
    assert measured(tmp_path, "") == 0
    assert not (tmp_path / "volnet").exists()
    assert measured(tmp_path, "measure", 6) == 1
    assert measured(tmp_path, "measure", 7) == 2
    assert len(choices(tmp_path)) == 2
    before = (tmp_path / "volnet" / "plans.json").stat()
    assert measured(tmp_path, "", 6) == 2  # read without the opt-in, and not written again
    assert (tmp_path / "volnet" / "plans.json").stat() == before
    assert measured(tmp_path, "off", 6) == 0
    assert [p.name for p in (tmp_path / "volnet").iterdir() if p.suffix not in (".json", ".lock")] == []


def test_a_choice_in_the_file_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("VOLNET_PLANS", raising=False)
    shape = {"in_channels": 16, "out_channels": 16, "size": [12, 12, 12]}
    with isa.limit("avx2"):
        plan = plans_of(shape)[-1]
        _C.plans_remember({plan["key"]: plan["name"], "conv3d of another kind": "wino999"})
        plans.save()
        plans.forget()
        assert plans_of(shape)[0] != plan
        plans._load()
        assert plans_of(shape)[0] == plan


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe\x00",
        b"[]",
        b'{"format": 1, "machines": 3}',
        b'{"format": 1, "machines": {}} tail',
        b"[" * 100_000,
    ],
)
def test_a_corrupt_file_is_ignored_and_replaced(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "volnet").mkdir()
    (tmp_path / "volnet" / "plans.json").write_bytes(content)
    assert measured(tmp_path, "measure") == 1
    assert len(choices(tmp_path)) == 1


def test_choices_of_other_machines_and_wrong_types_are_kept_but_not_used(tmp_path: Path) -> None:
    (tmp_path / "volnet").mkdir()
    file = tmp_path / "volnet" / "plans.json"
    assert measured(tmp_path, "measure") == 1
    content = json.loads(file.read_text())
    (machine,) = content["machines"]
    content["machines"] = {"another": content["machines"][machine], machine: {"conv3d": 3}}
    file.write_text(json.dumps(content))
    assert measured(tmp_path, "") == 0
    assert measured(tmp_path, "measure") == 1
    assert set(json.loads(file.read_text())["machines"]) == {"another", machine}


def test_a_file_of_another_format_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "volnet").mkdir()
    file = tmp_path / "volnet" / "plans.json"
    file.write_text('{"format": 2, "machines": {}}')
    assert measured(tmp_path, "measure") == 1
    assert file.read_text() == '{"format": 2, "machines": {}}'


def test_a_place_that_cannot_be_written_never_breaks_a_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"  # no folder can be made below a file, whoever asks
    file.write_text("")
    assert measured(file, "measure") == 1
    assert file.read_text() == ""
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))
    monkeypatch.delenv("VOLNET_PLANS", raising=False)
    plans._load()
    plans.measure(True)
    with isa.limit("avx2"):
        ops.conv3d(torch.ones(1, 8, 5, 5, 5), torch.ones(8, 8, 3, 3, 3))
    with pytest.warns(UserWarning, match="not kept"):
        plans.measure(False)


def test_two_processes_keep_each_others_choices(tmp_path: Path) -> None:
    processes = [start(tmp_path, "measure", side) for side in (5, 6, 7, 8)]
    for process in processes:
        assert process.communicate(timeout=120)[1] == ""
    assert len(choices(tmp_path)) == 4
