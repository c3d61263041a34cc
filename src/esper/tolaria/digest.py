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
    return combined([digest_of(environment) for environment in environments], decisions)


def digest_of(environment: Environment) -> str:
    """sha256, hexadecimal, of one environment; it can be told from the process that the environment lives in."""
    optimiser = state_by_name(environment.model, environment.optimiser)
    generators = [environment.draws.get_state(), environment.growth.get_state()]
    return digest_of_state([environment.model.state_dict(), optimiser, generators])


def combined(digests: Sequence[str], decisions: Sequence[Any]) -> str:
    """The digest of a run, from those of its environments in order."""
    return digest_of_state([digests, decisions])


def digest_of_state(state: Any) -> str:
    """sha256, hexadecimal, of nested dicts and lists of tensors and primitives."""
    hasher = hashlib.sha256()
    _feed(hasher, state)
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
