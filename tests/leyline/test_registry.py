"""A registry: names once, in order, and helpful when there is no such name."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from esper.leyline.errors import ConfigError
from esper.leyline.registry import Registry

Build = Callable[[], str]


def blueprints() -> Registry[str]:
    registry: Registry[str] = Registry("blueprint")
    for name in ("norm", "conv_heavy", "attention"):
        registry.register(name, name.upper())
    return registry


def test_names_come_in_the_order_of_registration():
    registry = blueprints()

    assert registry.names() == ("norm", "conv_heavy", "attention")
    assert list(registry) == ["norm", "conv_heavy", "attention"]
    assert registry.items() == (("norm", "NORM"), ("conv_heavy", "CONV_HEAVY"), ("attention", "ATTENTION"))
    assert len(registry) == 3


def test_an_entry_is_found_by_its_name():
    registry = blueprints()

    assert registry["conv_heavy"] == registry.get("conv_heavy") == "CONV_HEAVY"
    assert "conv_heavy" in registry
    assert "conv_hevy" not in registry


def test_register_decorates_and_leaves_the_function_as_it_was():
    registry: Registry[Build] = Registry("host")

    @registry.register("tiny-1")
    def tiny() -> str:
        return "a tiny host"

    assert registry["tiny-1"] is tiny
    assert tiny() == "a tiny host"


def test_an_unknown_name_gets_the_nearest_one_and_all_the_others():
    with pytest.raises(ConfigError) as caught:
        blueprints()["conv_hevy"]

    assert str(caught.value) == (
        "unknown blueprint 'conv_hevy'; did you mean 'conv_heavy'? known: norm, conv_heavy, attention"
    )


def test_a_name_like_no_other_gets_the_list():
    with pytest.raises(ConfigError) as caught:
        blueprints().get("zzz\n" * 1000)

    assert str(caught.value).startswith("unknown blueprint 'zzz\\n")
    assert str(caught.value).endswith("'; known: norm, conv_heavy, attention")
    assert "\n" not in str(caught.value)


def test_an_empty_registry_says_that_it_knows_none():
    with pytest.raises(ConfigError, match=r"^unknown task 'digits'; known: none$"):
        Registry("task")["digits"]


def test_a_name_is_registered_once():
    registry = blueprints()

    with pytest.raises(ConfigError, match=r"^blueprint 'norm' is registered already; choose another name$"):
        registry.register("norm")("another")

    assert registry["norm"] == "NORM"


@pytest.mark.parametrize("name", ["", "Norm", "_norm", "-norm", "no rm", "norm\n", "norm/../x", "é", "a" * 65])
def test_a_malformed_name_is_refused(name):
    with pytest.raises(ConfigError, match=r"^blueprint '.*': a name is 1 to 64 of a-z, 0-9, _ and -"):
        blueprints().register(name, "x")


@pytest.mark.parametrize("name", ["a", "0", "r0c0", "conv-light_2", "a" * 64])
def test_a_plain_name_is_accepted(name):
    registry = blueprints()

    registry.register(name, "x")

    assert registry.names()[-1] == name
