"""Every operator side by side with its peers.

    python -m pytest benchmarks/ops.py --benchmark-json=ops.json            # all shapes of benchmarks/shapes
    python -m pytest benchmarks/ops.py -k "nms3d or max_pool3d"
    python -m pytest benchmarks/ops.py --quick --benchmark-disable          # tiny shapes, once, only checked

A case is an operator and a shape. All its implementations run in turn, round after round, in one process:
after a warm-up in which every answer is checked, five rounds or more. Each round also copies memory and
multiplies matrices, which gives the floor that the case is compared with. pytest-benchmark records every
implementation as a benchmark of its own, with the times of that interleaved run.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from operators import OPERATORS, Operator, Shape, Work
from operators.work import partial

from volnet import isa

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # comes with pytest there

Kernels = tuple[tuple[str, str], ...]  # of convolutions, with their ISA levels


@dataclass(frozen=True, eq=False)
class Result:
    """Times are seconds, one a round; the same position in each list is the same round."""

    shape: Shape
    work: Work
    times: dict[str, list[float]]
    errors: dict[str, float]
    kernels: dict[str, Kernels]
    speed: dict[str, float]  # measured: bytes copied a second, FLOP/s of matrix products

    def best(self, names: Sequence[str]) -> str | None:
        ran = [name for name in names if self.times.get(name)]
        return min(ran, key=lambda name: statistics.median(self.times[name]), default=None)

    @property
    def volnet(self) -> str | None:
        return self.best([name for name in self.times if name.startswith("volnet")])

    def floor(self, implementation: str) -> dict[str, float]:
        """Seconds of the memory traffic and of the arithmetic, at the speeds measured. The arithmetic is that
        of the algorithms that ran; two of them, for the gradients of input and weight, share it evenly."""
        ran = self.kernels.get(implementation, ()) or (("", ""),)
        arithmetic = 0.0
        for name, level in ran:
            flops = self.work.flops / len(ran)
            if "wino" in name:
                flops *= self.work.winograd
            if level == "amx" and "f32" in name:
                flops *= 3  # a float32 is the sum of two bfloat16; the product of the low parts is left out
            half = level in ("amx", "avx512_bf16")
            arithmetic += flops / self.speed["bfloat16" if half else "float32"]
        return {"memory": self.work.bytes / self.speed["bandwidth"], "arithmetic": arithmetic}

    @property
    def peer(self) -> str | None:
        return self.best([name for name in self.times if not name.startswith("volnet")])

    def ratio(self, peer: str, ours: str) -> dict[str, float]:
        """How many times as long as ``ours`` the peer takes: the median over the rounds, and its spread."""
        ratios = [p / o for p, o in zip(self.times[peer], self.times[ours], strict=True)]
        return {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}


def measure(work: Work, shape: Shape, timed: bool) -> Result:
    """Checks every answer, and times all implementations in turn."""
    quick = bool(shape.get("quick"))
    errors, first, kernels = {}, {}, {}
    runs = dict(work.implementations)
    for name in work.implementations:
        calls = {kernel: count for kernel, _, count in isa.kernels()}
        try:
            start = time.perf_counter()
            answer = runs[name]()
            first[name] = time.perf_counter() - start
        except RuntimeError as reason:
            if name.startswith("volnet") or "not implemented" not in str(reason):
                raise
            del runs[name]  # torch has no such variant
        else:
            errors[name] = work.error(answer)
            kernels[name] = tuple(
                (kernel, level)
                for kernel, level, count in isa.kernels()
                if kernel.startswith("conv") and count > calls[kernel]
            )
            del answer
    work = replace(work, implementations={}, error=lambda _: 0.0)  # what holds memory
    if not timed:
        return Result(shape, work, {}, errors, kernels, {})

    runs |= {f"speed {name}": run for name, run in speed_runs(quick).items()}
    loops = {}
    for name, run in runs.items():
        if first.get(name, 0) < 1:  # a second warm-up, which tells how often to run in a round
            start = time.perf_counter()
            run()
            first[name] = time.perf_counter() - start
        loops[name] = max(1, int(2e-3 / first[name]))
    times: dict[str, list[float]] = {name: [] for name in runs}
    rounds = min(max(5, int(3 / sum(first.values()))), 5 if quick else 25)
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            for _ in range(loops[name]):
                run()
            times[name].append((time.perf_counter() - start) / loops[name])

    seconds = {name: statistics.median(times.pop(name)) for name in list(times) if name.startswith("speed")}
    speed = {name: 2 * MATMUL_SIZE[quick] ** 3 / seconds[f"speed {name}"] for name in ("float32", "bfloat16")}
    speed["bandwidth"] = 2 * COPY_BYTES[quick] / min(t for name, t in seconds.items() if "copy" in name)
    return Result(shape, work, times, errors, kernels, speed)


COPY_BYTES = {False: 1 << 28, True: 1 << 20}  # larger than most caches; quick or not
MATMUL_SIZE = {False: 1536, True: 64}


def speed_runs(quick: bool) -> dict[str, Callable[[], Any]]:
    """The machine's speed: matrix products, and two ways to copy memory that is mapped already, the faster of
    which counts."""
    source, target = (torch.ones(COPY_BYTES[quick], dtype=torch.uint8) for _ in range(2))
    a = torch.ones(MATMUL_SIZE[quick], MATMUL_SIZE[quick])
    half = a.bfloat16()
    threads = torch.get_num_threads()
    parts = [
        (s.numpy(), t.numpy()) for s, t in zip(source.chunk(threads), target.chunk(threads), strict=True)
    ]
    executor = ThreadPoolExecutor(threads)
    return {
        "copy by torch": partial(target.copy_, source),
        "copy by memcpy": lambda: list(executor.map(lambda part: np.copyto(part[1], part[0]), parts)),
        "float32": partial(torch.mm, a, a),
        "bfloat16": partial(torch.mm, half, half),
    }


_clock = 0.0


def interleaved_clock() -> float:
    """pytest-benchmark's timer. It stands still but for the durations that the interleaved run has measured,
    which the test lets pass one by one."""
    return _clock


def shapes(operator: Operator) -> list[Shape]:
    """What ``operator`` runs: the shapes of its file, and those that it runs in bfloat16 too."""
    file = Path(__file__).parent / "shapes" / f"{operator.shapes}.toml"
    shapes: list[Shape] = tomllib.loads(file.read_text(encoding="utf-8"))["shape"]
    if operator.name == "conv3d_backward":
        return [
            shape | {"group": f"{shape['group']}, both gradients"}
            for shape in shapes
            if "backward" in shape.get("also", [])
        ]
    half = [
        shape
        | {"name": f"{shape['name']}, bf16", "dtype": "bfloat16", "group": f"{shape['group']}, bfloat16"}
        for shape in shapes
        if "bfloat16" in shape.get("also", [])
    ]
    return shapes + half


def cases() -> list[Any]:
    result = []
    for operator in OPERATORS:
        for shape in shapes(operator):
            for implementation in operator.implementations:
                marks = [pytest.mark.quick] if shape.get("quick") else []
                values = (operator, shape, implementation)
                name = f"{operator.name}: {shape['name']}: {implementation}"
                result.append(pytest.param(*values, id=name, marks=marks))
    return result


@pytest.mark.parametrize(("operator", "shape", "implementation"), cases())
@pytest.mark.benchmark(timer=interleaved_clock)
def test_operator(
    operator: Operator,
    shape: Shape,
    implementation: str,
    benchmark: Any,
    results: dict[tuple[str, str], Result],
) -> None:
    key = (operator.name, shape["name"])
    if key not in results:
        with torch.inference_mode():
            results[key] = measure(operator.work(shape), shape, benchmark.enabled)
    result = results[key]
    if implementation not in result.errors:
        pytest.skip("not installed" if implementation == "monai" else "torch has no such variant")
    # A peer may be less accurate (torch sums norms of channels_last in float32), but has to do the same.
    slack = 1 if implementation.startswith("volnet") else 100
    assert result.errors[implementation] <= slack * result.work.tolerance

    times = result.times.get(implementation, [0.0])
    passing = iter(times)

    def let_one_round_pass() -> None:
        global _clock
        _clock += next(passing)

    benchmark.group = ": ".join(key)
    benchmark.pedantic(let_one_round_pass, rounds=len(times))
    benchmark.extra_info["error"] = result.errors[implementation]
    if not result.times:
        return
    benchmark.extra_info |= result.speed
    if implementation.startswith("volnet"):
        benchmark.extra_info |= result.floor(implementation)
    benchmark.extra_info["kernels"] = [name for name, _ in result.kernels[implementation]]
    if result.volnet and implementation != result.volnet:
        benchmark.extra_info["times_as_long_as_volnet"] = result.ratio(implementation, result.volnet)
