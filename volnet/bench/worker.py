"""A process of one peer: prepares a network, then runs it once for each line it is sent.

Its first argument is JSON, what :class:`Worker` takes; a request is a method's name, a reply is JSON, a line
each. Not in this process's environment, perhaps: volnet.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .networks import Network, answers, make, volume
from .peers import PEERS

__all__ = ["main", "proc"]

RAPL = Path("/sys/class/powercap")


class Worker:
    """What :mod:`volnet.bench.run` asks for.

    Args:
        peer: name in ``PEERS``.
        network, size, check: of :func:`make`.
        batch: volumes at once.
        threads: to compute with.
        folder: where weights are, and answers go.
    """

    def __init__(
        self,
        peer: str,
        network: str,
        size: list[int],
        check: list[int],
        batch: int,
        threads: int,
        folder: str,
    ) -> None:
        torch.set_num_threads(threads)
        self.network: Network = make(network, tuple(size), tuple(check))
        self.peer, self.batch, self.threads, self.folder = peer, batch, threads, Path(folder)
        self.call: Callable[[], Any] = lambda: None

    def reference(self) -> dict[str, Any]:
        """Writes weights, and what the network answers: in float64 to the smaller volume, in torch's float32
        to the one that is measured."""
        torch.manual_seed(0)
        model = self.network.factory().eval()
        channels, size = self.network.size[0], self.network.size[1:]
        timed, small = volume(self.batch, channels, size), volume(1, channels, self.network.check)
        with_statistics(model, timed)
        torch.save(model.state_dict(), self.folder / "weights.pt")
        self._write("timed", model(timed))
        self._write("check", model.double()(small.double()))
        return {}

    def prepare(self) -> dict[str, Any]:
        """The answer to the smaller volume, then everything up to the first timed run, with two warm-ups."""
        self._load(1, self.network.check)
        self._write("check", self.call())
        del self.call
        gc.collect()
        torch.compiler.reset()
        start = time.perf_counter()
        self._load(self.batch, self.network.size[1:])
        self.call()
        seconds = time.perf_counter() - start
        _reset_peak()
        self._write("timed", self.call())
        return {"prepare_seconds": seconds, "peak": self._peak()}

    def run(self) -> dict[str, Any]:
        """Once; the peak is the process's, with weights and all, or the device's."""
        _reset_peak()
        before, start = _energy(), time.perf_counter()
        self.call()
        seconds, after = time.perf_counter() - start, _energy()
        return {"seconds": seconds, "joules": _joules(before, after), "peak": self._peak()}

    def _load(self, batch: int, size: tuple[int, ...]) -> None:
        model = self.network.factory()
        model.load_state_dict(torch.load(self.folder / "weights.pt"))
        x = volume(batch, self.network.size[0], size)
        self.call = PEERS[self.peer].prepare(model.eval(), x, self.threads)

    def _write(self, name: str, result: Any) -> None:
        tensors = [tensor.detach().cpu() for tensor in answers(result)]
        torch.save(
            [t if t.dtype == torch.float64 else t.float() for t in tensors], self.folder / f"{name}.pt"
        )

    def _peak(self) -> int:
        if PEERS[self.peer].needs == "CUDA":
            return torch.cuda.max_memory_allocated()
        return proc("self/status", "VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def with_statistics(model: nn.Module, x: torch.Tensor) -> None:
    """Gives batch norms the statistics of a volume, without which a network of random weights may grow its
    values beyond all bounds."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    if norms:
        model(x)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.eval()
        norm.momentum = momentum


def proc(file: str, name: str) -> int:
    """Bytes, of a file in /proc; 0 where there is none."""
    try:
        lines = Path("/proc", file).read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0)


def _reset_peak() -> None:
    """Lets VmHWM begin anew; where that is not allowed, it is the peak since the process began."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _energy() -> dict[str, int]:
    """Microjoules that each processor package has used, where they may be read."""
    try:
        return {str(zone): int((zone / "energy_uj").read_text()) for zone in RAPL.glob("intel-rapl:?")}
    except (OSError, ValueError):
        return {}


def _joules(before: dict[str, int], after: dict[str, int]) -> float | None:
    total = 0
    for zone, counter in after.items():
        used = counter - before.get(zone, counter)
        total += used if used >= 0 else used + int((Path(zone) / "max_energy_range_uj").read_text())
    return total * 1e-6 if after else None


def main() -> None:
    """Libraries write to standard output what they like: it goes to standard error."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    worker: Worker | None = None
    with torch.no_grad():
        for line in sys.stdin:
            try:
                worker = worker or Worker(**json.loads(sys.argv[1]))
                reply = getattr(worker, line.strip())()
            except Exception as error:
                reason = " ".join(str(error).split())
                reply = {"error": f"{type(error).__name__}: {reason[:200]}"}
            print(json.dumps(reply), file=replies, flush=True)
