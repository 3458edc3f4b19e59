"""`volnet train-detector`: make the weights of nodule_rpn again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from volnet.cli.errors import one_line_errors

_STEPS_PER_LINE = 25


def train_detector(
    data: Annotated[
        Path, typer.Option(help="Folder with lidc_scans, lidc_nodule_crops ...", show_default=False)
    ],
    out: Annotated[
        Path, typer.Option(help="Folder for weights, checkpoint and metrics.csv.", show_default=False)
    ],
    minutes: Annotated[
        float, typer.Option(min=0.0, help="Stop after this long, all resumptions counted.")
    ] = 55.0,
    seed: Annotated[int, typer.Option(min=0, help="Of weights and patches.")] = 0,
) -> None:
    """Train the nodule detector, or go on where an earlier run in the same folder stopped.

    Writes OUT/nodule_rpn.safetensors, a checkpoint, and metrics.csv with a row a step.

    Example:

    $ volnet train-detector --data data --out training --minutes 120
    """
    # Training needs packages that finding nodules does not.
    from volnet.train.checkpoints import InvalidCheckpointError
    from volnet.train.nodule_rpn import train
    from volnet.train.nodule_rpn.loop import describe

    def log(metrics: Mapping[str, Any]) -> None:
        if metrics["step"] % _STEPS_PER_LINE == 0:
            typer.echo(describe(metrics))

    with one_line_errors(InvalidCheckpointError):
        typer.echo(f"Weights: {train(data, out, minutes=minutes, seed=seed, log=log)}")
