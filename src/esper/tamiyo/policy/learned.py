"""A network as a controller: what draws decisions in rollouts also takes the likeliest ones when it is evaluated.

A trained policy is a file, `save_policy` and `load_policy`; it refuses an action space that it does not know.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from esper.leyline.config import decode, encode
from esper.leyline.decisions import Choice, Sight
from esper.leyline.errors import ConfigError
from esper.leyline.factored_actions import HEADS, ActionSpace, FactoredAction
from esper.leyline.files import write_whole
from esper.leyline.randomness import drawing_from, stream
from esper.leyline.reports import HostReport
from esper.leyline.saved import load_plain
from esper.leyline.sensors import HOST_SENSORS, SLOT_SENSORS
from esper.tamiyo.config import NetworkConfig
from esper.tamiyo.networks.factored_lstm import Inputs, Memory, Output, TamiyoNetwork
from esper.tamiyo.policy.action_masks import LegalActions
from esper.tamiyo.policy.heads import HeadTable, Possible, likelihood, sample

KIND, FORMAT = "policy", 1


PRIOR: Mapping[str, Mapping[str, float]] = {
    "op": {
        "SET_ALPHA_TARGET": -4.0,
        "PRUNE": -4.0,
        "FOSSILIZE": 3.0,
        "ADVANCE": 3.0,
        "GROW_INTERNAL": -1.0,
        "SHRINK_INTERNAL": -3.0,
    },
    "alpha_target": {"full": 4.0},
}
"""Logits that an untrained policy begins with. A uniform one prunes or stalls nearly every seed before it can be kept,
so that nothing is ever learned about keeping (dev/LOG.md)."""
SMALL_BETS = 0.5
"""An untrained policy plants a blueprint in proportion to one over this power of its parameters. One that plants all
alike finds, before it can tell them apart, that planting costs more than it brings (dev/LOG.md)."""


class LearnedPolicy:
    """A controller that decides by a network. Its memory is the LSTM's state, one pair of rows per environment."""

    def __init__(self, network: TamiyoNetwork, space: ActionSpace, seed: int, greedy: bool = False) -> None:
        """seed: of the draws; each is a stream of its own, named by round, environment and epoch."""
        self.network, self.space, self.seed, self.greedy = network, space, seed, greedy

    @property
    def reads(self) -> ActionSpace:
        return self.space

    def blank_memory(self, envs: int) -> tuple[Memory, ...]:
        return tuple(self.network.blank_memory(1) for _ in range(envs))

    @torch.no_grad()
    def act(
        self, sight: Sight, legal: Sequence[LegalActions], memory: Sequence[Memory]
    ) -> tuple[Choice, tuple[Memory, ...]]:
        """Draws one decision per environment, or takes the likeliest."""
        out, possible = self._look(sight, memory), Possible.of(legal)
        decisions = sample(self.network.table, out.row[0], possible, self._draws(sight.reports))
        return self._choice(out, possible, decisions), _by_environment(out.memory)

    @torch.no_grad()
    def follow(
        self,
        sight: Sight,
        legal: Sequence[LegalActions],
        memory: Sequence[Memory],
        actions: Sequence[FactoredAction],
    ) -> tuple[Choice, tuple[Memory, ...]]:
        """As `act`, but the decisions are somebody else's: what this policy thinks of them."""
        out, decisions = self._look(sight, memory), torch.tensor([action.indices for action in actions])
        return self._choice(out, Possible.of(legal), decisions), _by_environment(out.memory)

    def pack(self, memory: Sequence[Memory]) -> dict[str, Tensor]:
        """hidden, cell: [E, M]."""
        return {
            "hidden": torch.cat([each.hidden for each in memory]),
            "cell": torch.cat([each.cell for each in memory]),
        }

    def unpack(self, packed: dict[str, Tensor]) -> tuple[Memory, ...]:
        return _by_environment(Memory(packed["hidden"].clone(), packed["cell"].clone()))

    def _choice(self, out: Output, possible: Possible, decisions: Tensor) -> Choice:
        return Choice(
            actions=tuple(self.space.from_indices(indices) for indices in decisions.tolist()),
            log_prob=likelihood(self.network.table, out.row[0], possible, decisions).joint,
            value=out.value[0],
            executed=decisions,
        )

    def _look(self, sight: Sight, memory: Sequence[Memory]) -> Output:
        assert sight.base is not None, "this controller reads sensors; observe(reports, controller.reads) gives them"
        assert sight.slots is not None
        assert sight.blueprints is not None
        inputs = Inputs(sight.base.unsqueeze(0), sight.slots.unsqueeze(0), sight.blueprints.unsqueeze(0))
        state = Memory(torch.cat([each.hidden for each in memory]), torch.cat([each.cell for each in memory]))
        output: Output = self.network(inputs, state)
        return output

    def _draws(self, reports: Sequence[HostReport]) -> Tensor | None:
        """Uniform numbers [E, H], of each environment from a stream of its own."""
        if self.greedy:
            return None
        streams = (stream(self.seed, "policy", host.round, host.env, host.epoch) for host in reports)
        return torch.stack([torch.rand(len(HEADS), generator=generator) for generator in streams])


def _by_environment(memory: Memory) -> tuple[Memory, ...]:
    rows = zip(memory.hidden.split(1), memory.cell.split(1), strict=True)
    return tuple(Memory(hidden, cell) for hidden, cell in rows)


def new_policy(space: ActionSpace, config: NetworkConfig, seed: int, greedy: bool = False) -> LearnedPolicy:
    """An untrained policy."""
    with drawing_from(stream(seed, "policy weights")):
        network = TamiyoNetwork(slot_config=space.slot_config, table=HeadTable.of(space), config=config)
    for head, leanings in PRIOR.items():
        for name, logit in leanings.items():
            network.lean(head, space.choices(head).index(name), config.prior * logit)
    for choice, size in enumerate(_log_sizes(space)):
        network.lean("blueprint", choice, -config.prior * SMALL_BETS * size)
    return LearnedPolicy(network, space, seed, greedy)


def _log_sizes(space: ActionSpace) -> list[float]:
    """Of each blueprint the logarithm of its parameters, averaged over the slots that it fits; 0 where unknown."""
    columns = list(zip(*space.params, strict=True)) or [()] * len(space.blueprints)
    sizes = [[math.log(params) for params in column if params > 0] for column in columns]
    return [fmean(column) if column else 0.0 for column in sizes]


def save_policy(policy: LearnedPolicy, path: Path) -> None:
    """Tensors and primitives only; the file is complete or absent. Raises OSError."""
    saved = {
        "format": FORMAT,
        "kind": KIND,
        "space": policy.space.names(),
        "sensors": _sensor_names(),
        "network": encode(policy.network.config),
        "weights": policy.network.state_dict(),
    }
    buffer = io.BytesIO()
    torch.save(saved, buffer)
    write_whole(path, buffer.getvalue())


def load_policy(path: Path, space: ActionSpace, seed: int, greedy: bool) -> LearnedPolicy:
    """Raises ConfigError for a file that is no policy, or one of another action space, of other sensors, or broken."""
    saved = load_plain(path, "a policy that `esper train ppo` has saved", ConfigError)
    try:
        return _restored(saved, f"policy {path}", space, seed, greedy)
    except (LookupError, TypeError, AttributeError, RuntimeError) as error:  # it has not the parts of a policy
        raise ConfigError(f"policy {path}: not a policy that was saved here ({type(error).__name__})") from error


def _restored(saved: Any, owner: str, space: ActionSpace, seed: int, greedy: bool) -> LearnedPolicy:
    if not isinstance(saved, dict) or saved["kind"] != KIND:
        raise ConfigError(f"{owner}: not a policy that was saved here")
    if saved["format"] != FORMAT:
        raise ConfigError(f"{owner}: not of format {FORMAT}, which this version reads; train it again")
    space.require_same(saved["space"], owner)
    if saved["sensors"] != _sensor_names():
        raise ConfigError(f"{owner}: reads other sensors than this version offers; train it again")
    policy = new_policy(space, decode(NetworkConfig, saved["network"], owner), seed, greedy)
    policy.network.load_state_dict(saved["weights"])
    broken = [name for name, value in policy.network.state_dict().items() if not torch.isfinite(value).all()]
    if broken:
        raise ConfigError(f"{owner}: {broken[0]} is not finite")
    return policy


def _sensor_names() -> list[str]:
    return [*(sensor.name for sensor in HOST_SENSORS), *(sensor.name for sensor in SLOT_SENSORS)]
