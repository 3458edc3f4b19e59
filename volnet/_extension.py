"""Loads the compiled half of volnet, and says what is wrong when it cannot."""

from __future__ import annotations

import torch

try:
    from volnet import _C
except ImportError as error:
    raise ImportError(
        f"volnet's compiled module does not load with torch {torch.__version__} (volnet needs torch 2.11 or "
        f"later, built for CPU or CUDA on x86-64 Linux): {error}. Reinstall volnet, or build it with "
        "`pip install --no-build-isolation -e .` in a checkout."
    ) from error

__all__ = ["_C"]
