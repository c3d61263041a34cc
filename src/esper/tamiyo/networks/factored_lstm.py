"""The learned policy's network: sensors -> features -> LSTM -> named logits, a value, and Q(s, op) for diagnostics.

T steps of N environments go in at once, from the memory they begin with; one step of them is T = 1. Nothing here is
random or differs between training and evaluation, so what is recomputed from a rollout is what was done in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from esper.leyline.sensors import HOST_SENSORS, SLOT_SENSORS
from esper.leyline.slot_config import SlotConfig
from esper.tamiyo.config import NetworkConfig
from esper.tamiyo.policy.features import FIRST_BLUEPRINT
from esper.tamiyo.policy.heads import BLUEPRINT, SLOT, HeadTable
from esper.tamiyo.policy.normaliser import RunningNormaliser

HOST_SPANS = tuple(None if sensor.kind == "flag" else sensor.high - sensor.low for sensor in HOST_SENSORS)
SLOT_SPANS = tuple(None if sensor.kind == "flag" else sensor.high - sensor.low for sensor in SLOT_SENSORS)


@dataclass(frozen=True)
class Inputs:
    """Observations of T steps of N environments, as sensors read them."""

    base: Tensor  # [T, N, B]
    slots: Tensor  # [T, N, S, F]
    blueprints: Tensor  # [T, N, S] int64

    def map(self, change: Callable[[Tensor], Tensor]) -> Inputs:
        """The same with every tensor changed."""
        return Inputs(change(self.base), change(self.slots), change(self.blueprints))


@dataclass(frozen=True)
class Memory:
    """State of the LSTM, one row per environment."""

    hidden: Tensor  # [N, M]
    cell: Tensor  # [N, M]


@dataclass(frozen=True)
class Output:
    """What the network makes of T steps of N environments."""

    row: Tensor  # [T, N, W] flat logits, see `policy/heads.py`
    value: Tensor  # [T, N] of the state, in the learner's normalised unit
    op_values: Tensor  # [T, N, O] of the state and each op, likewise; no gradient goes into the rest
    hidden: Tensor  # [T, N, M] the LSTM's state after each step
    memory: Memory


class TamiyoNetwork(nn.Module):
    """Recurrent actor and critic with factored heads. Only the scores of slots know which slot they are of."""

    def __init__(
        self,
        slot_config: SlotConfig,
        table: HeadTable,
        config: NetworkConfig | None = None,
        host_spans: Sequence[float | None] = HOST_SPANS,
        slot_spans: Sequence[float | None] = SLOT_SPANS,
    ) -> None:
        """Draws its weights from torch's global generator, which the caller lends.

        host_spans, slot_spans: of every host and slot sensor the width of its range, None for a flag; they also say how
        many there are.
        """
        super().__init__()
        self.config = NetworkConfig() if config is None else config
        assert table.num_slots == slot_config.num_slots, f"{table.num_slots} slots, want {slot_config.num_slots}"
        self.table = table
        size, slot_size = self.config.size, self.config.slot_size
        blueprints = table.sizes[table.heads.index(BLUEPRINT)] if BLUEPRINT in table.heads else 0
        self.base_norm, self.slot_norm = RunningNormaliser(host_spans), RunningNormaliser(slot_spans)
        self.embedding = nn.Embedding(FIRST_BLUEPRINT + blueprints, self.config.embedding)
        per_slot = len(slot_spans) + self.config.embedding
        self.features = nn.Sequential(
            nn.Linear(len(host_spans) + slot_config.num_slots * per_slot, size), nn.LayerNorm(size), nn.ReLU()
        )
        self.lstm = nn.LSTM(size, size)
        self.lstm_norm = nn.LayerNorm(size)
        self.actor = _two_layers(size, size, table.num_ops + table.argument_width, gain=0.01)
        self.slot_context = nn.Linear(size, slot_size)
        self.slot_scorer = _two_layers(slot_size + per_slot, slot_size, len(table.slot_ops), gain=0.01)
        self.critic = _two_layers(size, size, 1, gain=0.1)
        self.op_critic = _two_layers(size, size, table.num_ops, gain=0.1)
        self._begin_lstm()

    def blank_memory(self, envs: int) -> Memory:
        """The memory of environments at the start of a sequence."""
        return Memory(torch.zeros(envs, self.config.size), torch.zeros(envs, self.config.size))

    def forward(self, inputs: Inputs, memory: Memory) -> Output:
        """Reads the steps in order. Raises AssertionError, got and want, for another number of sensors or slots."""
        self._check(inputs)
        slots = torch.cat((self.slot_norm(inputs.slots), self.embedding(inputs.blueprints)), dim=-1)
        seen = self.features(torch.cat((self.base_norm(inputs.base), slots.flatten(2)), dim=-1))
        remembered, (hidden, cell) = self.lstm(seen, (memory.hidden.unsqueeze(0), memory.cell.unsqueeze(0)))
        x = seen + self.lstm_norm(remembered)
        op, arguments = self.actor(x).split((self.table.num_ops, self.table.argument_width), dim=-1)
        context = self.slot_context(x).unsqueeze(2).expand(-1, -1, slots.shape[2], -1)
        scores = self.slot_scorer(torch.cat((context, slots), dim=-1))  # [T, N, S, ops with a slot]
        row = torch.cat((op, scores.transpose(2, 3).flatten(2), arguments), dim=-1)
        return Output(
            row=row,
            value=self.critic(x).squeeze(-1),
            op_values=self.op_critic(x.detach()),
            hidden=remembered,
            memory=Memory(hidden.squeeze(0), cell.squeeze(0)),
        )

    def update_statistics(self, inputs: Inputs, valid: Tensor) -> None:
        """Takes observations of steps where `valid` [T, N] into the normalisers."""
        self.base_norm.update(inputs.base[valid])
        self.slot_norm.update(inputs.slots[valid])

    @torch.no_grad()
    def rescale_values(self, factor: float, addend: float) -> None:
        """Makes every value `factor` times what it was, plus `addend` (the output rule of van Hasselt et al. 2016)."""
        for critic in (self.critic, self.op_critic):
            *_, last = critic
            assert isinstance(last, nn.Linear)
            last.weight.mul_(factor)
            last.bias.mul_(factor).add_(addend)

    @torch.no_grad()
    def lean(self, head: str, choice: int, logit: float) -> None:
        """Adds `logit` to one choice of a head wherever it is asked; not for the slot, whose scores are relative."""
        assert head != SLOT, "a slot has no logit of its own"
        widths = dict(zip(self.table.heads, self.table.widths, strict=True))
        del widths[SLOT]  # the actor has the logits of all heads but the slot
        last = self.actor[-1]
        assert isinstance(last, nn.Linear)
        biases = dict(zip(widths, last.bias.split(list(widths.values())), strict=True))
        biases[head][choice] += logit

    def _check(self, inputs: Inputs) -> None:
        got = (inputs.base.shape[-1], *inputs.slots.shape[-2:])
        want = (len(self.base_norm.is_flag), self.table.num_slots, len(self.slot_norm.is_flag))
        assert got == want, f"observations are {got} (host sensors, slots, slot sensors), want {want}"

    def _begin_lstm(self) -> None:
        """Orthogonal recurrence, and a forget gate that begins open (Jozefowicz et al., 2015)."""
        size, params = self.config.size, dict(self.lstm.named_parameters())
        for part in (*params["weight_ih_l0"].chunk(4), *params["weight_hh_l0"].chunk(4)):
            nn.init.orthogonal_(part)
        with torch.no_grad():
            params["bias_ih_l0"].zero_()[size : 2 * size] = 1.0
            params["bias_hh_l0"].zero_()


def _two_layers(inputs: int, hidden: int, outputs: int, gain: float) -> nn.Sequential:
    first, last = nn.Linear(inputs, hidden), nn.Linear(hidden, outputs)
    nn.init.orthogonal_(first.weight, gain=2**0.5)
    nn.init.orthogonal_(last.weight, gain=gain)
    nn.init.zeros_(first.bias)
    nn.init.zeros_(last.bias)
    return nn.Sequential(first, nn.ReLU(), last)
