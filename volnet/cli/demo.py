"""`volnet demo`: the whole way once, on a phantom or on a scan of the user's."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from volnet.cli.detect import MaxFindings, Overwrite, ScoreThreshold, detect, detect_and_report
from volnet.cli.errors import one_line_errors
from volnet.cli.phantom import CT_FOLDER, Nodules, Seed, write_phantom
from volnet.cli.tables import found_table, match_planted
from volnet.report import RESEARCH_USE, staged_folder


def demo(
    scan: Annotated[
        Path | None,
        typer.Argument(
            metavar="[CT]",
            help="A CT of yours; without one, a phantom.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder to write.")] = Path("volnet-demo"),
    overwrite: Overwrite = False,
    seed: Seed = 0,
    nodules: Nodules = 5,
    score_threshold: ScoreThreshold = 0.3,
    max_findings: MaxFindings = 20,
) -> None:
    """Find nodules in a made-up chest, and compare them with those planted in it.

    Without a CT: writes a phantom as a DICOM series, reads it back, detects, and prints found against
    planted. A nodule counts as found when a finding's centre lies within its radius, as LUNA16 counts.
    With a CT: the same as `volnet detect`.

    Examples:

    $ volnet demo --out demo

    $ volnet demo --out demo --seed 3 --nodules 8 --overwrite

    $ volnet demo scan/ --out demo
    """
    if scan is not None:
        detect(scan, out, overwrite=overwrite, score_threshold=score_threshold, max_findings=max_findings)
        return
    with one_line_errors(), staged_folder(out, overwrite=overwrite) as folder:
        planted = write_phantom(folder, seed=seed, nodules=nodules)
        # The folder is staged already and holds the phantom, which is what overwriting has to allow.
        _, findings = detect_and_report(
            folder / CT_FOLDER,
            folder,
            overwrite=True,
            identify_patient=False,
            score_threshold=score_threshold,
            max_findings=max_findings,
        )
    matches, false = match_planted(planted, findings)
    found = sum(match.finding is not None for match in matches)
    console = Console()
    console.print(found_table(matches, findings))
    console.print(
        f"{found} of {len(planted)} planted nodules found; "
        f"{len(false)} of {len(findings)} findings lie in no nodule"
    )
    console.print(f"Report: {out / 'report.html'}", highlight=False, soft_wrap=True, markup=False)
    console.print(RESEARCH_USE, style="dim")
