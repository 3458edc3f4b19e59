"""`volnet detect`: from a scan to a report."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from volnet.cli.errors import one_line_errors
from volnet.cli.tables import findings_table
from volnet.report import RESEARCH_USE, check_output_folder, write_report

if TYPE_CHECKING:
    from volnet.data.volume import CTVolume
    from volnet.detection.finding import Finding

ScoreThreshold = Annotated[
    float, typer.Option(min=0.0, max=1.0, help="Leave out findings that score less.", show_default=True)
]
MaxFindings = Annotated[int, typer.Option(min=1, help="At most so many findings, the best ones.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace the results of an earlier run once there are new ones.")
]


def detect(
    scan: Annotated[
        Path,
        typer.Argument(metavar="INPUT", help="DICOM folder or .zip, NIfTI, MHA/MHD or NRRD."),
    ],
    out: Annotated[Path, typer.Option(help="Folder to write; made if it is not there.", show_default=False)],
    overwrite: Overwrite = False,
    identify_patient: Annotated[
        bool,
        typer.Option(
            "--identify-patient",
            help="Put the patient's name, ids and dates into the results.",
        ),
    ] = False,
    score_threshold: ScoreThreshold = 0.3,
    max_findings: MaxFindings = 20,
) -> None:
    """Find lung nodules in a chest CT and write a report with pictures.

    Writes report.html (open it in a browser), findings.json, and findings.csv in LUNA16's columns. They
    appear together at the end, or not at all. Nothing in them names the patient unless asked for.

    Examples:

    $ volnet detect scan/ --out report                  # a folder of DICOM slices

    $ volnet detect scan.zip --out report --overwrite

    $ volnet detect scan.nii.gz --out report --score-threshold 0.1 --max-findings 50

    Exit codes: 0 done, 2 the input or the output folder cannot be used (one line says why).

    For research use only: volnet is not a medical device.
    """
    with one_line_errors():
        _, findings = detect_and_report(
            scan,
            out,
            overwrite=overwrite,
            identify_patient=identify_patient,
            score_threshold=score_threshold,
            max_findings=max_findings,
        )
    console = Console()
    console.print(findings_table(findings) if findings else "No findings.")
    console.print(f"Report: {out / 'report.html'}", highlight=False, soft_wrap=True, markup=False)
    console.print(RESEARCH_USE, style="dim")


def detect_and_report(
    scan: Path,
    out: Path,
    *,
    overwrite: bool,
    identify_patient: bool,
    score_threshold: float,
    max_findings: int,
) -> tuple[CTVolume, list[Finding]]:
    """Read, detect and write, with a progress bar on stderr.

    Returns:
        The scan and its findings, best first.

    Raises:
        InvalidScanError: the scan cannot be read as a CT.
        OutputFolderError: `out` cannot be written; known before any work is done.
    """
    check_output_folder(out, overwrite=overwrite)
    # `volnet info` and `--help` are to come at once, and where the readers' packages are missing.
    from volnet.data.read import read_ct
    from volnet.models import detect_nodules
    from volnet.models.nodule_rpn.detect import DEFAULT_WEIGHTS, MODEL_NAME

    # A block takes up to a minute, so the estimate has to look back further than rich's half minute.
    with Progress(
        SpinnerColumn(finished_text="[green]✓[/]"),
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        console=Console(stderr=True),
        speed_estimate_period=3600.0,
    ) as bar:
        reading, lungs, inference, report = (
            bar.add_task(name, total=None, start=False)
            for name in ("Read the scan", "Find the lungs", "Look for nodules", "Write the report")
        )

        bar.start_task(reading)
        ct = read_ct(scan)
        bar.update(reading, total=1, completed=1)

        def blocks(done: int, total: int) -> None:
            if done == 0:
                bar.update(lungs, total=1, completed=1)
                bar.start_task(inference)
            bar.update(inference, total=total, completed=done)

        bar.start_task(lungs)
        findings = detect_nodules(
            ct, score_threshold=score_threshold, max_findings=max_findings, progress=blocks
        )

        bar.start_task(report)
        write_report(
            out,
            ct,
            findings,
            model_name=MODEL_NAME,
            model_version=_version(DEFAULT_WEIGHTS),
            settings={"score_threshold": score_threshold, "max_findings": max_findings},
            identify_patient=identify_patient,
            overwrite=overwrite,
        )
        bar.update(report, total=1, completed=1)
    return ct, findings


def _version(weights: Path) -> str:
    """The start of the weights' SHA-256: it changes whenever they do, which a number kept by hand may not."""
    return hashlib.sha256(weights.read_bytes()).hexdigest()[:12]
