"""Settings: what goes in comes out the same, and what is not a configuration is one line that says where and why."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.leyline.config import (
    Row,
    apply,
    check_ranges,
    decode,
    describe,
    encode,
    override,
    parse_assignments,
    read_json,
    setting,
)
from esper.leyline.errors import ConfigError


@dataclass(frozen=True)
class RunConfig:
    seed: int = setting(0, low=0, help="of every random stream")
    episode_length: int = setting(150, low=1, help="epochs")
    name: str | None = None
    devices: tuple[str, ...] = ("cpu",)

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class GovernorConfig:
    window: int = setting(10, low=2, high=1000)
    panic_ratio: float = setting(3.0, above=1)

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class AnnealConfig:
    start: float = 0.5
    end: float = 0.1

    def __post_init__(self) -> None:
        if self.end > self.start:
            raise ConfigError(f"end: {self.end} is above the start, {self.start}; use less")


@dataclass(frozen=True)
class PpoConfig:
    clip: float = setting(0.2, above=0, below=1)
    blend: Literal["add", "multiply", "gate"] = "add"
    bits: Literal[8, 16] | None = None
    optimiser: str = setting("adam", choices=("adam", "sgd"))
    shares: tuple[float, ...] = setting((), low=0, high=1)
    amp: bool = False
    anneal: AnnealConfig | None = None

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class SlotConfig:
    id: str
    width: int = 1


@dataclass(frozen=True)
class Root:
    run: RunConfig = RunConfig()
    governor: GovernorConfig = GovernorConfig(window=20)
    ppo: PpoConfig = field(default_factory=PpoConfig)
    slots: tuple[SlotConfig, ...] = ()

    def __post_init__(self) -> None:
        if self.governor.window > self.run.episode_length:
            raise ConfigError(f"governor.window: {self.governor.window} epochs do not fit into the episode")


def refusal(function: Any, *args: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        function(*args)
    message = str(caught.value)
    assert message.isprintable(), message
    return message


# ---- there and back --------------------------------------------------------------------------------------------------

whole = st.integers(-(2**63), 2**63 - 1)
number = st.floats(allow_nan=False, allow_infinity=False)
text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
anneals = st.tuples(number, number).map(lambda ends: AnnealConfig(start=max(ends), end=min(ends)))
roots = st.builds(
    Root,
    run=st.builds(
        RunConfig,
        seed=st.integers(0, 2**63 - 1),
        episode_length=st.integers(1000, 10**6),
        name=st.none() | text,
        devices=st.lists(text).map(tuple),
    ),
    governor=st.builds(
        GovernorConfig, window=st.integers(2, 1000), panic_ratio=st.floats(1, exclude_min=True, allow_infinity=False)
    ),
    ppo=st.builds(
        PpoConfig,
        clip=st.floats(0, 1, exclude_min=True, exclude_max=True),
        blend=st.sampled_from(["add", "multiply", "gate"]),
        bits=st.sampled_from([8, 16, None]),
        optimiser=st.sampled_from(["adam", "sgd"]),
        shares=st.lists(st.floats(0, 1) | st.integers(0, 1)).map(tuple),
        amp=st.booleans(),
        anneal=st.none() | anneals,
    ),
    slots=st.lists(st.builds(SlotConfig, id=text, width=whole)).map(tuple),
)


@given(roots)
def test_decode_undoes_encode_also_through_a_json_file(config):
    data = encode(config)

    assert decode(Root, data) == config
    assert decode(Root, json.loads(json.dumps(data, allow_nan=False))) == config
    assert encode(decode(Root, data)) == data


@given(roots)
def test_a_configuration_laid_over_another_replaces_it(config):
    assert apply(Root(), encode(config)) == config


def test_encode_makes_primitives_only():
    config = Root(run=RunConfig(devices=("cuda:0", "cuda:1")), slots=(SlotConfig("r0c0"),))

    assert encode(config) == {
        "run": {"seed": 0, "episode_length": 150, "name": None, "devices": ["cuda:0", "cuda:1"]},
        "governor": {"window": 20, "panic_ratio": 3.0},
        "ppo": {
            "clip": 0.2,
            "blend": "add",
            "bits": None,
            "optimiser": "adam",
            "shares": [],
            "amp": False,
            "anneal": None,
        },
        "slots": [{"id": "r0c0", "width": 1}],
    }


def test_a_whole_number_in_a_float_is_encoded_as_a_float():
    data = encode(GovernorConfig(panic_ratio=3))

    assert json.dumps(data) == '{"window": 10, "panic_ratio": 3.0}'


def test_what_is_absent_keeps_its_default():
    assert decode(Root, {}) == Root()
    assert decode(Root, {"governor": {"window": 5}}).governor == GovernorConfig(window=5, panic_ratio=3.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_float_is_finite(bad):
    unchecked = AnnealConfig(start=bad, end=bad)

    assert refusal(encode, unchecked) == f"config.start: {bad} is not a finite number"
    assert refusal(decode, AnnealConfig, {"start": bad}) == f"config.start: {bad} is not a finite number"
    assert refusal(GovernorConfig, 10, bad) == f"GovernorConfig.panic_ratio: {bad} is not a finite number"


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"governor": {"widnow": 5}}, "config.governor.widnow: no such setting; did you mean 'window'?"),
        ({"governor": {"lead": 5}}, "config.governor.lead: no such setting; known: window, panic_ratio"),
        ({"governer": {}}, "config.governer: no such setting; did you mean 'governor'?"),
        ({"clip": 0.1}, "config.clip: no such setting; did you mean 'ppo.clip'?"),
        ({"_comment": "hi"}, "config._comment: no such setting; known: run, governor, ppo, slots"),
        ({"run": {"a\nb": 1}}, r"config.run.'a\nb': no such setting; known: seed, episode_length, name, devices"),
        ({"run": {3: 1}}, "config.run: 3 is not the name of a setting; known: seed, episode_length, name, devices"),
        ({"governor": 3}, "config.governor: 3 is not a section; give an object with window, panic_ratio"),
        ({"governor": None}, "config.governor: null is not a section; give an object with window, panic_ratio"),
        ([], "config: a list is not a section; give an object with run, governor, ppo, slots"),
        ({"ppo": {"clip": "abc"}}, "config.ppo.clip: 'abc' is not a number"),
        ({"ppo": {"clip": None}}, "config.ppo.clip: null is not a number"),
        ({"ppo": {"clip": True}}, "config.ppo.clip: true is not a number"),
        ({"ppo": {"clip": [1]}}, "config.ppo.clip: a list is not a number"),
        ({"ppo": {"clip": {}}}, "config.ppo.clip: an object is not a number"),
        ({"ppo": {"clip": 10**400}}, "config.ppo.clip: a whole number of 1329 bits is too large for a number"),
        ({"run": {"seed": True}}, "config.run.seed: true is not a whole number"),
        ({"run": {"seed": 2.5}}, "config.run.seed: 2.5 is not a whole number"),
        ({"run": {"seed": 2.0}}, "config.run.seed: 2.0 is not a whole number but a decimal; write 2"),
        ({"run": {"seed": 1e300}}, "config.run.seed: 1e+300 is not a whole number"),
        ({"run": {"seed": "4"}}, "config.run.seed: '4' is not a whole number"),
        (
            {"run": {"seed": 2**70}},
            "config.run.seed: 1180591620717411303424 is out of range; a whole number must fit in 64 bits",
        ),
        ({"run": {"name": 3}}, "config.run.name: 3 is not text"),
        ({"run": {"name": "a\0"}}, r"config.run.name: 'a\x00' is not text: it holds a NUL"),
        ({"run": {"name": "\udc80"}}, r"config.run.name: '\udc80' is not text: it holds a broken character"),
        ({"run": {"devices": "cpu"}}, "config.run.devices: 'cpu' is not a list"),
        ({"run": {"devices": ["cpu", 1]}}, "config.run.devices[1]: 1 is not text"),
        ({"ppo": {"amp": "yes"}}, "config.ppo.amp: 'yes' is not true or false"),
        ({"ppo": {"amp": 1}}, "config.ppo.amp: 1 is not true or false"),
        (
            {"ppo": {"blend": "multiplly"}},
            "config.ppo.blend: 'multiplly' is not one of add, multiply, gate; did you mean 'multiply'?",
        ),
        ({"ppo": {"blend": 1}}, "config.ppo.blend: 1 is not one of add, multiply, gate"),
        ({"ppo": {"blend": [1]}}, "config.ppo.blend: a list is not one of add, multiply, gate"),
        ({"ppo": {"bits": 4}}, "config.ppo.bits: 4 is not one of 8, 16"),
        ({"ppo": {"bits": 8.0}}, "config.ppo.bits: 8.0 is not a whole number but a decimal; write 8"),
        ({"ppo": {"optimiser": "adm"}}, "config.ppo.optimiser: 'adm' is not one of adam, sgd; did you mean 'adam'?"),
        ({"run": {"episode_length": 0}}, "config.run.episode_length: 0 is out of range; use 1 or more"),
        ({"governor": {"window": 1}}, "config.governor.window: 1 is out of range; use 2 to 1000"),
        ({"governor": {"panic_ratio": 1}}, "config.governor.panic_ratio: 1 is out of range; use more than 1"),
        ({"ppo": {"clip": 1.0}}, "config.ppo.clip: 1.0 is out of range; use more than 0 and less than 1"),
        ({"ppo": {"shares": [0, 1.5]}}, "config.ppo.shares[1]: 1.5 is out of range; use 0 to 1"),
        ({"slots": [{"width": 1}]}, "config.slots[0].id: missing; it has no default, give str"),
        ({"slots": [{"id": "r0c0", "with": 1}]}, "config.slots[0].with: no such setting; did you mean 'width'?"),
        ({"ppo": {"anneal": {"end": 0.9}}}, "config.ppo.anneal.end: 0.9 is above the start, 0.5; use less"),
        ({"governor": {"window": 200}}, "config.governor.window: 200 epochs do not fit into the episode"),
    ],
)
def test_a_refusal_names_the_setting_the_fault_and_the_way_out(data, message):
    assert refusal(decode, Root, data) == message


def test_a_whole_number_may_stand_for_a_float():
    panic_ratio = decode(GovernorConfig, {"panic_ratio": 4}).panic_ratio

    assert panic_ratio == 4.0
    assert type(panic_ratio) is float


def test_a_configuration_made_in_python_is_checked_too():
    assert refusal(RunConfig, 0, 0) == "RunConfig.episode_length: 0 is out of range; use 1 or more"
    assert refusal(RunConfig, "0") == "RunConfig.seed: '0' is not a whole number"
    assert refusal(RunConfig, 0, 1, None, ["cpu"]) == "RunConfig.devices: a list is not a tuple"


@dataclass(frozen=True)
class WordsConfig:
    level: int = 0
    words: str = ""

    def __post_init__(self) -> None:
        if self.words:
            raise ConfigError(self.words)


@dataclass(frozen=True)
class WordsRoot:
    words: WordsConfig = WordsConfig()


@pytest.mark.parametrize(
    ("own", "shown"),
    [
        ("level: too deep", "config.words.level: too deep"),
        ("words.level: too deep", "config.words.level: too deep"),
        ("WordsConfig.level: too deep", "config.words.level: too deep"),
        ("config.words.level: too deep", "config.words.level: too deep"),
        ("config.words: too deep", "config.words: too deep"),
        ("level and words disagree", "config.words: level and words disagree"),
        ("over\ntwo lines", r"config.words: over\ntwo lines"),
    ],
)
def test_the_words_of_a_dataclass_get_the_path_in_front_once(own, shown):
    assert refusal(decode, WordsRoot, {"words": {"words": own}}) == shown


# ---- junk ------------------------------------------------------------------------------------------------------------

keys = st.sampled_from(
    ["run", "governor", "ppo", "slots", "seed", "name", "devices", "window", "clip", "bits", "anneal", "id", "start"]
)
atoms = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary()
    | st.sampled_from([2**70, 10**400, -0.0, 1e308, "\ud800", "none", "add", 8, object(), {1}])
)
junk = st.recursive(
    atoms,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(keys, inner, max_size=4)
        | st.dictionaries(atoms.filter(lambda key: not isinstance(key, set)), inner, max_size=2)
    ),
    max_leaves=12,
)


def checked(make: Any) -> None:
    """Either a configuration that survives the round trip, or a ConfigError of one short printable line."""
    try:
        made = make()
    except ConfigError as error:
        made = str(error)

    if isinstance(made, str):
        assert made.isprintable()
        assert len(made) < 300
    else:
        assert decode(Root, encode(made)) == made


@given(junk)
def test_junk_is_a_configuration_or_an_error_of_one_line(data):
    checked(lambda: decode(Root, data))


@given(roots, st.data())
def test_one_wrong_value_in_a_good_configuration_is_found(config, data):
    broken = encode(config)
    section = data.draw(st.sampled_from(["run", "governor", "ppo"]))
    name = data.draw(st.sampled_from(sorted(broken[section])))
    broken[section][name] = data.draw(junk)

    checked(lambda: decode(Root, broken))
    checked(lambda: apply(config, {section: {name: broken[section][name]}}))


@given(
    st.lists(st.builds("{}={}".format, st.sampled_from([row.path for row in describe(Root)]), st.text()) | st.text())
)
def test_any_text_after_set_is_a_configuration_or_an_error_of_one_line(assignments):
    checked(lambda: override(Root(), assignments))


def test_depth_size_and_self_reference_are_no_danger():
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    loop: dict[str, Any] = {}
    loop["run"] = loop

    assert refusal(decode, Root, {"ppo": {"clip": deep}}) == "config.ppo.clip: a list is not a number"
    assert refusal(decode, Root, {"run": {"seed": 10**5000}}) == (
        "config.run.seed: a whole number of 16610 bits is out of range; a whole number must fit in 64 bits"
    )
    assert refusal(decode, Root, loop).startswith("config.run.run: no such setting")


# ---- layers ----------------------------------------------------------------------------------------------------------


def test_a_layer_changes_what_it_names_and_nothing_else():
    config = Root(run=RunConfig(seed=7))

    changed = apply(config, {"governor": {"window": 5}}, {"governor": {"panic_ratio": 2}, "run": {"name": "x"}})

    assert changed == Root(run=RunConfig(seed=7, name="x"), governor=GovernorConfig(window=5, panic_ratio=2.0))
    assert config == Root(run=RunConfig(seed=7))


def test_the_later_layer_wins_and_a_list_is_replaced_whole():
    changed = apply(Root(), {"run": {"devices": ["a", "b"]}}, {"run": {"devices": ("c",)}})

    assert changed.run.devices == ("c",)


def test_two_layers_may_each_set_one_half_of_a_pair():
    short = apply(Root(), {"run": {"episode_length": 12}}, {"governor": {"window": 4}})

    assert (short.run.episode_length, short.governor.window) == (12, 4)
    assert refusal(apply, Root(), {"run": {"episode_length": 12}}) == (
        "config.governor.window: 20 epochs do not fit into the episode"
    )


def test_a_wrong_value_is_refused_even_when_a_later_layer_hides_it():
    message = refusal(apply, Root(), {"run": {"seed": -1}}, {"run": {"seed": 1}})

    assert message == "config.run.seed: -1 is out of range; use 0 or more"


def test_an_optional_section_begins_with_its_defaults_and_can_be_switched_off():
    on = apply(Root(), {"ppo": {"anneal": {"end": 0.2}}})

    assert on.ppo.anneal == AnnealConfig(start=0.5, end=0.2)
    assert apply(on, {"ppo": {"anneal": {"start": 0.3}}}).ppo.anneal == AnnealConfig(start=0.3, end=0.2)
    assert apply(on, {"ppo": {"anneal": None}}).ppo.anneal is None
    assert apply(on, {"ppo": {"anneal": None}}, {"ppo": {"anneal": {}}}).ppo.anneal == AnnealConfig()


# ---- --set -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("assignment", "value"),
    [
        ("run.seed=12", 12),
        ("run.seed=1_000", 1000),
        ("ppo.clip=1e-3", 0.001),
        ("ppo.clip = 0.5", 0.5),
        ("governor.panic_ratio=4", 4.0),
        ("ppo.amp=true", True),
        ("ppo.amp=False", False),
        ("ppo.blend=gate", "gate"),
        ("ppo.bits=16", 16),
        ("ppo.bits=none", None),
        ("run.name=a=b", "a=b"),
        ("run.name=", ""),
        ("run.name=none", None),
        ("run.devices=cuda:0,cuda:1", ("cuda:0", "cuda:1")),
        ("run.devices=cpu", ("cpu",)),
        ('run.devices=["a,b"]', ("a,b",)),
        ("run.devices=", ()),
        ("ppo.shares=0.5, 1", (0.5, 1.0)),
        ('slots=[{"id": "r0c0"}]', (SlotConfig("r0c0"),)),
        ("ppo.anneal.end=0.25", 0.25),
        ("ppo.anneal=none", None),
    ],
)
def test_set_reads_text_by_the_type_of_the_setting(assignment, value):
    changed: Any = override(Root(), [assignment])
    for name in assignment.partition("=")[0].strip().split("."):
        changed = getattr(changed, name)

    assert changed == value
    assert type(changed) is type(value)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("ppo.clp=1", "config.ppo.clp: no such setting; did you mean 'ppo.clip'?"),
        ("clip=1", "config.clip: no such setting; did you mean 'ppo.clip'?"),
        ("run.window=1", "config.run.window: no such setting; did you mean 'governor.window'?"),
        ("run.seed.x=1", "config.run.seed.x: no such setting; did you mean 'run.seed'?"),
        # Not near by its last name, though `ppo.` is the same: nothing is suggested that nobody meant.
        ("ppo.nope=1", "config.ppo.nope: no such setting; known: clip, blend, bits, optimiser, shares, amp, anneal"),
        ("ppo.sed=1", "config.ppo.sed: no such setting; did you mean 'run.seed'?"),
        ("zzz=1", "config.zzz: no such setting; known: run, governor, ppo, slots"),
        ("=1", "config.'': no such setting; known: run, governor, ppo, slots"),
        ("ppo.clip", "'ppo.clip' sets nothing; write section.name=value"),
        ("ppo.clip=abc", "config.ppo.clip: 'abc' is not a number"),
        ("ppo.clip=nan", "config.ppo.clip: nan is not a finite number"),
        ("ppo.clip=2", "config.ppo.clip: 2.0 is out of range; use more than 0 and less than 1"),
        ("run.seed=1e3", "config.run.seed: 1000.0 is not a whole number but a decimal; write 1000"),
        ("run.seed=none", "config.run.seed: 'none' is not a whole number"),
        ("ppo.amp=1", "config.ppo.amp: '1' is not true or false"),
        ("ppo.shares=0,x", "config.ppo.shares[1]: 'x' is not a number"),
        ("governor=none", "config.governor: a section cannot be set whole; set one of window, panic_ratio"),
        ('governor={"window": 3}', "config.governor: a section cannot be set whole; set one of window, panic_ratio"),
        ("slots=r0c0", "config.slots: not JSON: Expecting value (line 1 column 1)"),
        ('slots=[{"id": "a", "id": "b"}]', "config.slots: key 'id' appears twice in one object"),
    ],
)
def test_set_refuses_with_the_same_words_as_a_file(assignment, message):
    assert refusal(override, Root(), [assignment]) == message


def test_the_last_word_on_a_setting_wins_and_pairs_are_checked_at_the_end():
    config = override(Root(), ["run.seed=1", "run.episode_length=12", "governor.window=4", "run.seed=2"])

    assert (config.run.seed, config.run.episode_length, config.governor.window) == (2, 12, 4)


def test_assignments_are_a_layer_like_any_other():
    layer = parse_assignments(Root, ["run.seed=1", "ppo.anneal=none", "ppo.anneal.end=0.3", "ppo.shares=1"])

    assert layer == {"run": {"seed": 1}, "ppo": {"anneal": {"end": 0.3}, "shares": [1.0]}}


# ---- files -----------------------------------------------------------------------------------------------------------


def test_a_file_is_read_as_plain_data(tmp_path):
    path = tmp_path / "run.json"
    path.write_bytes(b'\xef\xbb\xbf{"run": {"seed": 3, "name": "\xc3\xa9"}}')

    assert read_json(path) == {"run": {"seed": 3, "name": "é"}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1,\n "b": }', "not JSON: Expecting value (line 2 column 7)"),
        (b"", "not JSON: Expecting value (line 1 column 1)"),
        (b"[1]", "holds a list; write an object {...}"),
        (b"null", "holds null; write an object {...}"),
        (b'{"a": {"lr": 1, "lr": 2}}', "key 'lr' appears twice in one object"),
        (b'{"a": NaN}', "NaN is not a finite number"),
        (b'{"a": [-Infinity]}', "-Infinity is not a finite number"),
        (b'{"a": 1e999}', "1e999 is not a finite number"),
        (b'{"a": ' + b"9" * 5000 + b"}", "a whole number of 5000 digits is out of range"),
        (b'{"a": ' + b"[" * 100_000, "nested too deeply for a configuration"),
        (b"\xff\xfe{\x00}\x00", "not UTF-8 text (byte 0)"),
        (b'{"a": "\x00"}', "not JSON: Invalid control character at (line 1 column 8)"),
        (b" " * (5 << 20), "larger than 4 MiB, so not a configuration"),
    ],
)
def test_a_file_that_is_not_an_object_is_refused_in_one_line(tmp_path, content, message):
    path = tmp_path / "run.json"
    path.write_bytes(content)

    assert refusal(read_json, path) == f"{path}: {message}"


def test_a_file_that_cannot_be_opened_is_refused_in_one_line(tmp_path):
    assert refusal(read_json, tmp_path / "none.json") == f"{tmp_path}/none.json: no such file"
    assert refusal(read_json, tmp_path) == f"{tmp_path}: cannot be read: Is a directory"
    assert refusal(read_json, "a\0b") == r"a\x00b: not the name of a file"
    assert refusal(read_json, "a\nb.json") == r"a\nb.json: no such file"


# ---- documentation ---------------------------------------------------------------------------------------------------


def test_describe_lists_every_setting_with_the_default_it_has_in_the_root():
    rows = describe(Root)

    assert rows[:2] == [
        Row("run.seed", "int", "0", "0 or more", "of every random stream"),
        Row("run.episode_length", "int", "150", "1 or more", "epochs"),
    ]
    assert [(row.path, row.type, row.default, row.range) for row in rows[2:]] == [
        ("run.name", "str or none", "none", ""),
        ("run.devices", "list of str", "cpu", ""),
        ("governor.window", "int", "20", "2 to 1000"),
        ("governor.panic_ratio", "float", "3.0", "more than 1"),
        ("ppo.clip", "float", "0.2", "more than 0 and less than 1"),
        ("ppo.blend", "add|multiply|gate", "add", ""),
        ("ppo.bits", "8|16 or none", "none", ""),
        ("ppo.optimiser", "adam|sgd", "adam", ""),
        ("ppo.shares", "list of float", "", "0 to 1"),
        ("ppo.amp", "bool", "false", ""),
        ("ppo.anneal", "section or none", "none", ""),
        ("ppo.anneal.start", "float", "0.5", ""),
        ("ppo.anneal.end", "float", "0.1", ""),
        ("slots", "list of SlotConfig", "[]", ""),
    ]


@dataclass(frozen=True)
class ListsConfig:
    names: tuple[str, ...] = ("a,b", "", "[")
    one_empty: tuple[str, ...] = ("",)
    maybe: tuple[int | None, ...] = (1, None)
    slots: tuple[SlotConfig, ...] = (SlotConfig("r0c0"),)
    lists: tuple[tuple[float, ...], ...] = ((0.5,), ())
    anneal: AnnealConfig | None = AnnealConfig(end=0.4)


def test_a_default_that_describe_shows_is_what_set_takes():
    for cls in (Root, ListsConfig):
        for row in describe(cls):
            if row.default == "section" or row.path.startswith("ppo.anneal."):
                continue
            assert override(cls(), [f"{row.path}={row.default}"]) == cls(), row


def test_a_setting_without_a_default_is_required():
    assert describe(SlotConfig) == [Row("id", "str", "required", "", ""), Row("width", "int", "1", "", "")]
