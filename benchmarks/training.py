"""Training steps (forward, backward, SGD) on volnet and on torch: time and peak memory.

    python benchmarks/training.py                  # the networks of the table, with every peer in turn
    python benchmarks/training.py basic_unet dynunet --rounds 3
    python benchmarks/training.py --quick          # small volumes: that it runs, not how fast
    python benchmarks/training.py --large batch    # one step over 32x128^3 with the reference detector
    python benchmarks/training.py --large ct       # one step of a U-Net on a CT of 512x512x256

Every peer has a process of its own with a malloc that keeps its memory, and they run in turn, a step at a
time. torch runs in both layouts; the better one counts. The reference detector has torch's own layers there.
The peak is the resident memory of the process at its worst (VmHWM), and beside it what the step adds to what
was there before: parameters, input and libraries.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from conftest import RETAINING, machine_line
from torch import Tensor, nn

from volnet.bench.networks import answers, dynunet, import_torchvision, volume
from volnet.bench.worker import proc

PEERS = ("volnet", "volnet, saved in bfloat16", "torch", "torch, channels_last_3d")


def basic_unet() -> nn.Module:
    import_torchvision()
    from monai.networks.nets import BasicUNet

    return BasicUNet(3, 1, 2, norm=("group", {"num_groups": 8}))


def nodule_rpn() -> nn.Module:
    from volnet.models.nodule_rpn import NoduleRPN

    return NoduleRPN()


def full_resolution_unet() -> nn.Module:
    import_torchvision()
    from monai.networks.nets import BasicUNet

    return BasicUNet(3, 1, 2, (16, 32, 64, 128, 256, 16), norm=("instance", {"affine": True}))


@dataclass(frozen=True)
class Case:
    make: Callable[[], nn.Module]
    size: tuple[int, ...]
    quick: tuple[int, ...]


CASES = {
    "basic_unet": Case(basic_unet, (1, 1, 96, 96, 96), (1, 1, 32, 32, 32)),
    "basic_unet x4": Case(basic_unet, (4, 1, 96, 96, 96), (2, 1, 32, 32, 32)),
    "dynunet": Case(dynunet, (1, 1, 128, 128, 128), (1, 1, 32, 32, 32)),
    "nodule_rpn x2": Case(nodule_rpn, (2, 1, 128, 128, 128), (2, 1, 32, 32, 32)),
}


def loss_of(result: Any) -> Tensor:
    """Of every value, with no arithmetic to speak of beside the network's."""
    return torch.stack([y.float().square().mean() for y in answers(result)]).sum()


def with_torchs_layers(model: nn.Module) -> nn.Module:
    """volnet.nn's modules are torch's with another forward."""
    for module in model.modules():
        kind = type(module)
        if kind.__module__.startswith("volnet.nn"):
            module.__class__ = getattr(nn, kind.__name__)
    return model


class Worker:
    """One peer's process: a step for each line it is sent."""

    def __init__(self, peer: str, name: str, quick: bool) -> None:
        case = CASES[name]
        torch.manual_seed(0)
        model = case.make().train()
        n, c, *space = case.quick if quick else case.size
        self.x = volume(n, c, tuple(space))
        if peer.startswith("torch"):
            model = with_torchs_layers(model)
            if "channels_last" in peer:
                model = model.to(memory_format=torch.channels_last_3d)
                self.x = self.x.to(memory_format=torch.channels_last_3d)
        else:
            import volnet

            model = volnet.optimize(model, saved_dtype=torch.bfloat16 if "bfloat16" in peer else None)
        self.model = model
        self.optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)
        self.resident = proc("self/status", "VmRSS")

    def step(self) -> dict[str, float]:
        start = time.perf_counter()
        self.optimizer.zero_grad()
        loss = loss_of(self.model(self.x))
        loss.backward()
        self.optimizer.step()
        peak = proc("self/status", "VmHWM")
        return {
            "seconds": time.perf_counter() - start,
            "loss": loss.item(),
            "peak": peak,
            "added": peak - self.resident,
        }


def serve(peer: str, name: str, quick: bool) -> None:
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    worker = Worker(peer, name, quick)
    for _ in sys.stdin:
        print(json.dumps(worker.step()), file=replies, flush=True)


def measure(name: str, rounds: int, quick: bool) -> dict[str, list[dict[str, float]]]:
    """A warm-up and ``rounds`` steps of every peer, in turn."""
    workers = {
        peer: subprocess.Popen(
            [sys.executable, __file__, "--serve", peer, name, *(["--quick"] if quick else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for peer in PEERS
    }
    found: dict[str, list[dict[str, float]]] = {peer: [] for peer in PEERS}
    try:
        for turn in range(rounds + 1):
            for peer, process in workers.items():
                assert process.stdin is not None
                assert process.stdout is not None
                process.stdin.write("step\n")
                process.stdin.flush()
                line = process.stdout.readline()
                if not line:
                    raise RuntimeError(f"{peer} on {name} ended with {process.wait()}")
                if turn:
                    found[peer].append(json.loads(line))
    finally:
        for process in workers.values():
            process.kill()
            process.wait()
    return found


def report(name: str, found: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    seconds = {peer: statistics.median(step["seconds"] for step in steps) for peer, steps in found.items()}
    best = min((peer for peer in found if peer.startswith("torch")), key=seconds.__getitem__)
    print(f"{name}: best of torch is {best}")
    for peer, steps in found.items():
        ratios = [t["seconds"] / s["seconds"] for s, t in zip(steps, found[best], strict=True)]
        last, theirs = steps[-1], found[best][-1]
        print(
            f"  {peer:28} {seconds[peer]:8.3f} s  {statistics.median(ratios):5.2f}x "
            f"({min(ratios):.2f}-{max(ratios):.2f})  peak {last['peak'] / 2**30:6.2f} GiB "
            f"({last['peak'] / theirs['peak']:.2f}), added {last['added'] / 2**30:6.2f} GiB "
            f"({last['added'] / max(theirs['added'], 1):.2f})  loss {last['loss']:.6f}"
        )
    return {"network": name, "best": best, "steps": found}


def one_large_step(model: nn.Module, x: Tensor, budget: str, **options: Any) -> None:
    """Plans, shows the plan, and runs one step."""
    import volnet
    from volnet.train.memory import fit_memory

    volnet.memory.retain()
    fitted = fit_memory(model.train(), x, budget, **options)
    print(fitted.memory_plan)
    optimizer = torch.optim.SGD(fitted.parameters(), 1e-3)
    start = time.perf_counter()
    loss = loss_of(fitted(x))
    loss.backward()
    optimizer.step()
    peak = proc("self/status", "VmHWM")
    print(
        f"{time.perf_counter() - start:.1f} s with capture, peak {peak / 2**30:.2f} GiB, "
        f"loss {loss.item():.6f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("networks", nargs="*", help=f"of {', '.join(CASES)}; all of them by default")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path, help="writes every step's figures")
    parser.add_argument("--large", choices=("batch", "ct"))
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    for name in given.networks:
        if name not in CASES:
            parser.error(f"no network {name}; there are {', '.join(CASES)}")
    if given.serve:
        return serve(*given.serve, given.quick)
    if not given.large:
        os.environ["GLIBC_TUNABLES"] = RETAINING  # of the workers, which inherit it
    print(machine_line(), flush=True)
    if given.large == "batch":
        x = volume(2, 1, (32,) * 3) if given.quick else volume(32, 1, (128,) * 3)
        return one_large_step(nodule_rpn(), x, "18GiB")
    if given.large == "ct":
        x = volume(1, 1, (32,) * 3 if given.quick else (256, 512, 512))
        return one_large_step(full_resolution_unet(), x, "20.5GiB", dtype=torch.bfloat16)
    written = []
    for name in given.networks or CASES:
        written.append(report(name, measure(name, 1 if given.quick else given.rounds, given.quick)))
    if given.json:
        given.json.write_text(json.dumps(written, indent=1))
    return None


if __name__ == "__main__":
    main()
