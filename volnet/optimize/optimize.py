"""`volnet.optimize`."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from volnet.precision import check_precision

__all__ = ["Optimized", "optimize"]

DTYPES = (torch.float32, torch.bfloat16)


def optimize(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    precision: str = "high",
    dtype: torch.dtype | None = None,
    saved_dtype: torch.dtype | None = None,
) -> nn.Module:
    """The same network on volnet's operators, several times faster on 3-D volumes.

    The result is used as ``model`` is: it is of its class, has its methods, and shares its parameters and
    buffers, so that training one trains the other. ``model`` itself stays as it is. What volnet does not
    improve runs on torch; ``print(volnet.explain(optimized, x))`` shows what does. The first call captures
    the network with Dynamo, which takes some seconds; so does the first call with volumes of another size,
    after which all sizes are served.

    Args:
        model: any module; its layers on volumes [N, C, D, H, W] of float32 or bfloat16 are what becomes
            faster. In ``eval()`` or ``train()`` mode, with or without gradients, switched at any time.
        example_inputs: a tensor, a tuple of arguments or a dictionary of keyword arguments. With it the
            network is captured at once, without gradients and leaving its buffers as they are, and not in
            the first call.
        precision: of the convolutions in the network, whatever :func:`volnet.set_precision` says:
            ``"highest"``, ``"high"`` or ``"medium"``.
        dtype: ``torch.bfloat16`` keeps volumes and weights in half the memory, with sums in float32. The
            network is then a copy, volumes are rounded on the way in and its results are given back in the
            dtype of the first volume.
        saved_dtype: ``torch.bfloat16`` keeps the volumes that backward needs in half the memory. Results are
            the same; gradients are those of volumes rounded to 8 bits, each within 5 % (relative L2).

    Returns:
        The optimized network. ``deepcopy`` and ``pickle`` of it are optimized too.

    Raises:
        TypeError: ``model`` is no module, or a scripted one, which Dynamo cannot look into.
        ValueError: ``precision``, ``dtype`` or ``saved_dtype`` is another.

    >>> model = torch.nn.Sequential(torch.nn.Conv3d(1, 4, 3), torch.nn.InstanceNorm3d(4), torch.nn.ReLU())
    >>> fast, x = optimize(model.eval()), torch.randn(1, 1, 8, 8, 8)
    >>> torch.allclose(fast(x), model(x), atol=1e-4)
    True
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"optimize: model must be a torch.nn.Module, got {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError("optimize: model is a ScriptModule; optimize the module it was made from")
    for name, given in (("dtype", dtype), ("saved_dtype", saved_dtype)):
        if given is not None and given not in DTYPES:
            raise ValueError(f"optimize: {name} must be torch.float32, torch.bfloat16 or None, got {given}")
    check_precision(precision)
    if isinstance(model, Optimized):
        model = model._original()
    if dtype is not None:
        model = copy.deepcopy(model).to(dtype)
    optimized = _optimized(model, precision, dtype, saved_dtype)
    if example_inputs is not None:
        _capture(optimized, example_inputs)
    return optimized


class Optimized(nn.Module):
    """What an optimized network is beside an instance of its own class."""

    def _original(self) -> nn.Module:
        """The network with its own forward, sharing everything with this one."""
        original: nn.Module = self.__dict__["_volnet_original"]
        original.training = self.training
        return original

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        backend = self.__dict__["_volnet_backend"]
        dtype = self.__dict__["_volnet_dtype"]
        return _optimized, (self._original(), backend.precision, dtype, backend.saved_dtype)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        dtype: torch.dtype | None = self.__dict__["_volnet_dtype"]
        if dtype is None:
            return self._run(*args, **kwargs)
        given = [x.dtype for x in tree_leaves((args, kwargs)) if _is_floating(x)]
        args, kwargs = _to(dtype, (args, kwargs))
        result = self._run(*args, **kwargs)
        return _to(given[0], result) if given else result

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        # Dynamo would not look again for hooks of a module that it has seen, and gives up on a function that
        # many layers share.
        with torch._dynamo.config.patch(skip_nnmodule_hook_guards=False, recompile_limit=256):
            return super().__call__(*args, **kwargs)


def _optimized(
    model: nn.Module, precision: str, dtype: torch.dtype | None, saved_dtype: torch.dtype | None
) -> nn.Module:
    from volnet.optimize.backend import Backend  # with Dynamo, which takes a second to import

    kind, backend = type(model), Backend(precision, saved_dtype)
    subclass = type(f"Optimized{kind.__name__}", (Optimized, kind), {"__module__": kind.__module__})
    optimized: nn.Module = object.__new__(subclass)
    optimized.__dict__.update(model.__dict__)
    optimized.__dict__.update(_volnet_backend=backend, _volnet_original=model, _volnet_dtype=dtype)
    # Of a frame that is ours: Dynamo passes over those of torch, to which the call of a Sequential belongs.
    compiled = torch.compile(_call, backend=backend)
    optimized._compiled_call_impl = partial(compiled, optimized)
    return optimized


def _call(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return model._call_impl(*args, **kwargs)


def _is_floating(x: Any) -> bool:
    return isinstance(x, torch.Tensor) and x.is_floating_point()


def _to(dtype: torch.dtype, tree: Any) -> Any:
    return tree_map(lambda x: x.to(dtype) if _is_floating(x) else x, tree)


def _capture(optimized: nn.Module, example: Any) -> None:
    """Runs it once, without a trace of having run."""
    buffers = {name: buffer.clone() for name, buffer in optimized.named_buffers()}
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        if isinstance(example, Mapping):
            optimized(**example)
        else:
            optimized(*(example if isinstance(example, (tuple, list)) else (example,)))
        for name, buffer in optimized.named_buffers():
            buffer.copy_(buffers[name])
