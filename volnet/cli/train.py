"""`volnet train`: a training from a config file; `volnet train-detector`: the weights of nodule_rpn again."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

from volnet.cli.errors import BAD_INPUT, one_line_errors

_STEPS_PER_LINE = 25


def train(
    config: Annotated[
        Path | None, typer.Argument(help="A TOML file; --example prints one.", show_default=False)
    ] = None,
    example: Annotated[
        bool, typer.Option("--example", help="Print a config with comments and exit.")
    ] = False,
) -> None:
    """Train a network on volumes, or go on where an earlier run of the same config stopped.

    Writes weights.safetensors, checkpoints and metrics.csv into the folder that the config names. Ctrl-C or
    SIGTERM end it after the step, with a checkpoint; killed at any other moment, it goes on from the last
    one, and arrives at the same weights.

    Example:

    $ volnet train --example > config.toml

    $ volnet train config.toml
    """
    # Training needs packages that the other commands do not.
    from volnet.train.checkpoints import InvalidCheckpointError
    from volnet.train.config import EXAMPLE, ConfigError, read_config
    from volnet.train.loop import NonFiniteError
    from volnet.train.run import WEIGHTS
    from volnet.train.run import train as run_training

    if example:
        typer.echo(EXAMPLE, nl=False)
        return
    if config is None:
        typer.echo("volnet: error: a config file is missing; --example prints one", err=True)
        raise typer.Exit(BAD_INPUT)
    interactive = sys.stderr.isatty()

    def log(row: Mapping[str, Any]) -> None:
        if not interactive and (row["step"] == 1 or row["step"] % _STEPS_PER_LINE == 0):
            typer.echo(f"step {row['step']}: loss {row['loss']:.4f}, {row['seconds']:.0f} s", err=True)

    with one_line_errors(ConfigError, InvalidCheckpointError, NonFiniteError), _signals() as stop:
        wanted = read_config(config)
        done = run_training(wanted, stop=stop, log=log, progress=interactive)
        left = "" if done == wanted.run.steps else f", {done} of {wanted.run.steps} steps; run again to go on"
        typer.echo(f"Weights: {Path(wanted.run.out) / WEIGHTS}{left}")


@contextmanager
def _signals() -> Iterator[Callable[[], bool]]:
    """Ask for the end after the step on the first Ctrl-C or SIGTERM; the second does what it always does."""
    asked = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        signal.signal(number, before[signal.Signals(number)])

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
    from volnet.train.loop import NonFiniteError
    from volnet.train.nodule_rpn import train
    from volnet.train.nodule_rpn.loop import describe

    def log(metrics: Mapping[str, Any]) -> None:
        if metrics["step"] % _STEPS_PER_LINE == 0:
            typer.echo(describe(metrics))

    with one_line_errors(InvalidCheckpointError, NonFiniteError):
        typer.echo(f"Weights: {train(data, out, minutes=minutes, seed=seed, log=log)}")
