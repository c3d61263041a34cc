"""What bit-exact arithmetic depends on besides the program: compared when a run goes on elsewhere."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping

import torch

_VARIABLES = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_CBWR", "CUBLAS_WORKSPACE_CONFIG")


def fingerprint(device: str) -> dict[str, str]:
    """Of this process and of the device that hosts live on."""
    found = torch.device(device)
    return {
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": str(torch.get_num_threads()),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "device": torch.cuda.get_device_name(found) if found.type == "cuda" else found.type,
        "deterministic": str(torch.are_deterministic_algorithms_enabled()),
        **{name: os.environ[name] for name in _VARIABLES if name in os.environ},
    }


def differences(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """`torch was 2.10.0, is 2.13.0`, and so on; a name that only one of them has was or is `not set`."""
    names = dict.fromkeys((*before, *now))
    return [
        f"{name} was {before.get(name, 'not set')}, is {now.get(name, 'not set')}"
        for name in names
        if before.get(name) != now.get(name)
    ]
