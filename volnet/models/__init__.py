"""Reference models, one folder each, every one readable in a single file."""

from volnet.models.nodule_rpn import (
    InvalidWeightsError,
    NoduleRPN,
    NoduleRPNConfig,
    detect_nodules,
    load_nodule_rpn,
)

__all__ = ["InvalidWeightsError", "NoduleRPN", "NoduleRPNConfig", "detect_nodules", "load_nodule_rpn"]
