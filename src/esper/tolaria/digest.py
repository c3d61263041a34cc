"""One number for a run's final state: two runs of one seed print the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from esper.kasmina.optimiser import state_by_name
from esper.tolaria.environment import Environment


def digest(environments: Iterable[Environment], decisions: Sequence[Any]) -> str:
    """sha256, hexadecimal, of weights, optimisers, generators and decisions; no wall clock, path or process."""
    hasher = hashlib.sha256()
    for environment in environments:
        _feed(hasher, environment.model.state_dict())
        _feed(hasher, state_by_name(environment.model, environment.optimiser))
        _feed(hasher, [environment.draws.get_state(), environment.growth.get_state()])
    _feed(hasher, decisions)
    return hasher.hexdigest()


def _feed(hasher: hashlib._Hash, value: Any) -> None:
    """Every value with its kind and size, so that neighbours cannot be confused."""
    if isinstance(value, Tensor):
        data = value.detach().cpu().contiguous()
        hasher.update(f"tensor {data.dtype} {tuple(data.shape)}\n".encode())
        hasher.update(data.numpy().tobytes())
    elif isinstance(value, dict):
        hasher.update(f"dict {len(value)}\n".encode())
        for key, item in value.items():
            _feed(hasher, key)
            _feed(hasher, item)
    elif isinstance(value, list | tuple):
        hasher.update(f"list {len(value)}\n".encode())
        for item in value:
            _feed(hasher, item)
    else:
        hasher.update(f"{type(value).__name__} {json.dumps(value)}\n".encode())
