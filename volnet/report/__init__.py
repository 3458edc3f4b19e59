"""Findings as files: JSON for programs, CSV for LUNA16's evaluation, HTML with pictures for people."""

from __future__ import annotations

from volnet.report.findings import CSV_COLUMNS, RESEARCH_USE, SCHEMA, SCHEMA_VERSION, slice_number
from volnet.report.staging import OutputFolderError, check_output_folder, staged_folder
from volnet.report.write import write_report

__all__ = [
    "CSV_COLUMNS",
    "RESEARCH_USE",
    "SCHEMA",
    "SCHEMA_VERSION",
    "OutputFolderError",
    "check_output_folder",
    "slice_number",
    "staged_folder",
    "write_report",
]
