"""Whatever is wrong with a command line is said in one line, with exit code 2, and nothing is written."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.scripts.loader import safe_loader
from tests.scripts.zygote import Zygote

BAD = {
    "an unknown controller": (("heuristc",), "unknown controller 'heuristc'; did you mean 'heuristic'"),
    "a controller that nothing is like": (
        ("wizard",),
        "unknown controller 'wizard'; known: ppo, static, random, periodic, heuristic, "
        "policy:RUN, script:RUN, schedule:RUN, variants:FILE\n",
    ),
    "a learner with a typo": (("poo",), "unknown controller 'poo'; did you mean 'ppo'?"),
    "a policy without a run": (("policy",), "unknown controller 'policy'; did you mean 'policy:RUN'?"),
    "a group of hosts that differ": (
        ("ppo", "--preset", "digits_mix", "--set", "run.shared_init=false"),
        "ppo.baseline: group compares the hosts of a round",
    ),
    "learning from likeliest choices": (("ppo", "--set", "policy.greedy=true"), "policy.greedy: ppo learns from"),
    "a teacher that is no rule": (
        ("ppo", "--set", "ppo.teacher.rule=heuristc"),
        "ppo.teacher.rule: 'heuristc' is no rule; did you mean 'heuristic'",
    ),
    "a teacher that reads a file": (("ppo", "--set", "ppo.teacher.rule=scripted"), "'scripted' is no rule"),
    "a teacher for longer than there are rounds": (
        ("ppo", "--rounds", "3", "--set", "ppo.teacher.rule=heuristic"),
        "ppo.teacher.rounds: 10 of 3 rounds; give the teacher fewer, or use --rounds",
    ),
    "shuffled sensors of a learner": (
        ("ppo", "--envs", "2", "--set", "policy.shuffle_sensors=true"),
        "policy.shuffle_sensors: is for what has been learned; use policy:RUN, not 'ppo'",
    ),
    "shuffled sensors of a rule": (
        ("heuristic", "--envs", "2", "--set", "policy.shuffle_sensors=true"),
        "policy.shuffle_sensors: is for what has been learned; use policy:RUN, not 'heuristic'",
    ),
    "a setting that nothing is like": (
        ("ppo", "--set", "ppo.nope=1"),
        "config.ppo.nope: no such setting; known: lr, lr_left, epochs,",
    ),
    "a policy that is not there": (("policy:no.pt",), "no.pt"),
    "a reward that is not there": (("ppo", "--reward-mode", "shapd"), "reward.mode: 'shapd'"),
    "an A/B test of one reward": (("ppo", "--ab-test", "shaped"), "'shaped' is not two reward modes"),
    "an A/B test without a learner": (("static", "--ab-test", "shaped-vs-basic"), "use ppo, not 'static'"),
    "two discounts": (("ppo", "--set", "ppo.gamma=0.9"), "set both alike"),
    "no environments": (("ppo", "--envs", "0"), "run.envs: 0"),
    "no epochs": (("ppo", "--episode-length", "0"), "run.episode_length: 0"),
    "more workers than environments": (("ppo", "--envs", "2", "--workers", "3"), "use 1 to 2"),
    "an unknown task": (("static", "--task", "digitz"), "unknown task 'digitz'; did you mean 'digits'"),
    "an unknown preset": (("static", "--preset", "cifar"), "unknown preset 'cifar'"),
    "a slot by a word": (
        ("static", "--slots", "early"),
        "Invalid slot 'early'. Use canonical format: r0c0, r0c1, r0c2, ... This host has r0c0, r0c1, r0c2",
    ),
    "a slot that the host lacks": (("static", "--slots", "r0c7"), "'r0c7' is not in this host; it has r0c0, r0c1"),
    "a slot twice": (("static", "--slots", "r0c0", "r0c0"), "each once"),
    "an unknown blueprint": (("static", "--blueprints", "conv_hevy"), "did you mean 'conv_heavy'"),
    "blueprints for other tensors": (
        ("static", "--blueprints", "mlp", "lora"),
        "mlp lora: none fits a slot of this host, which carry NCHW tensors; those on the shelf that do: norm attention",
    ),
    "no blueprint at all": (("static", "--set", "body.blueprints="), "none fits a slot"),
    "an unknown key": (("static", "--set", "task.learning_rate=1"), "task.learning_rate: no such setting"),
    "a key that is nearly right": (("static", "--set", "body.max_seed=1"), "did you mean 'body.max_seeds'"),
    "a key of no section": (("static", "--set", "lr=1"), "lr"),
    "a value of another type": (("static", "--set", "run.envs=many"), "run.envs: 'many' is not"),
    "a value out of range": (("static", "--max-seeds", "0"), "body.max_seeds: 0 is out of range; use 1 or more"),
    "a number that is none": (("static", "--envs", "two"), "argument --envs: invalid int value: 'two'"),
    "a setting without a value": (("static", "--set", "task.lr"), "write section.name=value"),
    "an unknown flag": (("static", "--speed", "9"), "unrecognized arguments: --speed 9"),
    "a host of one block": (("static", "--set", "task.widths=8"), "two blocks or more"),
    "a batch larger than the data": (("static", "--set", "task.batch_size=4096"), "task.batch_size: 4096 is larger"),
    "a folder without data": (("static", "--task", "cifar_scale", "--data-dir", "gone"), "no files in 'gone'"),
    "variants from no file": (("variants:absent.json",), "absent.json: not readable as JSON"),
    "variants that are no settings": (("variants:dance.json",), "dance.json"),
    "variants in no list": (("variants:noop.json",), "noop.json"),
    "variants with a typo": (("variants:tuned.json",), "keep_evidense"),
    "variants without a file": (("variants",), "write variants:FILE"),
    "synthetic data where there is none": (("static", "--data", "synthetic"), "'digits' brings its own data"),
    "a folder of data where there is none to read": (
        ("static", "--data-dir", "."),
        "task.data_dir: 'digits' brings its own data; --data-dir is for the cifar and tinystories tasks",
    ),
    "a download where there is nothing to download": (
        ("static", "--task", "teacher", "--download"),
        "task.download: 'teacher' brings its own data; --download is for the cifar and tinystories tasks",
    ),
    "a gate that time never passes": (("static", "--set", "body.auto_advance=G1,G5"), "'G5' is not one of G1, G2, G3"),
    "the gate of a germination": (("static", "--set", "body.auto_advance=G0"), "'G0' is not one of G1, G2, G3"),
    # 9 * 10^10 weights of the second block, 9 * 10^5 of the first, two norms of 2 * 10^5, a head of 10^6 + 10.
    "a host larger than the machine": (
        ("static", "--set", "task.widths=[100000,100000]"),
        "task.widths: [100000, 100000] make 90,002,300,010 parameters, 335 GiB, and this machine has",
    ),
    "a host that cannot be counted": (
        ("static", "--set", "task.widths=[1000000000000,1000000000000]"),
        "task.widths: [1000000000000, 1000000000000] make more parameters than can be counted",
    ),
    "a device that is not there": (("static", "--device", "warp"), "engine.device: 'warp' cannot be used here"),
    "a settings file that is not there": (("--config-json", "gone.json"), "gone.json: no such file"),
    "a settings file of another kind": (("--config-json", "list.json"), "list.json: holds"),
    "a settings file that is no JSON": (("--config-json", "broken.json"), "broken.json"),
    "a settings file with unknown keys": (("--config-json", "strange.json"), "run.epochs: no such setting"),
    "a folder for a settings file": (("--config-json", "."), "cannot be read"),
    "a script of a run that is not there": (("script:nosuchrun",), "run 'nosuchrun': no such run"),
    "a script without a name": (("script:",), "not a run folder"),
    "a script with a name that no file can have": (("script:" + "x" * 5000,), "not a run folder"),
    "a controller that wants a script": (("scripted",), "write script:RUN or script:FILE"),
    "a script that is no JSON": (("script:broken.json",), "broken.json: not readable as JSON"),
    "a script that is not two lists deep": (("script:list.json",), "a script is a list per environment"),
    "a script of numbers": (("script:numbers.json",), "1 is not a decision"),
    "a script without an operation": (("script:noop.json",), "is not a decision"),
    "an unknown operation": (("script:dance.json",), "script: op 'DANCE' is not in this action space"),
    "a slot of a script that the run lacks": (("script:far.json",), "slot 'r0c9' is not in this action space"),
    "a start from a run that is not there": (("static", "--start-from", "nosuchrun"), "run 'nosuchrun': no such run"),
    "the latest run before there is one": (("static", "--start-from", "latest"), "there is no run in runs yet"),
    "a topology of a run that is not there": (("static", "--topology-from", "gone"), "run 'gone': no such run"),
    "a surface that there is not": (
        ("static", "--surfaces", "post_attention"),
        "'post_attention' is not one of block_end, post_attn, post_mlp, pre_pool, post_pool; did you mean 'post_attn'?",
    ),
    "a surface that the host lacks": (
        ("static", "--task", "digits_pool", "--surfaces", "post_attn"),
        "surfaces: this host has no slot at 'post_attn'; its surfaces are post_pool, pre_pool",
    ),
    "a slot at another surface": (
        ("static", "--task", "digits_pool", "--surfaces", "pre_pool", "--slots", "r0c1"),
        "surfaces: slot r0c1 stands at post_pool, which is not among pre_pool",
    ),
    "no surface": (("static", "--set", "body.surfaces="), "body.surfaces: none is given"),
    "a lattice slot on a host cut in segments": (
        ("static", "--task", "stdlib_lm", "--slots", "r1c1"),
        "slots: 'r1c1' is not in this host; it has r0c0, r0c1, r0c2",
    ),
    "a slot of layers on a host with slots around weights": (
        ("static", "--task", "stdlib_lm", "--set", "task.cut=weights", "--slots", "r0c5"),
        "slots: 'r0c5' is not in this host; it has r0c0, r0c1, r1c0, r1c1",
    ),
    "a rank above the width": (
        ("static", "--task", "stdlib_lm", "--set", "task.width=16", "--blueprints", "lora_ladder"),
        "body.blueprints: blueprint 'lora_ladder' has rank 32, which is above the width of slot r0c2, 16",
    ),
    "a rank above the width, around weights": (
        (
            *("static", "--task", "stdlib_lm", "--set", "task.width=16", "--set", "task.cut=weights"),
            *("--blueprints", "lora_ladder"),
        ),
        "body.blueprints: blueprint 'lora_ladder' has rank 32, which is above the width of slot r5c1, 16",
    ),
    "a seed that does not stand around weights": (
        ("static", "--task", "stdlib_lm", "--set", "task.cut=weights", "--blueprints", "mlp"),
        "body.blueprints: mlp: none fits a slot of this host, which carry weights",
    ),
    "a rank above the width, around convolutions": (
        ("static", "--set", "task.cut=weights", "--blueprints", "lora_large"),
        "body.blueprints: blueprint 'lora_large' has rank 32, which is above the width of slot r0c2, 16",
    ),
    "a seed that does not stand around convolutions": (
        ("static", "--set", "task.cut=weights", "--blueprints", "conv_light"),
        "body.blueprints: conv_light: none fits a slot of this host, which carry convolutions",
    ),
    "slots around weights of hosts whose widths are drawn": (
        ("static", "--task", "digits_mix", "--set", "task.cut=weights"),
        "task.cut: the hosts of 'digits_mix' differ in width from episode to episode",
    ),
    "a cut of images on a language host": (
        ("static", "--task", "stdlib_lm", "--set", "task.cut=pools"),
        "'stdlib_lm' has a language host, which is cut by segments or layers or lattice or weights, not pools",
    ),
    "a cut that does not exist": (("static", "--task", "stdlib_lm", "--set", "task.cut=heads"), "config.task.cut"),
    "segments that do not divide the layers": (
        ("static", "--task", "stdlib_lm", "--set", "task.num_segments=4"),
        "task.num_segments: 4 does not divide the 6 layers of the host; use one of 1, 2, 3, 6",
    ),
    "a text shorter than the context": (
        ("static", "--task", "stdlib_lm", "--set", "task.context=50000"),
        "task.context: 50000 is too long for the validation text",
    ),
    "channels for a language host": (
        ("static", "--task", "stdlib_lm", "--set", "task.widths=8,8"),
        "task.widths: 'stdlib_lm' has a language host; this is a setting of convolutional hosts",
    ),
    "seeds that no slot can hold": (
        ("static", "--task", "stdlib_lm", "--blueprints", "conv_light"),
        "body.blueprints: conv_light: none fits a slot of this host, which carry BTC tensors",
    ),
    "stories that are nowhere": (("static", "--task", "tinystories"), "tinystories: no data; --download fetches"),
    "settings that no number can hold": (("static", "--seed", "-1"), "run.seed: -1 is out of range"),
}
FILES = {
    "list.json": [1, 2],
    "strange.json": {"run": {"epochs": 5}},
    "numbers.json": [[1]],
    "tuned.json": [[{"keep_evidense": 2.0}]],
    "noop.json": [[{"slot": "r0c0"}]],
    "dance.json": [[{"op": "WAIT"}, {"op": "DANCE"}]],
    "far.json": [[{"op": "ADVANCE", "slot": "r0c9"}]],
}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for name, content in FILES.items():
        (tmp_path / name).write_text(json.dumps(content))
    (tmp_path / "broken.json").write_text('{"run": ')
    return tmp_path


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_said_in_one_line_and_nothing_is_written(zygote: Zygote, place: Path, case: str) -> None:
    argv, words = BAD[case]
    before = sorted(place.rglob("*"))

    ended = zygote.run("train", *argv, cwd=place)

    assert ended.code == 2, ended.err
    assert words in ended.err
    assert ended.err.startswith("esper")
    assert ended.err.count("\n") == 1
    assert ended.err.endswith("\n")
    assert "Traceback" not in ended.err
    assert ended.out == ""
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ((), "the following arguments are required: COMMAND"),
        (("trane",), "invalid choice: 'trane'"),
        (("list",), "the following arguments are required: WHAT"),
        (("list", "things"), "invalid choice: 'things'"),
        (("compare",), "the following arguments are required: --task"),
        (("compare", "--task", "digitz"), "unknown task 'digitz'"),
        (("compare", "--task", "digits", "--seeds", "0"), "--seeds 0"),
    ],
)
def test_other_commands_refuse_in_one_line_too(zygote: Zygote, place: Path, argv: tuple[str, ...], words: str) -> None:
    before = sorted(place.rglob("*"))

    ended = zygote.run(*argv, cwd=place)

    assert ended.code == 2, ended.err
    assert words in ended.err
    assert ended.err.count("\n") == 1
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize("flag", [pytest.param("--start-from", marks=safe_loader), "--topology-from"])
@pytest.mark.parametrize("content", [b"not a model", {"task": "digits"}, {"environments": [{"topology": []}]}])
def test_a_model_that_cannot_be_read_has_an_exit_code_of_its_own(
    zygote: Zygote, place: Path, flag: str, content: Any
) -> None:
    if isinstance(content, bytes):
        (place / "model.pt").write_bytes(content)
    else:
        torch.save(content, place / "model.pt")

    ended = zygote.run("train", "static", flag, "model.pt", cwd=place)

    assert ended.code == 3
    assert re.search(r"model.pt: not a (model|topology) that a run has saved", ended.err)
    assert ended.err.count("\n") == 1
    assert not (place / "runs").exists()


def test_a_root_that_cannot_be_written_has_an_exit_code_of_its_own(zygote: Zygote, place: Path) -> None:
    (place / "file").write_text("")

    ended = zygote.run("train", "static", "--set", "run.root=file/runs", cwd=place)

    assert ended.code == 74
    assert ended.err.count("\n") == 1


def test_an_existing_run_is_never_written_over(zygote: Zygote, place: Path) -> None:
    argv = ("train", "static", "--episode-length", "1", "--set", "task.epoch_items=64", "--quiet")

    runs = {zygote.run(*argv, cwd=place).out.splitlines()[0] for _ in range(3)}

    assert len(runs) == 3
