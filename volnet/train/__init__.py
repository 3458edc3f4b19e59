"""Training: one plain loop, its memory, checkpoints that survive anything, and a folder a model."""

from volnet.train.checkpoints import (
    CheckpointWriteError,
    InvalidCheckpointError,
    load_checkpoint,
    save_checkpoint,
    save_weights,
)
from volnet.train.loop import NonFiniteError, fit
from volnet.train.memory import MemoryPlan, accumulate, fit_memory, micro_batches, plan_memory
from volnet.train.schedules import make_schedule

__all__ = [
    "CheckpointWriteError",
    "InvalidCheckpointError",
    "MemoryPlan",
    "NonFiniteError",
    "accumulate",
    "fit",
    "fit_memory",
    "load_checkpoint",
    "make_schedule",
    "micro_batches",
    "plan_memory",
    "save_checkpoint",
    "save_weights",
]
