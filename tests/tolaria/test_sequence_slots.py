"""The engine, the heuristic and what is exported, on networks with slots around weights and one for sequences."""

from __future__ import annotations

import pytest
import torch
from tests.support import same, snapshot
from tests.tolaria.small import CLASSES, Step, by_plan, do, engine_on, live, toy
from torch import Tensor, nn

from esper.kasmina.blueprints import BLUEPRINTS
from esper.kasmina.cnn_host import CNNConfig
from esper.kasmina.config import BodyConfig
from esper.kasmina.export import export
from esper.kasmina.slot import SeedSlot
from esper.kasmina.weight_site import WeightSite
from esper.leyline.errors import ConfigError
from esper.leyline.factored_actions import FactoredAction, LifecycleOp
from esper.leyline.reports import HostReport
from esper.leyline.stages import SeedStage
from esper.tamiyo.config import HeuristicConfig, PolicyConfig
from esper.tamiyo.controller import Build
from esper.tamiyo.heuristic import heuristic
from esper.tamiyo.policy.action_masks import LegalActions
from esper.tamiyo.policy.features import observe
from esper.tolaria.engine import Engine
from esper.tolaria.governor import Governor


class Rows(nn.Module):
    """Reads an image [N, 1, 8, 8] row by row: r0c0 is a cut of `width` channels, r0c1 stands around width -> 36."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.embed = nn.Linear(8, width)
        self.cut = SeedSlot.at("r0c0", width, "BTC")
        self.project = WeightSite(nn.Linear(width, 36), "r0c1", order=1)
        self.head = nn.Linear(36, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.cut(self.embed(x[:, 0])))
        scores: Tensor = self.head(torch.relu(self.project(x)).mean(1))
        return scores


def life_of(slot: str, blueprint: str, style: str = "linear_add") -> list[dict[str, str] | None]:
    advance = do("ADVANCE", slot)
    plant = do("GERMINATE", slot, blueprint=blueprint, tempo="fast", style=style)
    return [plant, advance, advance, None, None, advance, do("FOSSILIZE", slot)]


@pytest.mark.parametrize(
    ("slot", "blueprint", "grown"),
    [("r0c0", "lora", 2 * 8 * 32), ("r0c0", "attention", 4 * 32 * 32 + 2 * 32), ("r0c1", "lora", 8 * (32 + 36))],
)
def test_a_seed_lives_through_an_episode_and_is_kept(slot: str, blueprint: str, grown: int) -> None:
    engine = engine_on(toy(make_host=Rows), length=30)

    steps = live(engine, by_plan(*life_of(slot, blueprint)), 12, Governor(engine.setup.governor))

    assert all(receipt.done for step in steps for receipt in step.receipts)
    (outcome,) = engine.outcomes()
    assert (outcome.fossilized, outcome.params - outcome.host_params) == (1, grown)
    (report,) = engine.reports()
    assert [seen.stage is SeedStage.FOSSILIZED for seen in report.slots] == [slot == "r0c0", slot == "r0c1"]


def test_test_figures_are_those_of_the_network_with_the_seed_merged_into_its_weight() -> None:
    engine = engine_on(toy(make_host=Rows), length=30)
    live(engine, by_plan(*life_of("r0c1", "lora")), 12)

    (outcome,) = engine.outcomes()
    network = export(engine.environments[0].model, engine.environments[0].probe).eval()

    test = engine.setup.task.splits.test
    with torch.no_grad():
        right = (network(test.inputs).argmax(1) == test.targets).double().mean()
    assert outcome.test_metric == pytest.approx(100 * float(right))
    assert sum(param.numel() for param in network.parameters()) == outcome.host_params


def led_by_the_heuristic(engine: Engine, length: int) -> tuple[list[FactoredAction], list[Step]]:
    """What it asked for, and what came of it."""
    controller = heuristic(Build(PolicyConfig(), engine.space, 0))
    memory = controller.blank_memory(1)
    done = []

    def decide(report: HostReport, legal: LegalActions) -> FactoredAction:
        nonlocal memory
        choice, memory = controller.act(observe([report]), [legal], memory)
        done.extend(choice.actions)
        return choice.actions[0]

    steps = live(engine, decide, length)
    return done, steps


def test_the_heuristic_plants_ladders_among_sequences_and_around_weights() -> None:
    offered = BodyConfig(blueprints=("lora_ladder", "mlp_small", "norm"), seed_lr_scale=1.0)
    engine = engine_on(toy(make_host=Rows), length=40, body=offered)

    done, steps = led_by_the_heuristic(engine, 40)

    assert all(receipt.done or receipt.refused_by != "illegal" for step in steps for receipt in step.receipts)
    planted = [(action.slot_id, action.chosen("blueprint")) for action in done if action.op is LifecycleOp.GERMINATE]
    assert ("r0c1", "lora_ladder") in planted
    assert {slot for slot, blueprint in planted if blueprint != "lora_ladder"} <= {"r0c0"}
    assert engine.reports()[0].slots[1].blueprint_id == "lora_ladder"
    assert LifecycleOp.ADVANCE in {action.op for action in done}


def test_around_convolutions_ladders_grow_and_the_same_run_is_the_same_to_the_last_bit() -> None:
    host = CNNConfig(widths=(8, 8), pools=(True, False), classes=CLASSES, cut="weights")
    ladders = BodyConfig(blueprints=("lora_ladder",), seed_lr_scale=1.0)
    first, again = (engine_on(toy(make_host=host.build), length=30, body=ladders) for _ in range(2))

    (done, steps), (other, _) = (led_by_the_heuristic(engine, 30) for engine in (first, again))

    assert {LifecycleOp.GERMINATE, LifecycleOp.GROW_INTERNAL} <= {action.op for action in done}
    assert all(receipt.done or receipt.refused_by != "illegal" for step in steps for receipt in step.receipts)
    assert (done, first.reports()) == (other, again.reports())
    assert same(snapshot(first.environments[0].model), snapshot(again.environments[0].model))


def test_without_names_a_run_offers_what_fits_its_slots() -> None:
    wide, narrow = (engine_on(toy(make_host=lambda width=width: Rows(width))).space for width in (32, 16))

    assert set(wide.blueprints) == {"norm", "attention", "lora", "lora_large", "mlp_small", "mlp"}
    assert set(narrow.blueprints) == set(wide.blueprints) - {"lora_large"}
    fits = dict(zip(wide.blueprints, zip(*wide.fits, strict=True), strict=True))
    assert {name for name, (_, around) in fits.items() if around} == {"lora", "lora_large"}


@pytest.mark.parametrize("name", ["lora_large", "lora_ladder"])
def test_a_rank_above_the_width_is_refused_in_one_line_before_a_run(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        engine_on(toy(make_host=lambda: Rows(16)), body=BodyConfig(blueprints=("norm", name)))

    why = f"blueprint {name!r} has rank 32, which is above the width of slot r0c1, 16"
    assert str(caught.value) == f"body.blueprints: {why}; no slot is wide enough"


def test_the_heuristic_has_a_preference_among_all_blueprints() -> None:
    assert sorted(HeuristicConfig().prefer) == sorted(BLUEPRINTS)
