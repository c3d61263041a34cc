"""What the main loop tells the world: events to the run folder, one calm line to the terminal."""

from __future__ import annotations

import time
from collections.abc import Sequence

from esper.leyline.decisions import Receipt, Verdict
from esper.leyline.reports import HostReport
from esper.leyline.telemetry import EnvStepPayload, EpisodeFinishedPayload, RoundFinishedPayload
from esper.nissa.progress import Progress, StepView
from esper.nissa.writer import EventWriter
from esper.simic.agent.rollout_buffer import Rollout
from esper.simic.training.config import RunConfig
from esper.tolaria.engine import Engine, Outcome


class Publisher:
    """Publishes what it is handed; nothing in the run depends on it."""

    def __init__(self, run: RunConfig, engine: Engine, writer: EventWriter, progress: Progress) -> None:
        self._run, self._engine, self._writer, self._progress = run, engine, writer, progress
        self._round_began = time.monotonic()
        progress.start(run.rounds * run.episode_length, f"{engine.setup.task.name}, {run.controller}")

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
            self._writer.emit(event, round=round_, step=step)
        for env in range(self._run.envs):
            payload = _step_payload(env, rollout, receipts[env], after[env], flops[env])
            self._writer.emit(payload, round=round_, episode=round_ * self._run.envs + env, step=step)
        self._progress.step(self._view(round_, step, after))

    def round(self, round_: int, outcomes: Sequence[Outcome], returns: Sequence[float]) -> None:
        """The end of a round's episodes."""
        for outcome, total in zip(outcomes, returns, strict=True):
            episode = round_ * self._run.envs + outcome.env
            self._writer.emit(_episode_payload(outcome, total), round=round_, episode=episode)
        metrics = [outcome.val_metric for outcome in outcomes if outcome.val_metric is not None]
        now = time.monotonic()
        self._writer.emit(
            RoundFinishedPayload(
                episodes=len(outcomes),
                metric_mean=sum(metrics) / len(metrics) if metrics else None,
                reward_mean=sum(returns) / len(returns),
                seconds=now - self._round_began,
            ),
            round=round_,
        )
        self._round_began = now

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
    return EnvStepPayload(
        env_id=env,
        **taken.choice.actions[env].as_names(),
        done=receipt.done,
        refused_by=receipt.refused_by,
        why=receipt.why,
        op_mask=taken.legal[env].op_bits,
        reward=taken.scores[env],
        train_loss=after.train_loss,
        val_loss=after.val_loss,
        val_metric=after.val_metric,
        params=after.total_params,
        effective_params=after.effective_params,
        flops=flops,
        stage=tuple(int(slot.stage) for slot in after.slots),
        alpha=tuple(slot.alpha for slot in after.slots),
        level=tuple(slot.internal_level for slot in after.slots),
        grad_ratio=tuple(slot.grad_ratio for slot in after.slots),
        output_change=receipt.output_change,
    )


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
    )
