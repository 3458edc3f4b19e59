"""Train nodule_rpn from a shell.

    MALLOC_MMAP_THRESHOLD_=8000000000 MALLOC_TRIM_THRESHOLD_=8000000000 \\
    python -m volnet.train.nodule_rpn DATA_DIR OUT_DIR --minutes 55

The two variables make the C library keep freed memory: without them a good part of the time goes into pages
that the kernel clears again and again.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from volnet.train.nodule_rpn.loop import describe, train


def main() -> None:
    """Parse the arguments, train, and print a line of metrics now and then."""
    parser = argparse.ArgumentParser(
        prog="python -m volnet.train.nodule_rpn", description="Train nodule_rpn."
    )
    parser.add_argument("data_dir", type=Path, help="folder with lidc_nodule_crops, lidc_scans, ...")
    parser.add_argument(
        "out", type=Path, help="folder for weights, checkpoint and metrics.csv; resumed if used"
    )
    parser.add_argument("--minutes", type=float, default=55.0, help="wall clock to use")
    parser.add_argument("--steps", type=int, default=6000, help="batches at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--side", type=int, default=96, help="voxels along each axis of a patch")
    parser.add_argument("--workers", type=int, default=1, help="processes that make patches")
    parser.add_argument("--float32", action="store_true", help="float32 on volnet's kernels")
    parser.add_argument(
        "--extra-scan",
        nargs=2,
        type=Path,
        action="append",
        default=[],
        metavar=("SCAN", "MASK"),
        help="another chest CT to plant nodules in, and the mask of its tumour; may be repeated",
    )
    args = parser.parse_args()

    def log(metrics: Mapping[str, Any]) -> None:
        if metrics["step"] % 25 == 0:
            print(describe(metrics), flush=True)

    weights = train(
        args.data_dir,
        args.out,
        minutes=args.minutes,
        steps=args.steps,
        seed=args.seed,
        batch_size=args.batch_size,
        side=args.side,
        workers=args.workers,
        bfloat16=not args.float32,
        extra_scans=[(scan, mask) for scan, mask in args.extra_scan],
        log=log,
    )
    print(weights)


if __name__ == "__main__":
    main()
