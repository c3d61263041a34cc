"""A link, a pipe or a device that somebody put into a run folder: every reader refuses it, and nothing is touched."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import duckdb
import pytest
from tests.karn.conftest import ByHand, all_of, parquet, started
from tests.karn.made import Made
from tests.scripts.zygote import Zygote

from esper.karn import segments_cache
from esper.karn.collector import Collector
from esper.karn.manifests import State
from esper.karn.memory import folders_of, open_memory
from esper.karn.own_files import check_own, open_own
from esper.karn.store import Store
from esper.leyline.errors import ConfigError, ExitCode
from esper.nissa.run_folder import RunFolder

PLACES = (
    *("run.json", "run.lock", "arms", "ev", "ev/r0.1-000001.jsonl", "ev/r0.1-000001.open", "ev/INCOMPLETE"),
    *("ev/r0.1-000000.log.parquet", "ev/.r0.1-000000.log.parquet-1", "ev/anything"),
)
SECRET = "a secret\n"


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """What a link may lead to, beside the runs: a file, and a folder with the same file under a segment's name."""
    place = tmp_path / "elsewhere"
    (place / "ev").mkdir(parents=True)
    for path in (place / "secret", place / "ev" / "r0.1-000001.jsonl"):
        path.write_text(SECRET)
    return place


def link(path: Path, secret: Path) -> None:
    path.symlink_to(secret / "ev" if path.name in ("arms", "ev") else secret / "secret")


def broken_link(path: Path, _secret: Path) -> None:
    path.symlink_to("nowhere")


def pipe(path: Path, _secret: Path) -> None:
    os.mkfifo(path)


def device(path: Path, _secret: Path) -> None:
    try:
        os.mknod(path, 0o20666, os.makedev(1, 5))  # /dev/zero
    except PermissionError:
        pytest.skip("only root makes devices")


def put(run: Path, place: str, kind: Callable[[Path, Path], None], secret: Path) -> Path:
    path = run / place
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    kind(path, secret)
    return path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return Made([["WAIT"] * 3]).write(tmp_path / "runs", "20261120-one")


# ---- the library


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", [link, broken_link, pipe, device])
def test_a_run_with_something_in_it_that_is_not_its_own_is_refused_in_one_sentence(run, secret, place, kind):
    path = put(run, place, kind, secret)

    with pytest.raises(ConfigError) as refused:
        check_own(run)

    assert str(refused.value) == f"{path}: a link, pipe or device in a run folder is not followed; remove it"
    assert refused.value.exit_code == ExitCode.BAD_INPUT


@pytest.mark.parametrize("place", PLACES)
def test_whoever_reads_asks_first(run, secret, place):
    put(run, place, link, secret)

    for read in (lambda: Collector(run).segments(), lambda: list(Collector(run).news()), lambda: State.of(run)):
        with pytest.raises(ConfigError, match="is not followed"):
            read()
    with pytest.raises(ConfigError, match="is not followed"):
        Store.open([run])
    assert (secret / "secret").read_text() == SECRET
    assert sorted(path.name for path in secret.rglob("*")) == ["ev", "r0.1-000001.jsonl", "secret"]


def test_a_link_that_comes_while_a_run_is_followed_ends_the_following(folder: ByHand, secret: Path):
    folder.write(folder.line(started()), segment="r0.1-000000.open")
    with Store.open([folder.path]) as store:
        folder.write(folder.line("one"), segment="r0.1-000000.open")
        assert store.refresh() == 1

        (folder.ev / "r0.1-000001.jsonl").symlink_to(secret / "secret")

        with pytest.raises(ConfigError, match="is not followed"):
            store.refresh()


def test_a_link_that_comes_between_the_look_and_the_opening_is_not_followed(folder: ByHand, secret: Path):
    folder.write(folder.line("one"))
    path = folder.write(folder.line("two"), segment="r0.1-000001.jsonl")
    news = Collector(folder.path).news()
    next(news)  # the folder has been looked at now

    path.unlink()
    path.symlink_to(secret / "secret")

    with pytest.raises(ConfigError, match="is not followed"):
        next(news)


def test_opening_what_nobody_writes_to_does_not_wait(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")

    with pytest.raises(ConfigError, match="is not followed"):
        open_own(tmp_path / "pipe")


def test_a_run_that_is_reached_through_links_is_read(run, tmp_path):
    (tmp_path / "shelf").symlink_to(run.parent)
    (tmp_path / "mine").symlink_to(tmp_path / "shelf" / "latest")
    assert (run.parent / "latest").is_symlink()

    for way in (run.parent / "latest", tmp_path / "shelf" / run.name, tmp_path / "mine"):
        with Store.open([way]) as store:
            assert store.con.sql("SELECT DISTINCT run FROM env_step").fetchall() == [(run.name,)]
    assert folders_of(tmp_path / "shelf", "latest") == [tmp_path / "shelf" / run.name]


def test_what_no_reader_opens_may_be_a_link(run, tmp_path):
    shutil.rmtree(run / "checkpoints")
    (tmp_path / "big disk").mkdir()
    (run / "checkpoints").symlink_to(tmp_path / "big disk")
    (run / "notes").symlink_to("nowhere")

    with open_memory([run]) as store:
        assert store.con.sql("SELECT count(*) FROM env_step").fetchall() == [(3,)]


def test_arms_behind_a_link_are_not_listed(tmp_path, secret):
    Made([["WAIT"]]).write(tmp_path / "private", "other")
    with RunFolder.create(tmp_path / "runs", "made", "20261120-top") as top:
        (top.path / "arms").symlink_to(tmp_path / "private")

    assert folders_of(tmp_path / "runs", "20261120-top") == [top.path]
    with pytest.raises(ConfigError, match="arms: a link, pipe or device"):
        open_memory([top.path])


# ---- Parquet


def test_parquet_is_never_written_through_a_link(run, secret):
    with Store.open([run], cache=False) as store:
        (segment,) = (found := Collector(run)).segments()
        list(found.news())
        for name in ("r0.1-000000.env_step.parquet", f".r0.1-000000.env_step.parquet-{os.getpid()}"):
            (run / "ev" / name).symlink_to(secret / "new")  # files that are there DuckDB writes beside and moves

        segments_cache.write(store.con, run.name, segment)  # without the look that the store has before

    assert not (secret / "new").exists()
    written = run / "ev" / "r0.1-000000.env_step.parquet"
    assert not written.is_symlink()
    assert duckdb.sql(f"SELECT count(*) FROM '{written}'").fetchall() == [(3,)]


def test_a_run_that_is_refused_gets_no_parquet(run, secret):
    with Store.open([run], cache=False) as store:
        expected = all_of(store)
    planted = put(run, "ev/r0.1-000000.log.parquet", link, secret)

    with pytest.raises(ConfigError):
        Store.open([run])
    assert parquet(run) == [planted]

    planted.unlink()
    with Store.open([run]) as store:
        assert all_of(store) == expected
    assert len(parquet(run)) > 1


# ---- the commands

COMMANDS = {
    "show": ("show", "20261120-one"),
    "sql": ("sql", "20261120-one", "from runs"),
    "gates": ("gates", "20261120-one"),
    "gates against it": ("gates", "20261120-two", "--vs", "20261120-one"),
    "report": ("report", "20261120-one", "--html", "out.html"),
    "report of both": ("report", "20261120-two", "20261120-one", "--html", "out.html"),
    "export": ("export", "20261120-one", "--to", "out"),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("place", ["ev/r0.1-000001.jsonl", "ev", "run.json"])
def test_every_command_says_so_and_ends(zygote: Zygote, run, secret, tmp_path, command, place):
    Made([["WAIT"] * 3], seed=1).write(tmp_path / "runs", "20261120-two")
    put(run, place, link, secret)

    ended = zygote.run(*COMMANDS[command], cwd=tmp_path)

    assert (ended.code, ended.out) == (2, "")
    assert ended.err.count("\n") == 1
    assert f"{place}: a link, pipe or device in a run folder is not followed; remove it" in ended.err
    assert SECRET.strip() not in ended.err
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("out")]


def test_the_list_of_runs_shows_it_as_broken_beside_the_others(zygote: Zygote, run, secret, tmp_path):
    Made([["WAIT"] * 3], seed=1).write(tmp_path / "runs", "20261120-two")
    put(run, "ev/r0.1-000001.jsonl", link, secret)

    ended = zygote.run("runs", cwd=tmp_path)

    _, one, two = ended.out.splitlines()
    assert (ended.code, ended.err) == (0, "")
    assert one.split()[0] == "20261120-one"
    assert one.endswith("r0.1-000001.jsonl: a link, pipe or device in a run folder is not followed; remove it")
    assert two.split()[:4] == ["20261120-two", "digits", "ppo", "done"]
