"""Compiled regions: host segments, seeds and rungs, each by itself, so that growing compiles no segment again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

Backend = str | Callable[..., Any]
"""What `torch.compile` takes as `backend`: a name, or a function of a graph and example inputs."""

RECOMPILE_LIMIT = 1024
"""Dynamo counts compilations per code object, and all regions share one; at its own limit, 8, the ninth distinct
region would silently run uncompiled."""


def compile_region(region: nn.Module, backend: Backend) -> None:
    """Compiles `region` in place, once for each shape, mode and gradient mode that it meets.

    Regions that differ in their weights alone share their graphs. Raises dynamo's recompile limit for the process.
    """
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, RECOMPILE_LIMIT)
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, RECOMPILE_LIMIT)
    # Dynamo does not trace torch's own frames: `nn.Sequential(...).compile()` by itself compiles nothing.
    with config.patch(wrap_top_frame=True):
        region.compile(backend=backend, dynamic=False)
