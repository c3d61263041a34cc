"""`esper list WHAT`: what there is to choose from, as plain tables made from the registries."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import esper.tamiyo.baselines
import esper.tamiyo.heuristic
from esper.kasmina.blueprints import BLUEPRINTS
from esper.leyline.config import describe
from esper.leyline.factored_actions import OPS
from esper.leyline.sensors import HOST_SENSORS, SLOT_SENSORS
from esper.leyline.telemetry import EVENTS
from esper.runtime.tasks import TASKS, slot_ids
from esper.scripts.columns import Table, plain
from esper.scripts.config import EsperConfig
from esper.scripts.presets import PRESETS
from esper.simic.rewards.modes import MODES
from esper.simic.rewards.terms import TERMS
from esper.tamiyo.controller import CONTROLLERS

_ = (esper.tamiyo.baselines, esper.tamiyo.heuristic)  # importing them fills the registry


def tasks() -> Table:
    rows = [(name, shelf.summary, " ".join(slot_ids(shelf))) for name, shelf in TASKS.items()]
    return ("task", "what it is", "slots"), rows


def blueprints() -> Table:
    rows = [
        (name, form.summary, " ".join(place for place in item.forms if item.forms[place] is form), offered)
        for name, item in BLUEPRINTS.items()
        for form in dict.fromkeys(item.forms.values())
        for offered in ("yes" if item.standard else "by name",)
    ]
    return ("blueprint", "what it is", "place", "offered"), rows


def ops() -> Table:
    rows = [(op.name, row.meaning, " ".join(row.heads) or "-", f"{row.price:g}") for op, row in OPS.items()]
    return ("op", "what it does", "heads that matter", "price"), rows


def presets() -> Table:
    return ("preset", "what it is"), [(name, preset.summary) for name, preset in PRESETS.items()]


def controllers() -> Table:
    rows = [(name, _first_line(build)) for name, build in CONTROLLERS.items()]
    return ("controller", "what it does"), rows


def rewards() -> Table:
    rows = [
        (
            name,
            mode.summary,
            " ".join(term if weight == 1 else f"{weight:g}*{term}" for term, weight in mode.weights.items()),
        )
        for name, mode in MODES.items()
    ]
    return ("reward", "what it is", "terms"), rows


def terms() -> Table:
    rows = [
        (name, _first_line(term), " ".join(mode for mode in MODES if name in MODES[mode].weights))
        for name, term in TERMS.items()
    ]
    return ("term", "what it is", "in rewards"), rows


def sensors() -> Table:
    rows = [
        (sensor.name, of, sensor.kind, f"{sensor.low:g} to {sensor.high:g}", " ".join(sensor.levers) or "-")
        for of, shelf in (("host", HOST_SENSORS), ("slot", SLOT_SENSORS))
        for sensor in shelf
    ]
    return ("sensor", "of", "kind", "range", "shows the effect of"), rows


def events() -> Table:
    rows = [(event.name, event.value, " ".join(payload.__struct_fields__)) for event, payload in EVENTS.items()]
    return ("event", "on screens", "fields"), rows


def settings() -> Table:
    rows = [(row.path, row.type, row.default, row.range, row.help) for row in describe(EsperConfig)]
    return ("setting", "type", "default", "range", "meaning"), rows


SHELVES: dict[str, Callable[[], Table]] = {
    shelf.__name__: shelf
    for shelf in (tasks, blueprints, ops, presets, controllers, rewards, terms, sensors, events, settings)
}


def _first_line(documented: object) -> str:
    return (documented.__doc__ or "").splitlines()[0]


def add_to(commands: Any) -> None:
    """Adds this command to the parser's subcommands."""
    parser = commands.add_parser("list", help="what there is: " + ", ".join(SHELVES))
    parser.add_argument("what", choices=SHELVES, metavar="WHAT", help=" ".join(SHELVES))
    parser.set_defaults(run_command=command)


def command(args: argparse.Namespace) -> int:
    print(plain(SHELVES[args.what]()))
    return 0
