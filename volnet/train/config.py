"""What `volnet train` reads: a TOML file in which every key is known and every value has its type."""

from __future__ import annotations

import difflib
import sys
import types
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_T = TypeVar("_T")


class ConfigError(ValueError):
    """A config that cannot be used; the message names the file, the section and the key."""


@dataclass(frozen=True)
class ModelConfig:
    """``[model]``

    Attributes:
        name: of MONAI's networks or volnet's models, as ``BasicUNet``; or ``module.path:NAME`` or
            ``file.py:NAME``.
        arguments: of the class or function.
        optimize: run it on volnet's operators.
    """

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    optimize: bool = True


@dataclass(frozen=True)
class PhantomConfig:
    """``[data]`` with ``source = "phantom"``: balls in noise, made as they are needed.

    Attributes:
        size: voxels (d, h, w) of a patch.
        batch: patches in a batch.
    """

    size: list[int]
    source: str = "phantom"
    batch: int = 1


@dataclass(frozen=True)
class VolumesConfig:
    """``[data]`` with ``source = "volumes"``: patches of CTs with labels, held in memory.

    Attributes:
        images: files and folders that `volnet.data.read_ct` reads, and patterns of such (``scans/*.nii.gz``).
        labels: as many; sorted within a pattern, as the images are.
        size: voxels (d, h, w) of a patch; without it, whole volumes.
        batch: patches in a batch.
        positive: share of the patches that are centred on a voxel with a label.
        patches_per_volume: in a pass over the data.
        window: HU that become 0 and 1.
        transforms: tables with the ``name`` of a transform of `volnet.data` and its arguments.
        threads: that make patches.
        compressed: keep the volumes compressed in memory.
    """

    images: list[str]
    labels: list[str]
    source: str = "volumes"
    size: list[int] | None = None
    batch: int = 1
    positive: float = 0.5
    patches_per_volume: int = 1
    window: list[float] = field(default_factory=lambda: [-1000.0, 400.0])
    transforms: list[dict[str, Any]] = field(default_factory=list)
    threads: int = 2
    compressed: bool = False


@dataclass(frozen=True)
class LossConfig:
    """``[loss]``

    Attributes:
        name: of `volnet.losses`: cross_entropy, dice, dice_ce, focal, ohem or tversky.
        arguments: of the function.
    """

    name: str = "dice_ce"
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class OptimizerConfig:
    """``[optimizer]``

    Attributes:
        name: adamw, adam or sgd.
        arguments: of the class in ``torch.optim``: ``lr``, ``weight_decay`` ...
    """

    name: str = "adamw"
    arguments: dict[str, Any] = field(default_factory=lambda: {"lr": 1e-3})


@dataclass(frozen=True)
class ScheduleConfig:
    """``[schedule]``: see `volnet.train.make_schedule`."""

    name: str = "cosine"
    warmup: int = 0
    power: float = 0.9


@dataclass(frozen=True)
class RunConfig:
    """``[run]``: see `volnet.train.fit`.

    Attributes:
        average: decay of the moving average of the weights, which is then what is saved.
        seed: of weights, data and everything else.
    """

    out: str
    steps: int
    seed: int = 0
    accumulate: int = 1
    clip_norm: float | None = None
    bfloat16: bool = False
    average: float | None = None
    minutes: float | None = None
    checkpoint_minutes: float = 5.0
    tensorboard: bool = False


@dataclass(frozen=True)
class Config:
    """A whole config; a section that is left out has its defaults."""

    model: ModelConfig
    data: PhantomConfig | VolumesConfig
    loss: LossConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    run: RunConfig


EXAMPLE = """\
# A training with volnet:  volnet train config.toml
# Started again after an interruption, it goes on from its last checkpoint to the same weights.

[model]
name = "BasicUNet"          # of MONAI or volnet.models; or module.path:NAME, file.py:NAME
optimize = true             # on volnet's operators

[model.arguments]
spatial_dims = 3
in_channels = 1
out_channels = 2
features = [8, 8, 16, 32, 64, 8]

[data]
source = "phantom"          # balls in noise, to try things out; your own data:
size = [32, 32, 32]         # voxels (d, h, w) of a patch
batch = 2
# source = "volumes"
# images = ["scans/*.nii.gz"]
# labels = ["labels/*.nii.gz"]
# patches_per_volume = 4    # in a pass over the data
# positive = 0.5            # share of the patches that are centred on a voxel with a label
# window = [-1000, 400]     # HU that become 0 and 1
# compressed = false        # in memory
# threads = 2               # that make patches
# [[data.transforms]]       # of volnet.data, as many as you like
# name = "RandomFlip"
# p = 0.5

[loss]
name = "dice_ce"            # arguments in [loss.arguments]

[optimizer]
name = "adamw"              # adamw, adam or sgd

[optimizer.arguments]
lr = 1e-3
weight_decay = 1e-2

[schedule]
name = "cosine"             # constant, cosine or poly
warmup = 10                 # steps
power = 0.9                 # of poly

[run]
out = "training"            # folder for weights.safetensors, checkpoints, metrics.csv
steps = 100
seed = 0
accumulate = 1              # batches a step
clip_norm = 12.0
bfloat16 = false            # volumes in half the memory
average = 0.99              # moving average of the weights; leave out for none
checkpoint_minutes = 5.0
# minutes = 60.0            # stop after so long
tensorboard = false         # needs volnet[tensorboard]
"""


def read_config(path: str | Path) -> Config:
    """Read a config file.

    Raises:
        OSError: it cannot be read.
        ConfigError: it is no TOML, a key is unknown or missing, or a value has the wrong type; named.
    """
    text = Path(path).read_bytes()
    try:
        return parse_config(tomllib.loads(text.decode()))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, ConfigError) as error:
        raise ConfigError(f"{path}: {error}") from error


def parse_config(document: Mapping[str, Any]) -> Config:
    """The config of a parsed document.

    Raises:
        ConfigError: as `read_config`.

    >>> parse_config({"model": {"name": "UNet"}, "data": {"size": [8, 8, 8]}, "run": {"out": "o", "step": 3}})
    Traceback (most recent call last):
    volnet.train.config.ConfigError: [run] has no key 'step'; did you mean 'steps'?
    """
    kinds: dict[str, Any] = {
        "model": ModelConfig,
        "data": PhantomConfig,
        "loss": LossConfig,
        "optimizer": OptimizerConfig,
        "schedule": ScheduleConfig,
        "run": RunConfig,
    }
    for name in document:
        if name not in kinds:
            raise ConfigError(f"there is no section [{name}]{_meant(name, kinds)}")
    data = document.get("data", {})
    source = data.get("source", "phantom") if isinstance(data, Mapping) else None
    if source not in ("phantom", "volumes"):
        raise ConfigError(f"[data] source must be 'phantom' or 'volumes', got {source!r}")
    kinds["data"] = PhantomConfig if source == "phantom" else VolumesConfig
    config = Config(**{name: _section(kind, document.get(name, {}), name) for name, kind in kinds.items()})
    size = config.data.size
    if size is not None and (len(size) != 3 or min(size) < 1):
        raise ConfigError(f"[data] size must be three numbers over 0, got {size}")
    return config


def _section(kind: type[_T], table: Any, name: str) -> _T:
    if not isinstance(table, Mapping):
        raise ConfigError(f"[{name}] must be a section, got {table!r}")
    hints = get_type_hints(kind)
    for key, value in table.items():
        if key not in hints:
            raise ConfigError(f"[{name}] has no key {key!r}{_meant(key, hints)}")
        if not _fits(value, hints[key]):
            raise ConfigError(f"[{name}] {key} must be {_words(hints[key])}, got {value!r}")
    for entry in fields(kind):  # type: ignore[arg-type]
        if entry.name not in table and entry.default is MISSING and entry.default_factory is MISSING:
            raise ConfigError(f"[{name}] lacks the key {entry.name!r}")
    return kind(**table)


def _meant(name: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(known)}"


def _fits(value: Any, hint: Any) -> bool:
    if hint is Any:
        return True
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, choice) for choice in arguments)
    if origin is list:
        return isinstance(value, list) and all(_fits(item, arguments[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


def _words(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _words(arguments[0])
    if origin is list:
        return f"a list, each {_words(arguments[0])}"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "a string"}.get(
        hint, "a table"
    )
