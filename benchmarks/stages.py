"""Which part of a convolution's time each of its stages takes, as Linux's `perf` samples it.

    python benchmarks/stages.py                           # some layers of benchmarks/shapes/conv3d.toml
    python benchmarks/stages.py "64 to 64, 64^3, 3^3"     # this one
    python benchmarks/stages.py --backward                # their gradients

A process runs one layer over and over. Only samples inside volnet's library count, so what Python and torch
do around a call does not. A function that belongs to no stage below stands for itself.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import ops
import torch
from operators import OPERATORS

from volnet import _C, isa

# By the name of a function; the first pattern that is found counts.
STAGES = {
    "weights": r"weight_transform|weights|pack|digest|block_sums",
    "input": r"input|copy|slice|split|gather|pad|transform_row",
    "output": r"output|store|gradient_sum",
    "products": r"product|multiply|outer_sum|[tT]ile|block_32",
}
LAYERS = (
    "32 to 32, 96^3, 3^3",
    "64 to 64, 64^3, 3^3",
    "256 to 256, 16^3, 3^3",
    "256 to 256, 48x48x40, 3^3",
)
SECONDS = 4.0


def run(name: str, backward: bool) -> None:
    wanted = "conv3d_backward" if backward else "conv3d"
    (operator,) = (o for o in OPERATORS if o.name == wanted)
    (shape,) = (s for s in ops.shapes(operator) if s["name"] == name)
    with torch.inference_mode():
        call = operator.work(shape).implementations["volnet channels_last"]
        end = time.perf_counter() + SECONDS
        while time.perf_counter() < end:
            call()


def sample(name: str, backward: bool, level: str) -> Counter[str]:
    """Shares of the samples by stage."""
    run = [sys.executable, __file__, "--run", name, *["--backward"] * backward]
    with tempfile.TemporaryDirectory() as folder:
        data = f"{folder}/perf.data"
        record = ["perf", "record", "--quiet", "-e", "cpu-clock", "-F", "997", "-o", data]
        subprocess.run([*record, *run], env=os.environ | {"VOLNET_MAX_ISA": level}, check=True)
        report = ["perf", "report", "-i", data, "--stdio", "-t", "\t", "--sort", "symbol"]
        report += ["--dso", Path(_C.__file__).name]
        text = subprocess.run(report, check=True, capture_output=True, text=True).stdout
    shares: Counter[str] = Counter()
    for percent, symbol in re.findall(r"^ *([\d.]+)% *\t\[\.\] ([^\t\n]+)", text, flags=re.MULTILINE):
        plain = symbol.replace("(anonymous namespace)::", "").removeprefix("void ")
        function = re.sub(r"[<(].*", "", plain).split("::")[-1].strip()
        stage = next((s for s, pattern in STAGES.items() if re.search(pattern, function)), function)
        shares[stage] += float(percent)
    total = shares.total()
    return Counter({stage: share / total for stage, share in shares.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description="Shares of the stages of convolutions.")
    parser.add_argument("layers", nargs="*", default=LAYERS)
    parser.add_argument("--backward", action="store_true")
    parser.add_argument("--run", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        run(arguments.layers[0], arguments.backward)
        return
    if shutil.which("perf") is None:
        sys.exit("perf is not installed")
    levels = [level for level in ("avx512", "amx") if level in isa.available()] or [isa.active()]
    rows = {
        f"{name} | {level}": sample(name, arguments.backward, level)
        for level in levels
        for name in arguments.layers
    }
    stages = list(dict.fromkeys([*STAGES, *(s for row in rows.values() for s in row)]))
    stages = [s for s in stages if any(row[s] >= 0.02 for row in rows.values())]
    print(f"| layer | level | {' | '.join(stages)} |\n|{' --- |' * (len(stages) + 2)}")
    for name, row in rows.items():
        print(f"| {name} | {' | '.join(f'{row[s]:.0%}' for s in stages)} |")


if __name__ == "__main__":
    main()
