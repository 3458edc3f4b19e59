"""What the allocator costs torch's own operators: milliseconds (median / least) under settings of glibc.

    python benchmarks/allocator.py

Every setting has a process of its own, since glibc reads its settings when a process starts.
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

import torch
import torch.nn.functional as F
from conftest import RETAINING, machine_line

import volnet

HUGE = "glibc.malloc.hugetlb=1"
KEPT = f"glibc.malloc.mmap_threshold={1 << 40}:glibc.malloc.trim_threshold={1 << 40}"
RETAIN = "`volnet.memory.retain()`"
SETTINGS = {
    "as it comes": "",
    RETAIN: "",
    "huge pages only": HUGE,
    "kept only (`mmap_threshold`, `trim_threshold`)": KEPT,
    "kept, huge pages": f"{HUGE}:{KEPT}",
    "kept, huge pages, `top_pad` 512 MiB (used)": RETAINING,
}
WARM_UP, ROUNDS = 3, 15


def operations() -> dict[str, Callable[[], torch.Tensor]]:
    x = torch.randn(1, 32, 96, 96, 96)
    last = x.contiguous(memory_format=torch.channels_last_3d)
    weight = torch.randn(32, 32, 3, 3, 3).contiguous(memory_format=torch.channels_last_3d)
    return {
        "`relu`": lambda: torch.relu(x),
        "`add`": lambda: x + x,
        "`max_pool3d` 2^3, channels_last": lambda: F.max_pool3d(last, 2),
        "`conv3d` 32 to 32, channels_last": lambda: F.conv3d(last, weight, padding=1),
    }


def measure() -> dict[str, list[float]]:
    times = {}
    with torch.inference_mode():
        for name, call in operations().items():
            taken = []
            for _ in range(WARM_UP + ROUNDS):
                start = time.perf_counter()
                call()
                taken.append(1e3 * (time.perf_counter() - start))
            times[name] = taken[WARM_UP:]
    return times


def measured(setting: str) -> dict[str, list[float]]:
    """:func:`measure` in a process with this setting."""
    words = [sys.executable, __file__, "--child", *["--retain"] * (setting == RETAIN)]
    environment = os.environ | {"GLIBC_TUNABLES": SETTINGS[setting]}
    return json.loads(subprocess.run(words, env=environment, stdout=subprocess.PIPE, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--retain", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        if args.retain and not volnet.memory.retain():
            sys.exit("retain() needs glibc")
        print(json.dumps(measure()))
        return
    print(f"{machine_line().rpartition(';')[0]}\n")
    columns = list(operations())
    print(f"| setting | {' | '.join(columns)} |\n|{' --- |' * (1 + len(columns))}")
    for setting in SETTINGS:
        times = measured(setting)
        cells = [f"{statistics.median(times[c]):.0f} / {min(times[c]):.0f}" for c in columns]
        print(f"| {setting} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
