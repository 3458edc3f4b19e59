"""What a training measures, a row a step: CSV, TensorBoard, and a progress bar."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol


class Shows(Protocol):
    """Takes the metrics of each step."""

    def __call__(self, row: Mapping[str, Any], /) -> object: ...


class MetricsFile:
    """A CSV file with a row a step, continued where a checkpoint was taken.

    Args:
        path: of the file.
        step: rows of later steps, and one that was cut off, are dropped.

    The columns are those of the first row. A later row may lack some, and raises ValueError with others.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     for step in (0, 1):  # the second time as after an interruption: step 2 is done again
    ...         with MetricsFile(Path(folder, "metrics.csv"), step) as metrics:
    ...             for step in range(step + 1, 3):
    ...                 metrics.write({"step": step, "loss": 0.5})
    ...     print(Path(folder, "metrics.csv").read_text())
    step,loss
    1,0.5
    2,0.5
    <BLANKLINE>
    """

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        self._columns: list[str] | None = None
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        if step and lines:
            self._columns = next(csv.reader(lines[:1]))
        kept = [
            line
            for line in lines[1:]
            if line.endswith("\n")
            and line.partition(",")[0].isdigit()
            and int(line.partition(",")[0]) <= step
        ]
        aside = path.with_name(path.name + ".partial")
        aside.write_text("".join([*lines[:1], *kept]) if self._columns else "")
        os.replace(aside, path)
        self._file = open(path, "a", newline="")  # noqa: SIM115 - closed by __exit__

    def write(self, row: Mapping[str, Any]) -> None:
        """Add a row; its first entry is the step."""
        with self._named_errors():
            if self._columns is None:
                self._columns = list(row)
                csv.writer(self._file, lineterminator="\n").writerow(self._columns)
            csv.DictWriter(self._file, self._columns, lineterminator="\n").writerow(row)

    def sync(self) -> None:
        """Put everything written so far on the disk."""
        with self._named_errors():
            self._file.flush()
            os.fsync(self._file.fileno())

    def __enter__(self) -> MetricsFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._named_errors():
            self._file.close()

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        """A full disk is reported with the name of the file, which Python does not do for a write."""
        try:
            yield
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error


@contextmanager
def tensorboard(folder: Path, step: int) -> Iterator[Shows]:
    """Show rows in TensorBoard, continued after ``step``.

    Raises:
        ImportError: the package tensorboard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError("TensorBoard's package is missing: pip install 'volnet[tensorboard]'") from error
    writer = SummaryWriter(str(folder), purge_step=step + 1)

    def show(row: Mapping[str, Any]) -> None:
        for name, value in row.items():
            if name != "step" and isinstance(value, (int, float)):
                writer.add_scalar(name, value, row["step"])

    try:
        yield show
    finally:
        writer.close()


@contextmanager
def progress_bar(step: int, steps: int) -> Iterator[Shows]:
    """A bar on stderr with the loss and the time left."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("step"),
        MofNCompleteColumn(),
        BarColumn(),
        TextColumn("loss {task.fields[loss]:.4f}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=steps, completed=step, loss=float("nan"))
        yield lambda row: bar.update(task, completed=row["step"], loss=row["loss"])
