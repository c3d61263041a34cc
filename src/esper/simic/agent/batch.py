"""A round as tensors to learn from: sequences side by side, each from a blank memory to its end. Read `Batch` first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from esper.leyline.decisions import Sight
from esper.simic.agent.rollout_buffer import Rollout, Step
from esper.tamiyo.networks.factored_lstm import Inputs, TamiyoNetwork
from esper.tamiyo.policy.heads import Possible


@dataclass(frozen=True)
class Horizon:
    """What each of N columns saw after its last step, and which of them nothing but the end of the round has ended."""

    inputs: Inputs  # without the dimension of steps
    open: Tensor  # [N] bool

    def at(self, index: Tensor) -> Horizon:
        """Of the columns `index`."""
        return Horizon(self.inputs.map(lambda values: values[index]), self.open[index])


@dataclass(frozen=True)
class Batch:
    """T steps of N columns. Where `valid` is False there is no step, and what stands there must not matter.

    As it is collected, a column is an environment; after `cut` it is one sequence, padded at its end.
    """

    inputs: Inputs
    possible: Possible  # [T, N, O] and [T, N, O, S]
    decisions: Tensor  # [T, N, H] int64
    log_prob: Tensor  # [T, N] of the whole decision, as it was when it was taken
    value: Tensor  # [T, N] likewise, in the learner's normalised unit
    reward: Tensor  # [T, N] float64
    valid: Tensor  # [T, N] bool
    env: Tensor  # [T, N] int64
    time: Tensor  # [T, N] int64, step of the round
    horizon: Horizon | None = None  # None where every sequence has ended

    @staticmethod
    def of(rollout: Rollout, network: TamiyoNetwork) -> Batch:
        """The sequences of a round. Raises AssertionError where widths are not the network's."""
        assert rollout.steps, "nothing was collected"
        steps = rollout.steps
        inputs = _inputs([step.sight for step in steps])
        envs, count = inputs.base.shape[1], len(steps)
        masks = [Possible.of(step.legal) for step in steps]
        batch = Batch(
            inputs=inputs,
            possible=Possible(torch.stack([each.op for each in masks]), torch.stack([each.slot for each in masks])),
            decisions=torch.stack([_executed(step) for step in steps]),
            log_prob=_stacked([step.choice.log_prob for step in steps]),
            value=_stacked([step.choice.value for step in steps]),
            reward=torch.tensor([[score.total for score in step.scores] for step in steps], dtype=torch.float64),
            valid=torch.tensor([[not report.finished for report in step.sight.reports] for step in steps]),
            env=torch.arange(envs).expand(count, envs),
            time=torch.arange(count).unsqueeze(1).expand(count, envs),
            horizon=None
            if rollout.horizon is None
            else Horizon(_inputs([rollout.horizon]).map(lambda rows: rows[0]), torch.ones(envs, dtype=torch.bool)),
        )
        batch.check(network)
        return batch.cut(torch.tensor([list(step.ended) for step in steps]))

    @property
    def sequences(self) -> int:
        return self.valid.shape[1]

    def check(self, network: TamiyoNetwork) -> None:
        """Raises AssertionError, got and want, unless everything is as wide as the network and its heads."""
        table = network.table
        got = {
            "host sensors": self.inputs.base.shape[-1],
            "slots": self.inputs.slots.shape[-2],
            "slot sensors": self.inputs.slots.shape[-1],
            "slots of blueprints": self.inputs.blueprints.shape[-1],
            "heads": self.decisions.shape[-1],
            "masks of operations": self.possible.op.shape[-1],
            "masks of slots": tuple(self.possible.slot.shape[-2:]),
        }
        want = {
            "host sensors": len(network.base_norm.is_flag),
            "slots": table.num_slots,
            "slot sensors": len(network.slot_norm.is_flag),
            "slots of blueprints": table.num_slots,
            "heads": len(table.heads),
            "masks of operations": table.num_ops,
            "masks of slots": (table.num_ops, table.num_slots),
        }
        wrong = [f"{what}: got {got[what]}, want {want[what]}" for what in want if got[what] != want[what]]
        assert not wrong, f"this rollout is not of this network ({'; '.join(wrong)})"

    def map(self, change: Callable[[Tensor], Tensor], horizon: Horizon | None) -> Batch:
        """The same with every tensor of steps changed. `horizon`: of the columns that there are then."""
        possible = self.possible
        return Batch(
            inputs=self.inputs.map(change),
            possible=Possible(change(possible.op), change(possible.slot)),
            decisions=change(self.decisions),
            log_prob=change(self.log_prob),
            value=change(self.value),
            reward=change(self.reward),
            valid=change(self.valid),
            env=change(self.env),
            time=change(self.time),
            horizon=horizon,
        )

    def cut(self, ended: Tensor) -> Batch:
        """Columns that are environments made into sequences, each cut after a step that `ended` [T, E] bool.

        Whatever follows an end begins a sequence of its own; steps that are not valid are left out.
        """
        valid, ends = self.valid.T.tolist(), ended.T.tolist()
        spans = [(env, *span) for env in range(len(valid)) for span in _spans(valid[env], ends[env])]
        assert spans, "no environment took a step"
        env, first, after = torch.tensor(spans).unbind(1)
        steps = torch.arange(int((after - first).max())).unsqueeze(1)
        rows = (first + steps).clamp(max=self.valid.shape[0] - 1)
        horizon = self.horizon
        if horizon is not None:
            horizon = horizon.at(env)
            horizon = replace(horizon, open=horizon.open & (after == len(ended)) & ~ended[-1, env])
        return replace(self.map(lambda values: values[rows, env], horizon), valid=steps < after - first)

    def beyond(self) -> tuple[Inputs, Tensor]:
        """Inputs [T + 1, N] with the horizon after each sequence's last step, and [N] the index at which it stands."""
        assert self.horizon is not None, "nothing was seen after the last step"
        index = self.valid.sum(0), torch.arange(self.sequences)

        def longer(values: Tensor, last: Tensor) -> Tensor:
            return torch.cat((values, torch.zeros_like(values[:1]))).index_put(index, last)

        seen, last = self.inputs, self.horizon.inputs
        inputs = Inputs(
            longer(seen.base, last.base), longer(seen.slots, last.slots), longer(seen.blueprints, last.blueprints)
        )
        return inputs, index[0]

    def only(self, index: Tensor) -> Batch:
        """Some of the sequences, no longer than the longest of them, and what was seen behind them."""
        length = int(self.valid[:, index].sum(0).max())
        horizon = None if self.horizon is None else self.horizon.at(index)
        return self.map(lambda values: values[:length, index], horizon)


def _spans(valid: Sequence[bool], ended: Sequence[bool]) -> Iterator[tuple[int, int]]:
    """Of one environment, first and last + 1 of every run of valid steps up to an end."""
    first: int | None = None
    for step, (counts, over) in enumerate(zip(valid, ended, strict=True)):
        if counts and first is None:
            first = step
        if first is not None and not counts:
            yield first, step
            first = None
        elif first is not None and over:
            yield first, step + 1
            first = None
    if first is not None:
        yield first, len(valid)


def _inputs(sights: Sequence[Sight]) -> Inputs:
    return Inputs(
        _stacked([sight.base for sight in sights]),
        _stacked([sight.slots for sight in sights]),
        _stacked([sight.blueprints for sight in sights]),
    )


def _executed(step: Step) -> Tensor:
    """[E, H]: what was done, which must be what the log-probability is of."""
    assert step.choice.executed is not None, "the controller of this rollout is no learned policy"
    done = [action.indices for action in step.choice.actions]
    assert done == list(map(tuple, step.choice.executed.tolist())), "other decisions were carried out than drawn"
    return step.choice.executed


def _stacked(parts: Sequence[Tensor | None]) -> Tensor:
    found = [part for part in parts if part is not None]
    assert len(found) == len(parts), "the controller of this rollout is no learned policy"
    return torch.stack(found)
