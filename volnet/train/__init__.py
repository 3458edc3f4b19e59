"""Training: one plain loop, checkpoints that survive anything, and a folder for each model trained here."""

from volnet.train.checkpoints import (
    CheckpointWriteError,
    InvalidCheckpointError,
    load_checkpoint,
    save_checkpoint,
    save_weights,
)
from volnet.train.loop import NonFiniteError, fit
from volnet.train.schedules import make_schedule

__all__ = [
    "CheckpointWriteError",
    "InvalidCheckpointError",
    "NonFiniteError",
    "fit",
    "load_checkpoint",
    "make_schedule",
    "save_checkpoint",
    "save_weights",
]
