"""What the main loop tells the world: events to the run folder, one calm line to the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

from esper.leyline.decisions import Receipt, Verdict
from esper.leyline.reports import HostReport
from esper.leyline.telemetry import ZERO, EnvStepPayload, EpisodeFinishedPayload, Payload, RoundFinishedPayload
from esper.nissa.progress import Progress, StepView
from esper.nissa.writer import EventWriter
from esper.simic.agent.rollout_buffer import Rollout
from esper.simic.rewards.footprint import alpha_delta_sq_sum, effective_seed_params, effective_seed_params_alpha
from esper.simic.training.config import RunConfig
from esper.simic.training.phases import Phases
from esper.tolaria.engine import Outcome
from esper.tolaria.protocol import EngineProtocol


class Publisher:
    """Publishes what it is handed; nothing in the run depends on it."""

    def __init__(
        self,
        run: RunConfig,
        engine: EngineProtocol,
        writer: EventWriter,
        progress: Progress,
        group: str | None = None,
    ) -> None:
        """group: which of several learners in one run the events are of; None where there is one."""
        self._run, self._engine, self._writer, self._progress = run, engine, writer, progress
        self._group = group

    def step(
        self,
        round_: int,
        rollout: Rollout,
        receipts: Sequence[Receipt],
        after: Sequence[HostReport],
        verdicts: Sequence[Verdict],
    ) -> None:
        """The step that the rollout has just taken in."""
        step, flops = len(rollout.steps) - 1, self._engine.flops()
        events = [event for receipt in receipts for event in receipt.events]
        events += self._engine.events()
        events += [event for verdict in verdicts for event in verdict.events]
        for event in events:
            self._writer.emit(event, group=self._group, round=round_, step=step)
        for env in range(self._run.envs):
            payload = _step_payload(env, rollout, receipts[env], after[env], flops[env])
            episode = self._episode(round_, env)
            self._writer.emit(payload, group=self._group, round=round_, episode=episode, step=step)
        self._progress.step(self._view(round_, step, after))

    def round(
        self,
        round_: int,
        outcomes: Sequence[Outcome],
        returns: Sequence[float],
        learned: Sequence[Payload],
        spent: Phases,
    ) -> None:
        """The end of a round's episodes, what was learned from them, and where the time went."""
        for outcome, total in zip(outcomes, returns, strict=True):
            episode = self._episode(round_, outcome.env)
            self._writer.emit(_episode_payload(outcome, total), group=self._group, round=round_, episode=episode)
        metrics = [outcome.val_metric for outcome in outcomes if outcome.val_metric is not None]
        finished = RoundFinishedPayload(
            episodes=len(outcomes),
            metric_mean=sum(metrics) / len(metrics) if metrics else None,
            reward_mean=sum(returns) / len(returns),
            seconds=sum(spent.seconds.values()),
            phases=tuple(spent.seconds.items()),
        )
        for event in (*learned, finished):
            self._writer.emit(event, group=self._group, round=round_)

    def _episode(self, round_: int, env: int) -> int:
        return round_ * self._run.envs + env

    def close(self) -> None:
        self._progress.stop()

    def _view(self, round_: int, step: int, after: Sequence[HostReport]) -> StepView:
        metrics = [report.val_metric for report in after if report.val_metric is not None]
        metric = self._engine.setup.task.metric
        return StepView(
            round=round_ + 1,
            rounds=self._run.rounds,
            epoch=step + 1,
            epochs=self._run.episode_length,
            metric=sum(metrics) / len(metrics) if metrics else None,
            metric_name=metric.name,
            metric_unit=metric.unit,
            stages=tuple(slot.stage for slot in after[0].slots),
            params=after[0].total_params,
        )


def _step_payload(env: int, rollout: Rollout, receipt: Receipt, after: HostReport, flops: int) -> EnvStepPayload:
    taken = rollout.steps[-1]
    before, score, choice = taken.sight.reports[env], taken.scores[env], taken.choice
    action, legal = choice.actions[env], taken.legal[env]
    return EnvStepPayload(
        env_id=env,
        **action.as_names(),
        done=receipt.done,
        refused_by=receipt.refused_by,
        why=receipt.why,
        op_mask=legal.op_bits,
        slot_mask=legal.slot_bits(action.op),
        log_prob=None if choice.log_prob is None else _brief(float(choice.log_prob[env])),
        value=None if choice.value is None else _brief(float(choice.value[env])),
        reward=_brief(score.total),
        terms=tuple((name, _brief(value)) for name, value in score.terms if value != 0.0),
        train_loss=_brief(after.train_loss),
        val_loss=_brief(after.val_loss),
        val_metric=_brief(after.val_metric),
        params=after.total_params,
        effective_params=after.effective_params,
        effective_seed_params=effective_seed_params(after),
        effective_seed_params_alpha=_brief(effective_seed_params_alpha(after)),
        alpha_delta_sq_sum=_brief(alpha_delta_sq_sum(before, after)),
        flops=flops,
        stage=tuple(int(slot.stage) for slot in after.slots),
        alpha=tuple(_brief(slot.alpha) for slot in after.slots),
        level=tuple(slot.internal_level for slot in after.slots),
        slot_params=tuple(slot.internal_effective_params for slot in after.slots),
        grad_ratio=tuple(_brief(slot.grad_ratio, 4) for slot in after.slots),
        output_change=_brief(receipt.output_change),
    )


@overload
def _brief(value: float, digits: int = 7) -> float: ...
@overload
def _brief(value: None, digits: int = 7) -> None: ...
@overload
def _brief(value: float | None, digits: int = 7) -> float | None: ...
def _brief(value: float | None, digits: int = 7) -> float | None:
    """The number with so many significant digits: float32, which it was measured in, has seven. Zero is `ZERO`."""
    if value is None:
        return None
    return float(f"{value:.{digits}g}") if value else ZERO


def _episode_payload(outcome: Outcome, total: float) -> EpisodeFinishedPayload:
    return EpisodeFinishedPayload(
        env_id=outcome.env,
        val_metric=outcome.val_metric,
        val_loss=outcome.val_loss,
        test_metric=outcome.test_metric,
        test_loss=outcome.test_loss,
        host_params=outcome.host_params,
        params=outcome.params,
        fossilized=outcome.fossilized,
        flops=outcome.ledger.total,
        flops_wasted=outcome.ledger.wasted,
        reward=total,
        outcome="diverged" if outcome.diverged else "finished",
        drawn=outcome.drawn,
    )
