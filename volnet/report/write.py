"""Writing a report folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from volnet import __version__
from volnet.report.findings import findings_record, write_csv, write_json
from volnet.report.html import write_html
from volnet.report.staging import staged_folder

if TYPE_CHECKING:
    from volnet.data.volume import CTVolume
    from volnet.detection.finding import Finding


def write_report(
    out: Path | str,
    ct: CTVolume,
    findings: Sequence[Finding],
    *,
    model_name: str,
    model_version: str | None = None,
    settings: Mapping[str, Any] | None = None,
    identify_patient: bool = False,
    overwrite: bool = False,
) -> None:
    """Write `findings.json`, `findings.csv` and `report.html` into the folder `out`, all or none.

    Args:
        out: a folder that does not exist or is empty.
        ct: the scan the findings are of.
        findings: best first.
        model_name: of the model that found them.
        model_version: of its weights.
        settings: what the detector was asked for (thresholds, limits), recorded as given.
        identify_patient: also write `ct.identity` and `ct.source`; nothing of them is written otherwise.
        overwrite: take the place of the results of an earlier run in `out`.

    Raises:
        OutputFolderError: `out` cannot be written, or is not empty and `overwrite` is false.

    Example:
        >>> write_report("report", ct, detect_nodules(ct), model_name="nodule_rpn")  # doctest: +SKIP
    """
    with staged_folder(out, overwrite=overwrite) as folder:
        record = findings_record(
            ct,
            findings,
            model_name=model_name,
            model_version=model_version,
            volnet_version=__version__,
            settings=settings,
            identify_patient=identify_patient,
        )
        write_json(folder / "findings.json", record)
        write_csv(folder / "findings.csv", record)
        write_html(folder / "report.html", ct, findings, record)
