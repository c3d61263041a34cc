"""No checkpoint that was damaged is ever used, and none that is good is lost, whatever happens in which order."""

from __future__ import annotations

import errno
import io
import json
import os
import random
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.tolaria.checkpoints.spoiling import FILES, RUN, accepted, at, newest, saved, state

from esper.leyline import faults
from esper.leyline.errors import CheckpointError
from esper.tolaria.checkpoints.manifest import File, Manifest, sealed
from esper.tolaria.checkpoints.plain import DEEPEST, MOST
from esper.tolaria.checkpoints.store import CheckpointStore

# --- as it was written ------------------------------------------------------------------------------------------


def test_another_process_finds_what_was_saved_last(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2)

    found, complaints = CheckpointStore(tmp_path, RUN).newest()

    assert found is not None
    assert (found.path.name, found.manifest.step, complaints) == ("ckpt-000002", 2, ())
    assert torch.equal(found.state["weights"], torch.arange(2, 52, dtype=torch.float32))
    assert json.loads((found.path / "meta.json").read_text()) == {"number": 2}
    assert sorted(path.name for path in found.path.iterdir()) == sorted(FILES)


def test_plain_torch_load_reads_it(tmp_path: Path) -> None:
    saved(tmp_path, 7)

    assert torch.load(tmp_path / "ckpt-000001" / "state.pt")["number"] == 7


def test_an_empty_folder_has_none_and_that_is_no_error(tmp_path: Path) -> None:
    assert newest(tmp_path) == (None, ())


def test_what_a_killed_process_left_half_done_is_swept(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    (tmp_path / ".tmp-000002-77").mkdir()
    (tmp_path / ".tmp-000002-77" / "state.pt").write_bytes(b"half")
    (tmp_path / ".del-000000").mkdir()

    assert newest(tmp_path) == (1, ())
    assert [path.name for path in tmp_path.iterdir()] == ["ckpt-000001"]


# --- damage -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [100, pytest.param(2000, marks=pytest.mark.slow)])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(tmp_path: Path, count: int) -> None:
    saved(tmp_path / "whole", 1, 2)

    assert accepted(tmp_path / "whole", random.Random(count), count) == []


def test_where_all_are_damaged_the_error_names_one(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2)
    for seq in (1, 2):
        (tmp_path / f"ckpt-00000{seq}" / "state.pt").write_bytes(b"")

    with pytest.raises(CheckpointError, match=r"no checkpoint can be loaded; the newest: .*ckpt-000002.*has 0 bytes"):
        CheckpointStore(tmp_path, RUN).newest()


def test_a_checkpoint_of_another_run_or_another_number_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    shutil.copytree(tmp_path / "ckpt-000001", tmp_path / "ckpt-000009")
    found, complaints = CheckpointStore(tmp_path, RUN).newest()

    assert found is not None
    assert found.manifest.seq == 1
    assert "of another checkpoint" in complaints[0]
    with pytest.raises(CheckpointError, match="of another run, 'aaaa"):
        CheckpointStore(tmp_path, "b" * 32).newest()


# --- malice: hashes that fit ------------------------------------------------------------------------------------


def forged(folder: Path, data: bytes) -> None:
    """A checkpoint whose manifest fits whatever it holds."""
    (folder / "ckpt-000001").mkdir(parents=True)
    page = b"{}"
    files = {"state.pt": File.of(data), "meta.json": File.of(page)}
    manifest = Manifest(run=RUN, seq=1, round=0, step=0, value=None, blessed=True, environment={}, files=files)
    for name, text in {"state.pt": data, "meta.json": page, "MANIFEST.json": sealed(manifest)}.items():
        (folder / "ckpt-000001" / name).write_bytes(text)


def packed(tree: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(tree, buffer)
    return buffer.getvalue()


class Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.target),))


def deflated(data: bytes) -> bytes:
    """The same records, compressed."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        for record in old.infolist():
            new.writestr(record.filename, old.read(record))
    return out.getvalue()


def nested(depth: int) -> Any:
    tree: Any = 0
    for _ in range(depth):
        tree = [tree]
    return tree


def doubled(times: int) -> Any:
    """A tree of 2^times leaves in a few hundred bytes."""
    tree: Any = [0]
    for _ in range(times):
        tree = [tree, tree]
    return tree


MALICE: dict[str, tuple[Any, str]] = {
    "a deflate bomb": (lambda _: deflated(packed({"zeros": torch.zeros(1 << 24)})), "is compressed"),
    "a giant of stride 0": (lambda _: packed({"huge": torch.zeros(1).expand(10**12)}), "has no memory of its own"),
    "a sparse tensor": (lambda _: packed(torch.eye(4).to_sparse()), "has no memory of its own"),
    "a list too deep": (lambda _: packed(nested(DEEPEST + 10)), "nested deeper"),
    "a list in itself many times": (lambda _: packed(doubled(30)), f"more than {MOST} values"),
    "code": (lambda path: packed(Bomb(path / "harm")), "not tensors and primitives"),
    "a set": (lambda _: packed({1, 2}), "holds a set"),
    "no archive": (lambda _: b"PK nothing", "not a file of tensors"),
}


@pytest.mark.parametrize("case", MALICE)
def test_a_file_that_means_harm_is_refused_though_its_hash_fits(tmp_path: Path, case: str) -> None:
    make, words = MALICE[case]
    forged(tmp_path / "run", make(tmp_path))

    with pytest.raises(CheckpointError, match=words):
        CheckpointStore(tmp_path / "run", RUN).newest()
    assert not (tmp_path / "harm").exists()


# --- a disk that refuses ----------------------------------------------------------------------------------------


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> Any:
    def plan(text: str) -> None:
        monkeypatch.setenv(faults.VARIABLE, text)
        faults.planned.cache_clear()

    yield plan
    monkeypatch.delenv(faults.VARIABLE, raising=False)
    faults.planned.cache_clear()


AFTER = ("checkpoint.sync_parent", "checkpoint.retire", "checkpoint.remove")
"""Places behind the rename that makes a draft a checkpoint."""
SITES = [site for site in faults.SITES if site.startswith("checkpoint.")]


@pytest.mark.parametrize("site", SITES)
def test_a_disk_that_fails_anywhere_in_a_save_costs_no_earlier_checkpoint(
    tmp_path: Path, planned: Any, site: str
) -> None:
    store = saved(tmp_path, 1, 2, 3)
    planned(f"{site}=enospc")

    with pytest.raises(OSError, match="No space left") as caught:
        store.save(state(4), {}, at(4))

    assert caught.value.errno == errno.ENOSPC
    planned("")
    assert newest(tmp_path) == (4 if site in AFTER else 3, ())


def test_half_a_file_is_found_out_before_the_checkpoint_counts(tmp_path: Path, planned: Any) -> None:
    store = saved(tmp_path, 1)
    planned("checkpoint.write=short_write")

    with pytest.raises(OSError, match="reads back differently"):
        store.save(state(2), {}, at(2))
    assert newest(tmp_path) == (1, ())


def test_what_plain_torch_load_would_not_read_is_not_saved(tmp_path: Path) -> None:
    store = saved(tmp_path, 1)

    with pytest.raises(OSError, match="not tensors and primitives"):
        store.save({"path": Path("x")}, {}, at(2))
    assert newest(tmp_path) == (1, ())


# --- what is kept -----------------------------------------------------------------------------------------------


def names(folder: Path) -> list[str]:
    return sorted(path.name.removeprefix("ckpt-00000") for path in folder.iterdir())


def test_the_last_three_and_the_best_are_kept(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, RUN)
    values = [1.0, 5.0, 2.0, None, 4.0, 3.0]
    for step, value in enumerate(values):
        store.save(state(step), {}, at(step, value))

    assert names(tmp_path) == ["2", "4", "5", "6"]
    assert CheckpointStore(tmp_path, RUN).best_value == 5.0


def test_a_host_that_was_ill_makes_no_best_checkpoint(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, RUN)
    store.save(state(1), {}, at(1, 9.0, blessed=False))

    assert store.best_value is None


def test_what_was_resumed_from_stays_until_two_newer_ones_are_there(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    store = CheckpointStore(tmp_path, RUN)
    store.newest()
    kept = []
    for number in (2, 3, 4):
        store.save(state(number), {}, at(number))
        kept.append(names(tmp_path))

    assert kept == [["1", "2"], ["1", "2", "3"], ["2", "3", "4"]]


class Life(RuleBasedStateMachine):
    """Saves, damage, processes that end and begin: the newest good checkpoint is always there to be found."""

    @initialize(tmp=st.just(None))
    def begin(self, tmp: None) -> None:
        self.root = Path(os.environ["PYTEST_STORE_ROOT"]) / str(len(os.listdir(os.environ["PYTEST_STORE_ROOT"])))
        self.root.mkdir()
        self.store = CheckpointStore(self.root, RUN)
        self.saves = 0
        self.good: dict[int, int] = {}  # seq -> number, of those that nobody has damaged
        self.spoilt: set[int] = set()

    @rule(value=st.none() | st.integers(0, 9))
    def save(self, value: int | None) -> None:
        self.saves += 1
        path = self.store.save(state(self.saves, 4), {}, at(self.saves, None if value is None else float(value)))
        self.good[int(path.name[5:])] = self.saves
        there = self.store.numbers()
        retired = self.good.keys() - set(there)
        assert all(len(there) >= 3 and seq < there[-3] for seq in retired), "one of the newest three was retired"
        for seq in retired:
            del self.good[seq]

    @rule(pick=st.integers(0, 99), byte=st.integers(0, 10**6), name=st.sampled_from(FILES))
    def corrupt(self, pick: int, byte: int, name: str) -> None:
        there = self.store.numbers()
        if there:
            seq = there[pick % len(there)]
            path = self.store.path(seq) / name
            if path.is_file():
                data = bytearray(path.read_bytes())
                data[byte % len(data)] ^= 1
                path.write_bytes(data)
                # The same bit twice is no damage: such a checkpoint is neither expected nor excluded any more.
                self.good.pop(seq, None)
                self.spoilt.add(seq)

    @rule(pick=st.integers(0, 99))
    def delete(self, pick: int) -> None:
        there = self.store.numbers()
        if there:
            seq = there[pick % len(there)]
            shutil.rmtree(self.store.path(seq))
            self.good.pop(seq, None)

    @rule()
    def another_process_begins(self) -> None:
        self.store = CheckpointStore(self.root, RUN)
        try:
            self.store.newest()
        except CheckpointError:
            assert not self.good

    @precondition(lambda self: self.good)
    @invariant()
    def the_newest_good_one_is_found(self) -> None:
        found, _ = CheckpointStore(self.root, RUN).newest()
        assert found is not None
        seq = found.manifest.seq
        best = max(self.good)
        assert seq == best or (seq > best and seq in self.spoilt)
        if seq == best:
            assert found.state["number"] == self.good[best]


def test_no_order_of_saves_damage_and_deaths_loses_the_newest_good_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hypothesis.stateful import run_state_machine_as_test

    monkeypatch.setenv("PYTEST_STORE_ROOT", str(tmp_path))

    run_state_machine_as_test(Life, settings=settings(max_examples=15, stateful_step_count=20, deadline=None))
