"""A training from its config."""

from __future__ import annotations

import glob
import importlib
import importlib.util
import inspect
import json
import random
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from volnet import losses
from volnet.train.checkpoints import has_checkpoint, save_weights
from volnet.train.config import Config, ConfigError, LossConfig, ModelConfig, OptimizerConfig, VolumesConfig
from volnet.train.loop import CHECKPOINT, fit
from volnet.train.metrics import Shows
from volnet.train.phantom import PhantomBatches
from volnet.train.schedules import make_schedule

WEIGHTS = "weights.safetensors"
_CONFIG = "config.json"
# What may differ when a training goes on: nothing that the weights depend on.
_FREE = ("out", "minutes", "checkpoint_minutes", "tensorboard")
# Of logits [N, C, D, H, W] and labels [N, 1, D, H, W].
_LOSSES: dict[str, Callable[..., Tensor]] = {
    "cross_entropy": losses.cross_entropy,
    "dice": losses.dice,
    "dice_ce": losses.dice_ce,
    "focal": losses.focal,
    "ohem": losses.ohem,
    "tversky": losses.tversky,
}
_OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
}


def train(
    config: Config,
    *,
    stop: Callable[[], bool] | None = None,
    log: Shows | None = None,
    progress: bool = False,
) -> int:
    """Train what a config describes, or go on where it was interrupted.

    Args:
        config: of `read_config`.
        stop, log, progress: see `volnet.train.fit`.

    Returns:
        The number of steps done. ``weights.safetensors`` in the config's folder holds the weights, or their
        average if it asks for one.

    Raises:
        ConfigError: a name or an argument is unknown, files are missing, or the folder holds a training with
            another config.
        What `volnet.train.fit` raises.
    """
    run = config.run
    torch.manual_seed(run.seed)
    np.random.seed(run.seed % 2**32)
    random.seed(run.seed)
    model = make_model(config.model)
    optimizer = make_optimizer(config.optimizer, model)
    try:
        schedule = make_schedule(optimizer, config.schedule.name, run.steps, **_rest(config.schedule))
    except ValueError as error:
        raise ConfigError(f"[schedule] {error}") from error
    loss = make_loss(config.loss)
    average = None
    if run.average is not None:
        if not 0 <= run.average < 1:
            raise ConfigError(f"[run] average must be at least 0 and less than 1, got {run.average}")
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(run.average))
    out = Path(run.out)
    out.mkdir(parents=True, exist_ok=True)
    _check_same(config, out / _CONFIG)
    batches = make_batches(config)
    trained = model
    if config.model.optimize:
        from volnet.optimize.optimize import optimize

        trained = optimize(model)
    done = fit(
        trained,
        batches,
        loss,
        optimizer,
        steps=run.steps,
        out=out,
        schedule=schedule,
        average=average,
        accumulate=run.accumulate,
        clip_norm=run.clip_norm,
        bfloat16=run.bfloat16,
        minutes=run.minutes,
        checkpoint_minutes=run.checkpoint_minutes,
        stop=stop,
        log=log,
        use_tensorboard=run.tensorboard,
        progress=progress,
    )
    metadata = {
        "model": config.model.name,
        "arguments": json.dumps(config.model.arguments),
        "steps": str(done),
    }
    save_weights(out / WEIGHTS, model if average is None else average.module, metadata)
    return done


def make_model(config: ModelConfig) -> nn.Module:
    """The network that ``[model]`` names, with new weights."""
    where, colon, name = config.name.rpartition(":")
    if not colon:
        found = _find(name, ("volnet.models", "monai.networks.nets"))
        if found is None:
            raise ConfigError(f"[model] name: {name!r} is no network of volnet.models or installed MONAI")
    else:
        try:
            found = getattr(_module(where), name)
        except (ImportError, AttributeError, OSError) as error:
            raise ConfigError(f"[model] name: {config.name}: {error}") from error
    model = _call(found, config.arguments, "[model.arguments]")
    if not isinstance(model, nn.Module):
        raise ConfigError(f"[model] name: {config.name} makes no torch.nn.Module but {type(model).__name__}")
    return model.train()


def make_optimizer(config: OptimizerConfig, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer that ``[optimizer]`` names, of all the model's parameters."""
    if config.name not in _OPTIMIZERS:
        raise ConfigError(f"[optimizer] name must be one of {', '.join(_OPTIMIZERS)}, got {config.name!r}")
    optimizer: torch.optim.Optimizer = _call(
        _OPTIMIZERS[config.name], config.arguments, "[optimizer.arguments]", model.parameters()
    )
    return optimizer


def make_loss(config: LossConfig) -> Callable[[Tensor, Tensor], Tensor]:
    """The function that ``[loss]`` names, with its arguments."""
    if config.name not in _LOSSES:
        raise ConfigError(f"[loss] name must be one of {', '.join(_LOSSES)}, got {config.name!r}")
    function, arguments = _LOSSES[config.name], config.arguments
    try:
        inspect.signature(function).bind(None, None, **arguments)
    except TypeError as error:
        raise ConfigError(f"[loss.arguments] of {config.name}: {error}") from error
    return lambda output, label: function(output, label, **arguments)


def make_batches(config: Config) -> Iterable[Any]:
    """The batches that ``[data]`` describes."""
    data = config.data
    if isinstance(data, VolumesConfig):
        return _patches(data, config.run.seed)
    return PhantomBatches(data.size, data.batch, config.run.seed)


def _patches(data: VolumesConfig, seed: int) -> Iterable[Any]:
    volnet_data: Any = importlib.import_module("volnet.data")
    images, labels = _files(data.images, "images"), _files(data.labels, "labels")
    if len(images) != len(labels):
        raise ConfigError(f"[data] there are {len(images)} images and {len(labels)} labels")
    transforms: list[Any] = []
    for table in data.transforms:
        arguments = dict(table)
        name = arguments.pop("name", None)
        kind = getattr(volnet_data, name, None) if isinstance(name, str) else None
        if not inspect.isclass(kind):
            raise ConfigError(f"[[data.transforms]] name: {name!r} is no transform of volnet.data")
        transforms.append(_call(kind, arguments, f"[[data.transforms]] {name}"))
    if len(data.window) != 2:
        raise ConfigError(f"[data] window must be two numbers, got {data.window}")
    store = volnet_data.VolumeStore(compressed=data.compressed)
    store.fill([{"image": image, "label": label} for image, label in zip(images, labels, strict=True)])
    sampler: Any
    if data.size is None:
        sampler = volnet_data.WholeVolumeSampler(store)
    else:
        sampler = volnet_data.BalancedSampler(
            store, data.size, positive=data.positive, patches_per_volume=data.patches_per_volume
        )
    # Places first, then HU to 0..1, then what changes intensities.
    spatial = [t for t in transforms if hasattr(t, "matrix")]
    others = [t for t in transforms if not hasattr(t, "matrix")]
    return volnet_data.PatchLoader(
        store,
        sampler,
        [*spatial, volnet_data.Window(*data.window), *others],
        data.batch,
        threads=data.threads,
        seed=seed,
    )


def _files(patterns: list[str], key: str) -> list[str]:
    found = []
    for pattern in patterns:
        here = sorted(glob.glob(pattern, recursive=True))
        if not here:
            raise ConfigError(f"[data] {key}: there is nothing at {pattern}")
        found += here
    return found


def _find(name: str, modules: Iterable[str]) -> Any:
    for path in modules:
        try:
            found = getattr(importlib.import_module(path), name, None)
        except ModuleNotFoundError:
            continue
        if callable(found):
            return found
    return None


def _module(where: str) -> Any:
    if not where.endswith(".py"):
        return importlib.import_module(where)
    spec = importlib.util.spec_from_file_location(Path(where).stem, where)
    if spec is None or spec.loader is None:
        raise ImportError(f"{where} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _call(function: Any, arguments: dict[str, Any], section: str, *given: Any) -> Any:
    """Call with arguments of the config, so that a wrong one is the config's fault and names it."""
    try:
        inspect.signature(function).bind(*given, **arguments)
        return function(*given, **arguments)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{section}: {error}") from error


def _rest(section: Any) -> dict[str, Any]:
    return {key: value for key, value in asdict(section).items() if key != "name"}


def _check_same(config: Config, path: Path) -> None:
    """Refuse to go on with another config: the checkpoint's learning rate, for one, would win silently."""
    now = asdict(config)
    for key in _FREE:
        del now["run"][key]
    if not path.exists() or not has_checkpoint(path.parent / CHECKPOINT):
        aside = path.with_name(path.name + ".partial")
        aside.write_text(json.dumps(now, indent=1))
        aside.replace(path)
        return
    before = json.loads(path.read_text())
    for section, values in now.items():
        for key, value in values.items():
            if before.get(section, {}).get(key) != value:
                raise ConfigError(
                    f"[{section}] {key} is {value!r}, and was {before.get(section, {}).get(key)!r} when the "
                    f"training in {path.parent} began; use another [run] out"
                )
