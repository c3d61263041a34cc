"""Checkpoints that tell their number, and every way to spoil one. Read `accepted` first."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import torch

from esper.tolaria.checkpoints.store import At, CheckpointStore

RUN = "a" * 32
FILES = ("state.pt", "meta.json", "MANIFEST.json")


def state(number: int, size: int = 50) -> dict[str, Any]:
    """Tells its number, and has weights that every bit matters to."""
    return {"number": number, "weights": torch.arange(size, dtype=torch.float32) + number, "names": ["a", ("b", None)]}


def at(step: int, value: float | None = None, blessed: bool = True) -> At:
    return At(round=0, step=step, value=value, blessed=blessed, environment={"torch": "2"})


def saved(folder: Path, *numbers: int) -> CheckpointStore:
    folder.mkdir(exist_ok=True)
    store = CheckpointStore(folder, RUN)
    for number in numbers:
        store.save(state(number), {"number": number}, at(number))
    return store


def newest(folder: Path) -> tuple[int | None, tuple[str, ...]]:
    """As another process finds it."""
    found, complaints = CheckpointStore(folder, RUN).newest()
    if found is None:
        return None, complaints
    number = found.state["number"]
    want = state(number)
    assert torch.equal(found.state["weights"], want["weights"])
    assert found.state["names"] == want["names"]
    return number, complaints


def damage(folder: Path, draw: random.Random) -> str:
    """Spoils one file of a checkpoint; says how."""
    path = folder / draw.choice(FILES)
    data = bytearray(path.read_bytes())
    kind = draw.choice(["bit", "bit", "bit", "zeros", "truncated", "longer", "swapped", "missing", "extra", "link"])
    place = draw.randrange(len(data))
    if kind == "bit":
        data[place] ^= 1 << draw.randrange(8)
    elif kind == "zeros":
        span = slice(place, place + 64)
        while not any(data[span]):
            place = draw.randrange(len(data))
            span = slice(place, place + 64)
        data[span] = bytes(len(data[span]))
    elif kind == "truncated":
        del data[place:]
    elif kind == "longer":
        data += bytes(draw.randrange(1, 100))
    elif kind == "swapped":
        other = next(each for each in sorted(folder.parent.glob("ckpt-*")) if each != folder)
        data = bytearray((other / path.name).read_bytes())
    path.unlink()
    if kind == "link":
        path.symlink_to("/dev/zero")
    elif kind != "missing":
        path.write_bytes(data)
    if kind == "extra":
        path.write_bytes(data)
        (folder / "more").write_bytes(b"x")
    return f"{kind} {path.name} {place}"


def accepted(folder: Path, draw: random.Random, count: int) -> list[str]:
    """Of so many damages those after which the newest checkpoint was used all the same."""
    wrong = []
    for number in range(count):
        copy = folder.parent / f"{folder.name}-{number}"
        shutil.copytree(folder, copy)
        how = damage(copy / "ckpt-000002", draw)
        found, complaints = newest(copy)
        if found != 1 or len(complaints) != 1 or "ckpt-000002" not in complaints[0]:
            wrong.append(f"{how}: {found} {complaints}")
        shutil.rmtree(copy)
    return wrong
