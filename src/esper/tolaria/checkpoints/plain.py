"""What may be in a checkpoint's file, and what is refused of it before anything is made of it.

Nothing but tensors and primitives is ever unpickled (`weights_only`), and even these can be made to take more memory
than the file has bytes: by compression, by strides of 0, by one list that stands in itself many times over.
"""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from esper.leyline.errors import CheckpointError

DEEPEST = 64
MOST = 1_000_000
"""Values in one file, containers counted too."""
_PRIMITIVES = (bool, int, float, str, bytes, type(None))
_STRANGE = (pickle.UnpicklingError, RuntimeError, ValueError, LookupError, TypeError, AttributeError, EOFError)
"""What a loader makes of a strange file."""
_CONTAINERS = (dict, OrderedDict, list, tuple)


def read_plain(path: Path) -> Any:
    """The tensors and primitives in a file, the tensors as views of it. Raises CheckpointError for anything else."""
    _refuse_packed(path)
    try:
        tree = torch.load(path, mmap=True, map_location="cpu", weights_only=True)
    except (
        pickle.UnpicklingError,
        RuntimeError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        EOFError,
    ) as strange:
        raise CheckpointError(f"{path}: not tensors and primitives ({type(strange).__name__})") from strange
    why = _unfit(tree)
    if why:
        raise CheckpointError(f"{path}: {why}")
    return tree


def _refuse_packed(path: Path) -> None:
    """A file of ours has every record once and as it is."""
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
    except (zipfile.BadZipFile, ValueError, LookupError, RuntimeError) as strange:
        raise CheckpointError(f"{path}: not a file of tensors ({type(strange).__name__})") from strange
    if len({record.filename for record in records}) < len(records):
        raise CheckpointError(f"{path}: holds a record twice")
    packed = next((record for record in records if record.compress_type != zipfile.ZIP_STORED), None)
    if packed is not None:
        raise CheckpointError(f"{path}: {packed.filename!r} is compressed, which no checkpoint is")
    if sum(record.file_size for record in records) > path.stat().st_size:
        raise CheckpointError(f"{path}: claims to hold more than it has bytes")


def _unfit(tree: Any) -> str:
    """Why this cannot be a checkpoint's content; empty where it can. Walks without recursion."""
    todo, seen = [(tree, 0)], 0
    while todo:
        value, depth = todo.pop()
        seen += 1
        if seen > MOST:
            return f"holds more than {MOST} values"
        if depth > DEEPEST:
            return f"is nested deeper than {DEEPEST}"
        if type(value) is Tensor:
            if _is_hollow(value):
                return f"holds a tensor {tuple(value.shape)} that has no memory of its own"
        elif type(value) in _CONTAINERS:
            inner = [*value, *value.values()] if isinstance(value, dict) else value
            todo += [(item, depth + 1) for item in inner]
        elif type(value) not in _PRIMITIVES:
            return f"holds a {type(value).__name__}"
    return ""


def _is_hollow(value: Tensor) -> bool:
    """Whether it is anything but numbers that lie side by side."""
    if value.layout is not torch.strided or value.device.type != "cpu" or value.is_quantized:
        return True
    return value.numel() * value.element_size() > value.untyped_storage().nbytes()
