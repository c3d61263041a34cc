"""Which folders names mean, and what is no run to be opened."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from esper.karn.mcp.desk import MOST_RUNS, Desk, tables_of
from esper.leyline.errors import ConfigError


def a_run(folder: Path) -> Path:
    (folder / "ev").mkdir(parents=True)
    return folder


def test_a_run_with_arms_is_its_arms_and_the_beginning_of_a_name_is_all_that_begin_so(tmp_path: Path) -> None:
    top = a_run(tmp_path / "20261120-exam")
    ppo_0, ppo_1, rule = (a_run(top / "arms" / name) for name in ("ppo-s0", "ppo-s1", "rule-s0"))
    desk = Desk(tmp_path)

    assert desk.folders("20261120-exam") == [ppo_0, ppo_1, rule]
    assert desk.folders("20261120/arms/ppo") == [ppo_0, ppo_1]
    assert desk.folders(["20261120-exam/arms/rule-s0", "20261120"]) == [rule, ppo_0, ppo_1]
    assert desk.folder("20261120-exam/arms/rule-s0") == rule


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "/etc", "arms", "20261120-exam/ev", "20261120-exam/arms/../..", "a\x00", "r" * 200, "x\ny"],
)
def test_no_name_leads_out_of_the_root(tmp_path: Path, name: str) -> None:
    a_run(tmp_path / "x")
    a_run(a_run(tmp_path / "root" / "20261120-exam") / "arms" / "ppo")

    with pytest.raises(ConfigError) as refused:
        Desk(tmp_path / "root").folders(name)

    assert len(str(refused.value).splitlines()) == 1


def test_so_many_runs_are_not_opened_together(tmp_path: Path) -> None:
    for number in range(MOST_RUNS + 1):
        a_run(tmp_path / "20261120-exam" / "arms" / f"ppo-s{number}")
    (tmp_path / "20261120-exam" / "ev").mkdir()

    with pytest.raises(ConfigError, match=f"these are {MOST_RUNS + 1} runs"):
        Desk(tmp_path).folders("20261120-exam")


@pytest.mark.parametrize("place", ["run.json", "run.lock", "ev/r0.1-000000.jsonl", "ev/INCOMPLETE"])
@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_a_run_with_a_link_or_a_pipe_in_it_is_not_opened(tmp_path: Path, place: str, kind: str) -> None:
    run = a_run(tmp_path / "20261120-x")
    if kind == "link":
        (run / place).symlink_to("/etc/hostname")
    else:
        os.mkfifo(run / place)

    with pytest.raises(ConfigError, match="is not followed"):
        Desk(tmp_path).folders("20261120-x")


def test_a_linked_folder_of_arms_or_events_is_not_entered(tmp_path: Path) -> None:
    a_run(tmp_path / "elsewhere" / "secret")
    a_run(tmp_path / "root" / "20261120-x")
    (tmp_path / "root" / "20261120-x" / "arms").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root" / "20261120-y").mkdir()
    (tmp_path / "root" / "20261120-y" / "ev").symlink_to(tmp_path / "elsewhere" / "secret" / "ev")

    for name in ("20261120-x", "20261120-y"):
        with pytest.raises(ConfigError, match="is not followed"):
            Desk(tmp_path / "root").folders(name)


def test_a_run_that_has_been_replaced_is_another_one(tmp_path: Path) -> None:
    run = a_run(tmp_path / "20261120-x")
    (run / "run.json").write_text("{}")
    before = tables_of([run])
    assert tables_of([run]) == before

    (run / "run.json").unlink()
    assert tables_of([run]) != before
