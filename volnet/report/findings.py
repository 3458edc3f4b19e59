"""Findings as JSON and CSV, and what must not be in them."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from volnet.data.volume import CTVolume
    from volnet.detection.finding import Finding


SCHEMA = "volnet.findings"
SCHEMA_VERSION = "1.0"

#: LUNA16's submission columns; coordinates in LPS mm, as in its annotations.
CSV_COLUMNS = ("seriesuid", "coordX", "coordY", "coordZ", "probability")

RESEARCH_USE = (
    "For research use only. volnet is not a medical device, its findings have not been checked by a "
    "physician, and they must not be used for diagnosis or treatment."
)

# The scanner writes these itself. A patient called Siemens is no reason to withhold the manufacturer.
_EQUIPMENT = {"format", "modality", "manufacturer", "model", "kernel"}

_UID = re.compile(r"[0-9]+(\.[0-9]+)+")


class Redactor:
    """Replaces a patient's identifying strings in free text by `[withheld]`.

    Readers keep identity apart from everything else; this is the second lock, for a patient's name that
    comes by another way, say in a file name that a note quotes.

    Args:
        identity: `CTVolume.identity`; of names and physicians the parts count too, and dates in any of the
            usual ways of writing them.

    Example:
        >>> Redactor({"patient_name": "DOE^JANE"}).text("skipped jane_doe_scout.dcm")
        'skipped [withheld]_[withheld]_scout.dcm'
    """

    def __init__(self, identity: Mapping[str, str]) -> None:
        words: set[str] = set()
        for key, value in identity.items():
            text = str(value).strip()
            # A description is often a plain word, such as CHEST, that names nobody.
            if len(text) < 2 or "description" in key.lower():
                continue
            words.add(text)
            if "name" in key.lower() or "physician" in key.lower():
                # Without initials, which would blank out half of any sentence.
                words.update(part for part in re.split(r"[\^=,\s]+", text) if len(part) > 2)
            if re.fullmatch(r"\d{8}", text):
                words.update(separator.join((text[:4], text[4:6], text[6:])) for separator in "-/.")
        longest_first = sorted(words, key=lambda word: (-len(word), word))
        alternatives = "|".join(map(re.escape, longest_first))
        self._pattern = (
            re.compile(rf"(?<![^\W_])(?:{alternatives})(?![^\W_])", re.IGNORECASE) if words else None
        )

    def text(self, value: str) -> str:
        """`value` without the patient's identifying strings."""
        return self._pattern.sub("[withheld]", value) if self._pattern else value

    def uid(self, value: str) -> str:
        """`value` as it is when it is a DICOM UID, else as `text`: a file's stem may be a name."""
        return value if _UID.fullmatch(value) else self.text(value)

    def plain(self, value: Any) -> Any:
        """`value` as JSON types, redacted throughout; what JSON has no type for becomes its `str`."""
        if isinstance(value, Mapping):
            return {self.text(str(key)): self.plain(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.plain(item) for item in value]
        if value is None or isinstance(value, (bool, int)):
            return value
        if isinstance(value, float):
            return value if math.isfinite(value) else None
        if hasattr(value, "tolist"):  # NumPy's scalars and arrays
            return self.plain(value.tolist())
        return self.text(str(value))


def findings_record(
    ct: CTVolume,
    findings: Sequence[Finding],
    *,
    model_name: str,
    volnet_version: str,
    model_version: str | None = None,
    settings: Mapping[str, Any] | None = None,
    identify_patient: bool = False,
) -> dict[str, Any]:
    """The content of `findings.json`, as JSON types; `report.html` is made from the same.

    Voxel positions are (d, h, w) indices of the scan as read, whole numbers at voxel centres, slices from
    0; boxes are (d1, h1, w1, d2, h2, w2), half-open. Patient positions are (x, y, z) in LPS mm.

    With `identify_patient=False` there is no `patient` and no `source`, and free text is redacted.
    """
    redactor = Redactor({} if identify_patient else ct.identity)
    geometry = ct.geometry
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "statement": RESEARCH_USE,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "volnet_version": volnet_version,
        "model": {"name": model_name, "version": model_version},
        "settings": redactor.plain(dict(settings or {})),
        "series_uid": redactor.uid(ct.series_uid),
        "geometry": {
            "shape_voxel": [int(n) for n in geometry.shape],
            "spacing_mm": [float(s) for s in geometry.spacing],
            "origin_lps_mm": [float(o) for o in geometry.origin],
            "direction": [float(c) for c in geometry.direction],
        },
        "metadata": {
            redactor.text(name): (Redactor({}) if name in _EQUIPMENT else redactor).plain(value)
            for name, value in ct.metadata.items()
        },
        "notes": [redactor.text(note) for note in ct.notes],
        "findings": [_finding_record(number, finding) for number, finding in enumerate(findings, 1)],
    }
    if identify_patient:
        record["patient"] = redactor.plain(ct.identity)
        record["source"] = str(ct.source)
    return record


def slice_number(center_voxel: Sequence[float]) -> int:
    """The axial slice that a centre (d, h, w) lies on, counted from 1 as viewers do.

    >>> slice_number((30.5, 0.0, 0.0))
    32
    """
    return math.floor(center_voxel[0] + 0.5) + 1


def _finding_record(number: int, finding: Finding) -> dict[str, Any]:
    return {
        "number": number,
        "score": round(float(finding.score), 6),
        "diameter_mm": round(float(finding.diameter_mm), 3),
        "center_voxel": [round(float(c), 3) for c in finding.center_voxel],
        "center_lps_mm": [round(float(c), 3) for c in finding.center_lps],
        "box_voxel": [round(float(c), 3) for c in finding.box_voxel],
    }


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Write a `findings_record` to `path`."""
    path.write_text(
        json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
    )


def write_csv(path: Path, record: Mapping[str, Any]) -> None:
    """Write a `findings_record` to `path` as a LUNA16 submission; without findings, the header alone."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(CSV_COLUMNS)
        for finding in record["findings"]:
            writer.writerow([record["series_uid"], *finding["center_lps_mm"], finding["score"]])
