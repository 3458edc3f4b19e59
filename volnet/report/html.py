"""The report for people: one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from volnet.report.findings import slice_number
from volnet.report.pictures import Plane, UprightVolume

if TYPE_CHECKING:
    from volnet.data.volume import CTVolume
    from volnet.detection.finding import Finding

#: Side of the square shown around a finding; grown for findings that would fill it.
FIELD_MM = 64.0
_PIXEL_MM = 0.3
_OVERVIEW_PIXELS = 320


_LABELS = {
    "model": "scanner",
    "slice_thickness": "slice thickness, mm",
    "kvp": "tube voltage, kV",
    "exposure": "exposure, mAs",
    "gantry_tilt": "gantry tilt, degrees",
}


def _label(name: str) -> str:
    return _LABELS.get(name, name.replace("_", " "))


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return ", ".join(map(_value, value))
    return str(value)


def render_html(ct: CTVolume, findings: Sequence[Finding], record: Mapping[str, Any]) -> str:
    """`report.html` as text.

    Args:
        ct: the scan, for the pictures alone: every word comes from `record`.
        findings: those of `record`, in its order.
        record: `volnet.report.findings.findings_record` of both.
    """
    volume = UprightVolume(ct)
    extent = max(n * s for n, s in zip(volume.voxels.shape, volume.spacing, strict=True))
    overview_pixel = extent / _OVERVIEW_PIXELS
    planes: tuple[Plane, ...] = ("axial", "coronal", "sagittal")
    cards = []
    for finding, entry in zip(findings, record["findings"], strict=True):
        start, stop = finding.box_voxel[:3], finding.box_voxel[3:]
        sides_mm = [(b - a) * s for a, b, s in zip(start, stop, ct.geometry.spacing, strict=True)]
        field = max(FIELD_MM, 1.5 * max(sides_mm))
        cards.append(
            {
                **entry,
                "slice": slice_number(finding.center_voxel),
                "field_mm": field,
                "close": [
                    volume.picture(
                        plane,
                        finding.center_voxel,
                        finding.box_voxel,
                        field_mm=field,
                        pixel_mm=_PIXEL_MM * field / FIELD_MM,
                    )
                    for plane in planes
                ],
                "whole": volume.picture(
                    "axial", finding.center_voxel, finding.box_voxel, pixel_mm=overview_pixel
                ),
            }
        )
    maps = []
    for plane in ("coronal", "sagittal"):
        marks = [volume.picture(plane, f.center_voxel, f.box_voxel, pixel_mm=extent).box_mm for f in findings]
        maps.append({"picture": volume.projection(plane, pixel_mm=overview_pixel), "marks": marks})
    environment = Environment(
        loader=PackageLoader("volnet.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(label=_label, value=_value)
    return environment.get_template("report.html.j2").render(record=record, cards=cards, maps=maps)


def write_html(path: Path, ct: CTVolume, findings: Sequence[Finding], record: Mapping[str, Any]) -> None:
    """Write `render_html` to `path`."""
    path.write_text(render_html(ct, findings, record), encoding="utf-8")
