"""What Dynamo is told so that it can capture more networks as one graph."""

from __future__ import annotations

import contextlib
from typing import Any, get_args, get_origin

import torch
from torch._dynamo import trace_rules

__all__ = ["trace_through_jit_isinstance"]


def trace_through_jit_isinstance() -> None:
    """``torch.jit.isinstance``, which MONAI's BasicUNet asks at every skip, breaks no graph any more.

    Dynamo has a rule against it that only its own tables can lift. Where a torch has other tables, the breaks
    stay, and cost a change of layout each.
    """
    with contextlib.suppress(AttributeError, ValueError, TypeError):
        if trace_rules.manual_torch_name_rule_map.pop("torch.jit.isinstance", None) is not None:
            trace_rules.get_torch_obj_rule_map.cache_clear()
            torch.compiler.substitute_in_graph(torch.jit.isinstance, skip_signature_check=True)(_isinstance)


def _isinstance(obj: Any, target_type: Any) -> bool:
    origin = get_origin(target_type)
    if origin is None:
        return isinstance(obj, target_type)
    inner = get_args(target_type)
    if origin in (list, dict, tuple) and not isinstance(obj, origin):
        return False
    if origin is list:
        return all(_isinstance(item, inner[0]) for item in obj)
    if origin is dict:
        return all(_isinstance(k, inner[0]) and _isinstance(v, inner[1]) for k, v in obj.items())
    return bool(torch._jit_internal._isinstance(obj, target_type))
