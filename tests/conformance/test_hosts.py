"""What every family of hosts promises: slots where it says, routing that composes, nothing overwritten."""

from __future__ import annotations

from itertools import combinations_with_replacement

import pytest
import torch
from tests.support import HOSTS, same, snapshot

from esper.kasmina.host import Host
from esper.kasmina.model import MorphogeneticModel
from esper.kasmina.protocol import HostProtocol
from esper.leyline.errors import ConfigError
from esper.leyline.injection_spec import in_order
from esper.leyline.slot_id import slot_sort_key, validate_slot_id

CHANNEL_AXIS = {"NCHW": 1, "BTC": 2, "BC": 1}


@pytest.fixture(params=HOSTS)
def host(request: pytest.FixtureRequest) -> Host:
    return HOSTS[request.param][0]()


@pytest.fixture
def x(request: pytest.FixtureRequest, host: Host) -> torch.Tensor:
    return HOSTS[request.node.callspec.params["host"]][1]()


def test_a_host_keeps_the_protocol(host: Host):
    assert isinstance(host, HostProtocol)


def test_slots_are_named_canonically_and_run_row_by_row(host: Host):
    assert all(map(validate_slot_id, host.slot_order))
    assert list(host.slot_order) == sorted(host.slot_order, key=slot_sort_key)
    assert tuple(host.injection_points) == host.slot_order
    assert in_order(host.injection_specs) == host.injection_specs


def test_each_slot_carries_the_channels_and_the_layout_its_spec_declares(host: Host, x):
    for spec in host.injection_specs:
        there = host.forward_to(spec.slot_id, x)
        assert there.dim() == len(spec.layout)
        assert there.shape[0] == x.shape[0]
        assert there.shape[CHANNEL_AXIS[spec.layout]] == spec.dim == host.injection_points[spec.slot_id]


def test_the_way_to_a_slot_composes_over_every_ordered_pair(host: Host, x):
    for first, second in combinations_with_replacement(host.slot_order, 2):
        there = host.forward_to(second, host.forward_to(first, x), from_slot_id=first)
        assert torch.equal(there, host.forward_to(second, x))


def test_going_to_a_slot_and_on_from_it_is_the_whole_pass(host: Host, x):
    for slot_id in host.slot_order:
        assert torch.equal(host.forward_from(slot_id, host.forward_to(slot_id, x)), host(x))


def test_going_on_from_a_slot_leaves_the_activation_as_it_is(host: Host, x):
    for slot_id in host.slot_order:
        cached = host.forward_to(slot_id, x)
        before = cached.clone()
        host.forward_from(slot_id, cached)
        assert torch.equal(cached, before)


@pytest.mark.parametrize("slot_id", ["early", "mid", "late", "r9c9"])
def test_a_slot_it_lacks_is_an_error_that_lists_those_it_has(host: Host, x, slot_id: str):
    model = MorphogeneticModel(host)
    for ask in (
        lambda: host.forward_to(slot_id, x),
        lambda: host.forward_to(host.slot_order[0], x, from_slot_id=slot_id),
        lambda: host.forward_from(slot_id, x),
        lambda: model.forward_to(slot_id, x),
        lambda: model.forward_to(host.slot_order[0], x, from_slot_id=slot_id),
        lambda: model.forward_from(slot_id, x),
        lambda: MorphogeneticModel(host, [slot_id]),
    ):
        with pytest.raises(ConfigError) as caught:
            ask()
        assert ", ".join(host.slot_order) in str(caught.value)
        if slot_id != "r9c9":
            assert f"Invalid slot '{slot_id}'. Use canonical format: r0c0, r0c1, r0c2, ..." in str(caught.value)


def test_there_is_no_way_back(host: Host, x):
    first, *_, last = host.slot_order

    with pytest.raises(ConfigError, match="comes before"):
        host.forward_to(first, host.forward_to(last, x), from_slot_id=last)


def test_with_empty_slots_the_model_is_the_host(host: Host, x):
    model = MorphogeneticModel(host)

    assert torch.equal(model(x), host(x))
    assert model.host_params == sum(param.numel() for param in host.parameters())
    assert model.isolate_blending == host.isolate_blending


def test_every_parameter_of_a_host_gets_a_gradient(host: Host, x):
    host(x).square().mean().backward()

    assert all(param.grad is not None and param.grad.abs().max() > 0 for param in host.parameters())


def test_a_host_is_built_from_the_lent_generator_alone():
    for make, _ in HOSTS.values():
        torch.manual_seed(0)
        before = torch.random.get_rng_state()
        assert same(snapshot(make()), snapshot(make()))
        assert torch.equal(torch.random.get_rng_state(), before)


def test_channels_last_inside_changes_no_number_and_reaches_every_slot():
    make, batch = HOSTS["cnn in channels_last"]
    host, x = make(), batch()
    plain = HOSTS["cnn in channels_last"][0]()
    plain.load_state_dict(host.state_dict())
    plain.config = type(plain.config)(widths=plain.config.widths, pools=plain.config.pools, in_channels=3)

    torch.testing.assert_close(host(x), plain(x))
    for slot_id in host.slot_order:
        assert host.forward_to(slot_id, x).is_contiguous(memory_format=torch.channels_last)
