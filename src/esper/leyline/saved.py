"""Files of tensors and primitives that other runs have left behind, and what is refused of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from esper.leyline.errors import EsperError

SAFE_LOADER = (2, 10)  # the first torch whose loader is safe with files from elsewhere


def load_plain(path: Path, what: str, error: type[EsperError]) -> Any:
    """What `torch.save` put into a file, on the CPU; nothing but tensors and primitives is ever made from it.

    what: what the file ought to be, for the message, such as "a policy". Raises `error`, one line, where there is no
    such file, where torch is too old to read what this run did not write, and where the file is something else.
    """
    if not _is_file(path):
        raise error(f"{path}: no such file; want {what}")
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < SAFE_LOADER:
        raise error(
            f"{path}: torch {torch.__version__} has a known hole in its loader (CVE-2026-24747) and this run did not "
            "write the file; install torch 2.10 or newer"
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as strange:  # whatever a loader makes of a strange file
        raise error(f"{path}: not {what} ({type(strange).__name__})") from strange


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False
