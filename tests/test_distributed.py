"""Several processes do what one does: volumes in slabs, batches in parts, both."""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
import torch.multiprocessing
from torch import Tensor

from tests import distributed_cases
from tests.distributed_cases import CASES, FOUR, Plain, relative

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "distributed_train.py"


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
    found = scaling["halo_bytes"](scaling["layers_of"](Plain().to("meta"), (2, 1, 24, 8, 12)))
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


def weights(folder: Path) -> list[Tensor]:
    """Of a run of the example that has ended."""
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    assert state["step"] == 20
    return list(state["model"].values())


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[Tensor]:
    """Of one process with the whole batch."""
    folder = tmp_path_factory.mktemp("single")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        runpy.run_path(str(EXAMPLE))["train"](
            folder, steps=20, batch=4, side=16, spatial=1, precision="highest"
        )
    finally:
        torch.set_num_threads(threads)
        torch._dynamo.reset()
    return weights(folder)


def torchrun(folder: Path, *options: str, host: tuple[str, ...] = (), **environment: str) -> subprocess.Popen:
    command = [*host, sys.executable, "-m", "torch.distributed.run", *options, str(EXAMPLE)]
    command += ["--out", str(folder), "--steps", "20", "--side", "16", "--precision", "highest"]
    paths = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    return subprocess.Popen(
        command,
        env={**os.environ, **paths, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ended(process: subprocess.Popen) -> str:
    """What it said."""
    try:
        said, _ = process.communicate(timeout=300)
    finally:
        process.terminate()  # torchrun ends its ranks
    assert process.returncode == 0, said
    return str(said)


def test_a_killed_rank_starts_all_again_from_the_checkpoint(
    tmp_path: Path, undisturbed: list[Tensor]
) -> None:
    process = torchrun(
        tmp_path, "--standalone", "--nproc-per-node=2", "--max-restarts=2", "--monitor-interval=0.1"
    )
    while not (tmp_path / "checkpoint.pt").exists() and process.poll() is None:
        time.sleep(0.005)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    assert "step 10, " in (said := ended(process))
    assert "restarts 1" in said
    assert relative(weights(tmp_path), undisturbed) < 1e-5


@pytest.fixture
def hosts() -> Iterator[list[str]]:
    """Two network namespaces with a cable between them, 10.211.0.1 and 10.211.0.2."""

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    names = [f"volnet-{os.getpid()}-{i}" for i in range(2)]
    try:
        for name in names:
            ip("netns", "add", name)
        ip(
            "link",
            "add",
            "vol0",
            "netns",
            names[0],
            "type",
            "veth",
            "peer",
            "name",
            "vol1",
            "netns",
            names[1],
        )
        for i, name in enumerate(names):
            ip("-n", name, "addr", "add", f"10.211.0.{i + 1}/24", "dev", f"vol{i}")
            ip("-n", name, "link", "set", f"vol{i}", "up")
            ip("-n", name, "link", "set", "lo", "up")
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no network namespaces here: {error}")
    else:
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


def test_two_hosts_learn_what_one_process_does(
    hosts: list[str], tmp_path: Path, undisturbed: list[Tensor]
) -> None:
    processes = [
        torchrun(
            tmp_path / str(i),  # the second sees nothing of the first one's disk
            *("--nnodes=2", "--nproc-per-node=1", f"--node-rank={i}"),
            *("--master-addr=10.211.0.1", "--master-port=29500"),
            host=("ip", "netns", "exec", name),
            GLOO_SOCKET_IFNAME=f"vol{i}",
        )
        for i, name in enumerate(hosts)
    ]
    for process in processes:
        ended(process)
    assert relative(weights(tmp_path / "0"), undisturbed) < 1e-5
