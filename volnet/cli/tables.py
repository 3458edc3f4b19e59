"""Findings and planted nodules as tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from rich.table import Table

from volnet.report import slice_number

if TYPE_CHECKING:
    from volnet.data.phantom import PlantedNodule
    from volnet.detection.finding import Finding


def findings_table(findings: Sequence[Finding]) -> Table:
    """One row a finding, numbered as in the report."""
    table = Table(title="Findings", title_justify="left")
    for column in ("#", "score", "diameter, mm", "slice", "x, y, z (LPS), mm"):
        table.add_column(column, justify="right")
    for number, finding in enumerate(findings, 1):
        table.add_row(
            str(number),
            f"{finding.score:.2f}",
            f"{finding.diameter_mm:.1f}",
            str(slice_number(finding.center_voxel)),
            _position(finding.center_lps),
        )
    return table


def planted_table(nodules: Sequence[PlantedNodule]) -> Table:
    """One row a nodule of a phantom, numbered as planted."""
    table = Table(title="Planted nodules", title_justify="left")
    for column in ("#", "diameter, mm", "density, HU", "slice", "x, y, z (LPS), mm"):
        table.add_column(column, justify="right")
    for number, nodule in enumerate(nodules, 1):
        table.add_row(
            str(number),
            f"{nodule.diameter_mm:.1f}",
            f"{nodule.density_hu:.0f}",
            str(slice_number(nodule.center_voxel)),
            _position(nodule.center_lps),
        )
    return table


@dataclass(frozen=True)
class Match:
    """What became of one planted nodule.

    Attributes:
        nodule: what was planted.
        finding: index of the highest-scored finding whose centre lies within its radius; None if missed.
        distance_mm: between the two centres.
    """

    nodule: PlantedNodule
    finding: int | None
    distance_mm: float | None


def match_planted(
    nodules: Sequence[PlantedNodule], findings: Sequence[Finding]
) -> tuple[list[Match], list[int]]:
    """Compare findings with what was planted, as LUNA16 does.

    Args:
        nodules: what was planted.
        findings: best first.

    Returns:
        One match a nodule, and the indices of the findings that lie in no nodule. A second finding in a
        nodule counts neither as found nor as false.
    """
    places = np.array([f.center_lps for f in findings], float).reshape(-1, 3)
    matches, inside = [], np.zeros(len(findings), bool)
    for nodule in nodules:
        distance = np.linalg.norm(places - nodule.center_lps, axis=1)
        hits = distance < nodule.diameter_mm / 2
        inside |= hits
        first = int(np.argmax(hits)) if hits.any() else None
        matches.append(Match(nodule, first, None if first is None else float(distance[first])))
    return matches, [int(i) for i in np.flatnonzero(~inside)]


def found_table(matches: Sequence[Match], findings: Sequence[Finding]) -> Table:
    """Found against planted, one row a nodule."""
    table = Table(title="Found against planted", title_justify="left")
    for column in ("planted", "diameter, mm", "x, y, z (LPS), mm", "finding", "score", "distance, mm"):
        table.add_column(column, justify="right", no_wrap=column.startswith("x"))
    for number, match in enumerate(matches, 1):
        found = ("[red]missed[/]", "", "")
        if match.finding is not None:
            score = findings[match.finding].score
            found = (f"[green]{match.finding + 1}[/]", f"{score:.2f}", f"{match.distance_mm:.1f}")
        table.add_row(
            str(number), f"{match.nodule.diameter_mm:.1f}", _position(match.nodule.center_lps), *found
        )
    return table


def _position(lps: Sequence[float]) -> str:
    return ", ".join(f"{c:.1f}" for c in lps)
