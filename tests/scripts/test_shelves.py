"""`esper list WHAT` shows every row of every registry."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.scripts.zygote import Zygote

from esper.kasmina.blueprints import BLUEPRINTS
from esper.leyline.config import describe
from esper.leyline.factored_actions import LifecycleOp
from esper.leyline.sensors import HOST_SENSORS, SLOT_SENSORS
from esper.leyline.telemetry import TelemetryEventType
from esper.runtime.tasks import TASKS
from esper.scripts.columns import markdown, plain
from esper.scripts.config import EsperConfig
from esper.scripts.presets import PRESETS
from esper.scripts.shelves import SHELVES
from esper.simic.rewards.modes import MODES
from esper.simic.rewards.terms import TERMS
from esper.tamiyo.controller import CONTROLLERS

ROWS = {
    "tasks": list(TASKS),
    "blueprints": [name for name, item in BLUEPRINTS.items() for _ in set(item.forms.values())],
    "ops": [op.name for op in LifecycleOp],
    "presets": list(PRESETS),
    "controllers": list(CONTROLLERS),
    "rewards": list(MODES),
    "terms": list(TERMS),
    "sensors": [sensor.name for sensor in (*HOST_SENSORS, *SLOT_SENSORS)],
    "events": [event.name for event in TelemetryEventType],
    "settings": [row.path for row in describe(EsperConfig)],
}


def test_every_shelf_is_asked_about_here() -> None:
    assert set(SHELVES) == set(ROWS)


@pytest.mark.parametrize("what", ROWS)
def test_a_shelf_shows_each_of_its_rows_on_a_line(zygote: Zygote, tmp_path: Path, what: str) -> None:
    ended = zygote.run("list", what, cwd=tmp_path)

    assert ended.code == 0
    assert ended.err == ""
    head, *lines = ended.out.splitlines()
    assert sorted(line.split()[0] for line in lines) == sorted(ROWS[what])
    assert head.split()
    assert all(line == line.rstrip() for line in lines)


def test_a_task_is_shown_with_the_slots_of_its_host(zygote: Zygote, tmp_path: Path) -> None:
    lines = zygote.run("list", "tasks", cwd=tmp_path).out.splitlines()

    assert next(line for line in lines if line.startswith("digits_scale")).endswith("r0c0 r0c1 r0c2 r0c3 r0c4")


def test_columns_line_up_and_a_bar_in_a_cell_is_escaped() -> None:
    table = (("name", "what"), [("a", "x|y"), ("long name", "z")])

    assert plain(table).splitlines() == ["name       what", "a          x|y", "long name  z"]
    assert markdown(table).splitlines()[2] == "| a | x\\|y |"
