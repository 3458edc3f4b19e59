from __future__ import annotations

import os
from pathlib import Path

import pytest

# Before volnet is imported: what the user has measured must not decide which kernels are tested.
os.environ["VOLNET_PLANS"] = "off"

from volnet.bench.networks import import_torchvision

import_torchvision()  # before any test imports MONAI, which looks for torchvision once


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real CTs and nodules; tests that need them are skipped where they are not."""
    folder = Path(os.environ.get("VOLNET_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not (folder / "lidc_scans" / "scans.json").is_file():
        pytest.skip(f"real data not found at {folder} (set VOLNET_DATA)")
    return folder
