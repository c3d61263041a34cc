"""Settings from four places, laid over each other: default < preset < file < flags < --set."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from esper.leyline.config import encode
from esper.leyline.errors import ConfigError
from esper.scripts.config import EsperConfig, assemble
from esper.scripts.train import FLAGS, add_arguments, configure


def asked(*argv: str) -> EsperConfig:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return configure(parser.parse_args(argv))


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "settings.json"
    path.write_text(json.dumps({"run": {"episode_length": 40, "seed": 4, "envs": 4}}))
    return str(path)


def test_nothing_asked_is_the_default() -> None:
    assert asked() == EsperConfig()


def test_each_place_wins_over_the_ones_before_it(file: str) -> None:
    preset = ("--preset", "digits_clutter")  # 30 epochs
    from_file = ("--config-json", file)  # 40 epochs, seed 4, 4 environments
    flags = ("--seed", "7", "--envs", "7")
    set_ = ("--set", "run.envs=9")

    def run_of(*argv: str) -> tuple[int, int, int]:
        run = asked(*argv).run
        return run.episode_length, run.seed, run.envs

    default = EsperConfig().run
    assert run_of(*preset) == (30, default.seed, default.envs)
    assert run_of(*preset, *from_file) == (40, 4, 4)
    assert run_of(*preset, *from_file, *flags) == (40, 7, 7)
    assert run_of(*set_, *flags, *from_file, *preset) == (40, 7, 9)


def test_of_two_words_on_one_setting_the_last_one_counts() -> None:
    assert asked("--set", "run.seed=1", "--set", "run.seed=2").run.seed == 2


def test_the_settings_of_a_manifest_are_those_under_config(tmp_path: Path) -> None:
    config = asked("periodic", "--task", "teacher", "--max-seeds", "2", "--set", "gates.mode=strict")
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"schema_version": 1, "config": encode(config), "slots": [], "pid": 1}))

    assert assemble(None, str(path), {}, []) == config


@pytest.mark.parametrize(
    ("argv", "section", "name", "value"),
    [
        (("random",), "run", "controller", "random"),
        (("--task", "teacher"), "task", "name", "teacher"),
        (("--slots", "r0c0", "r0c1"), "body", "slots", ("r0c0", "r0c1")),
        (("--max-seeds", "2"), "body", "max_seeds", 2),
        (("--blueprints", "norm"), "body", "blueprints", ("norm",)),
        (("--episode-length", "9"), "run", "episode_length", 9),
        (("--rounds", "3"), "run", "rounds", 3),
        (("--device", "cuda:1"), "engine", "device", "cuda:1"),
        (("--data", "synthetic"), "task", "data", "synthetic"),
        (("--data-dir", "there"), "task", "data_dir", "there"),
        (("--download",), "task", "download", True),
        (("--start-from", "it"), "run", "start_from", "it"),
        (("--topology-from", "it"), "run", "topology_from", "it"),
    ],
)
def test_every_flag_stands_for_a_setting(argv: tuple[str, ...], section: str, name: str, value: Any) -> None:
    chosen, default = encode(asked(*argv)), encode(EsperConfig())

    assert vars(vars(asked(*argv))[section])[name] == value
    default[section][name] = chosen[section][name]
    assert chosen == default


def test_every_flag_names_a_setting_that_exists() -> None:
    for path in FLAGS.values():
        section, name = path.split(".")
        assert name in vars(vars(EsperConfig())[section])


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("body.max_seed=1", "body.max_seed: no such setting; did you mean 'body.max_seeds'"),
        ("boddy.max_seeds=1", "boddy"),
        ("run.envs=0", "run.envs: 0 is out of range; use 1 or more"),
        ("task.optimiser=sgdd", "task.optimiser: 'sgdd' is not one of sgd, adam, adamw, rmsprop; did you mean 'sgd'"),
        ("task.lr=nan", "task.lr"),
    ],
)
def test_a_wrong_setting_is_named_with_its_range_and_the_nearest_real_one(assignment: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        asked("--set", assignment)

    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
