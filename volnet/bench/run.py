"""Measures networks: a process for each peer, and rounds that go round them."""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from volnet.bench.networks import Network, make
from volnet.bench.peers import IPEX, PEERS, VOLNET, Peer, missing
from volnet.bench.worker import proc

__all__ = ["RETAINING", "Case", "Measured", "measure"]

# A malloc that keeps memory and maps huge pages: settings with which torch was as fast as with any, and
# steady. They are read when a process starts.
RETAINING = (
    "glibc.malloc.hugetlb=1"
    f":glibc.malloc.mmap_threshold={1 << 40}:glibc.malloc.trim_threshold={1 << 40}"
    f":glibc.malloc.top_pad={1 << 29}"
)
# As `bench`, not as `volnet.bench`: a peer's process has volnet in it only if it is volnet.
START = "import sys; sys.path.insert(0, sys.argv[2]); from bench.worker import main; sys.path.pop(0); main()"
PAUSE = 0.3  # seconds between two peers: threads of the last one that wait for more work have gone to sleep
ROOM = 1.3  # times the largest process so far must be free for another one


@dataclass
class Measured:
    """One peer. Lists have an entry a round; ``failure`` says why there is none.

    Attributes:
        error: relative L2 to float64, on the smaller volume; the largest of the network's results.
        difference: to torch's float32, on the volume that is timed.
        heat: peers of one heat ran in the same rounds; volnet's run in it is ``volnet_seconds``.
        peak: bytes of the process, or of the device.
        joules: of all processor packages, the least of all rounds; ``None`` where the system does not tell.
    """

    peer: str
    precision: str
    seconds: list[float] = field(default_factory=list)
    volnet_seconds: list[float] = field(default_factory=list)
    heat: int = 0
    prepare_seconds: float | None = None
    peak: int | None = None
    joules: float | None = None
    error: float | None = None
    difference: float | None = None
    failure: str | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def ratios(self) -> list[float]:
        """How many times as long as volnet it takes, by round."""
        return [a / b for a, b in zip(self.seconds, self.volnet_seconds, strict=False)]


@dataclass
class Case:
    """A network with a batch size and a number of threads, and every peer that was measured."""

    network: str
    size: tuple[int, ...]
    check: tuple[int, ...]
    batch: int
    threads: int
    peers: list[Measured]

    @property
    def voxels(self) -> int:
        return self.batch * torch.Size(self.size[1:]).numel()

    def record(self) -> dict[str, Any]:
        """For JSON, with throughput."""
        peers = []
        for peer in self.peers:
            rates = {}
            if peer.seconds:
                rates = {
                    "median_seconds": peer.median,
                    "voxels_per_second": self.voxels / peer.median,
                    "volumes_per_second": self.batch / peer.median,
                }
            peers.append(asdict(peer) | rates)
        return asdict(self) | {"peers": peers}


class _Process:
    """A worker, and what it takes to speak with it."""

    def __init__(self, peer: Peer, case: Case, folder: Path, python: str) -> None:
        self.folder = folder / re.sub(r"\W+", "_", peer.name)
        self.folder.mkdir(exist_ok=True)
        weights = self.folder / "weights.pt"
        if (folder / "weights.pt").exists() and not weights.exists():
            weights.symlink_to(folder / "weights.pt")
        setup = {
            "peer": peer.name,
            "network": case.network,
            "size": case.size,
            "check": case.check,
            "batch": case.batch,
            "threads": case.threads,
            "folder": str(self.folder),
        }
        malloc = RETAINING if peer.retaining else ""
        environment = os.environ | {"OMP_NUM_THREADS": str(case.threads), "GLIBC_TUNABLES": malloc}
        self.log = open(self.folder / "log", "w")  # noqa: SIM115
        self.process = subprocess.Popen(
            [python, "-c", START, json.dumps(setup), str(Path(__file__).parents[1])],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
        )

    def ask(self, what: str) -> dict[str, Any]:
        """The reply; ``error`` in it says what went wrong."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(f"{what}\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if line:
            reply: dict[str, Any] = json.loads(line)
            return reply
        code = self.process.wait()
        said = Path(self.log.name).read_text().strip().splitlines()
        return {"error": f"the process ended with {code}: {said[-1][:200] if said else ''}"}

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()
        self.log.close()


def measure(
    name: str,
    *,
    size: tuple[int, ...] | None = None,
    check: tuple[int, ...] | None = None,
    batch: int = 1,
    threads: int | None = None,
    precisions: Sequence[str] = ("float32", "bfloat16"),
    only: Sequence[str] = (),
    rounds: int = 5,
    ipex_python: Path | None = None,
    say: Callable[[str], object] = lambda line: None,
) -> Case:
    """Runs a network on volnet and on every peer that is installed, in rounds that go round them.

    Each has a process of its own. They are prepared one after the other; when memory is short, those that
    are ready run their rounds and end, and the others follow in another heat. volnet runs in every heat.

    Args:
        name, size, check: of :func:`volnet.bench.networks.make`.
        batch: volumes at once.
        threads: to compute with; by default torch's number.
        precisions: of the peers, ``"float32"`` and ``"bfloat16"``.
        only: the peers whose names have one of these parts; empty: all.
        rounds: each runs every peer once.
        ipex_python: the interpreter of an environment that has IPEX.
        say: is told what goes on.

    Raises:
        ValueError: there is no such network or peer, or it does not run.
    """
    network: Network = make(name, size, check)
    threads = threads or torch.get_num_threads()
    case = Case(name, network.size, network.check, batch, threads, [])
    for part in only:
        if not any(part in peer for peer in PEERS):
            raise ValueError(f"no peer has {part} in its name; there are {'; '.join(PEERS)}")
    chosen = [peer for peer in PEERS.values() if not only or any(part in peer.name for part in only)]
    chosen = [peer for peer in chosen if peer.precision in precisions and peer.name != VOLNET]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        say(f"{name}: float64 and torch's float32")
        _reference(case, folder)
        waiting, heat = [(PEERS[VOLNET], sys.executable)], 0
        for peer in chosen:
            python = str(ipex_python) if ipex_python and peer.needs == PEERS[IPEX].needs else sys.executable
            absent = None if python != sys.executable else missing(peer)
            if absent:
                case.peers.append(Measured(peer.name, peer.precision, failure=absent))
            else:
                waiting.append((peer, python))
        while waiting:
            waiting = _heat(case, waiting, heat, folder, rounds, say)
            heat += 1
            if waiting:
                waiting.insert(0, (PEERS[VOLNET], sys.executable))
    order = [*PEERS]
    case.peers.sort(key=lambda measured: (measured.failure is not None, order.index(measured.peer)))
    return case


def _reference(case: Case, folder: Path) -> None:
    process = _Process(PEERS["torch"], case, folder, sys.executable)
    try:
        reply = process.ask("reference")
    finally:
        process.end()
    if "error" in reply:
        raise ValueError(f"{case.network}: {reply['error']}")
    for file in ("weights.pt", "check.pt", "timed.pt"):
        (process.folder / file).rename(folder / file)


def _heat(
    case: Case,
    waiting: list[tuple[Peer, str]],
    heat: int,
    folder: Path,
    rounds: int,
    say: Callable[[str], object],
) -> list[tuple[Peer, str]]:
    """Measures as many as fit in memory, volnet first, and returns the others."""
    ready: list[tuple[_Process, Measured]] = []
    largest = 0
    try:
        while waiting and (len(ready) < 2 or proc("meminfo", "MemAvailable") > ROOM * largest):
            (peer, python), *waiting = waiting
            say(f"{case.network}: preparing {peer.name}")
            process = _Process(peer, case, folder, python)
            measured = Measured(peer.name, peer.precision, heat=heat)
            ready.append((process, measured))
            reply = process.ask("prepare")
            if "error" in reply:
                measured.failure = reply["error"]
                process.end()
                continue
            largest = max(largest, reply["peak"])
            measured.prepare_seconds = reply["prepare_seconds"]
            measured.error = _distance(process.folder / "check.pt", folder / "check.pt")
            measured.difference = _distance(process.folder / "timed.pt", folder / "timed.pt")
        _rounds(case, ready, rounds, say)
    finally:
        for process, _ in ready:
            process.end()
    ours = next((measured.seconds for _, measured in ready if measured.peer == VOLNET), [])
    for _, measured in ready:
        measured.volnet_seconds = ours
        if measured.peer != VOLNET or heat == 0:
            case.peers.append(measured)
    return waiting


def _rounds(
    case: Case, ready: list[tuple[_Process, Measured]], rounds: int, say: Callable[[str], object]
) -> None:
    for number in range(rounds):
        say(f"{case.network}: round {number + 1} of {rounds}, {len(ready)} peers")
        for process, measured in ready:
            if measured.failure is not None:
                continue
            time.sleep(PAUSE)
            reply = process.ask("run")
            if "error" in reply:
                measured.failure = reply["error"]
                continue
            measured.seconds.append(reply["seconds"])
            measured.peak = max(measured.peak or 0, reply["peak"])
            if reply["joules"] is not None:
                measured.joules = min(measured.joules or reply["joules"], reply["joules"])


def _distance(file: Path, reference: Path) -> float:
    """Relative L2, the largest of all results."""
    pairs = zip(torch.load(file), torch.load(reference), strict=True)
    return max(float((a.double() - b.double()).norm() / b.double().norm()) for a, b in pairs)
