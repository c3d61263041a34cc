"""What is told of an update, as fields of `PpoUpdatedPayload`: everything is measured over the whole round."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from esper.simic.agent.advantages import ValueScale
from esper.simic.agent.batch import Batch
from esper.simic.agent.losses import Lesson, Move, Opinion, entropy_by_head, impossible
from esper.tamiyo.networks.factored_lstm import Output
from esper.tamiyo.policy.heads import HeadTable


def before_learning(table: HeadTable, batch: Batch, before: Output, lesson: Lesson) -> dict[str, Any]:
    """Of the round, and whether the network still says what it said when it decided."""
    move = Move.of(table, Opinion.of(before, batch.valid), lesson)
    invalid, all_masked = impossible(table, lesson)
    return {
        "sequences": batch.sequences,
        "steps": int(batch.valid.sum()),
        "forced_share": float((~move.free).float().mean()),
        "ratio_error": float((move.ratio - 1).abs().max()),
        "invalid_executed": invalid,
        "all_masked": all_masked,
        "memory_rms": float(before.hidden[batch.valid].square().mean().sqrt()),
    }


def after_learning(
    table: HeadTable, said: Opinion, lesson: Lesson, clip: float, scale: ValueScale, op_names: Sequence[str]
) -> dict[str, Any]:
    """How far the policy has moved, and what it and the critics are like now."""
    move = Move.of(table, said, lesson)
    entropy, available = entropy_by_head(table, said, lesson.possible)
    relevant = move.relevant.sum(0).tolist()
    heads = [head for head, steps in enumerate(relevant) if steps > 0]

    def named(values: Sequence[Tensor]) -> tuple[tuple[str, float], ...]:
        return tuple((table.heads[head], float(value)) for head, value in zip(heads, values, strict=True))

    return {
        "approx_kl": float(move.kl),
        "clip_fraction": float(move.clipped(clip)),
        "entropy": tuple(
            (name, float(value))
            for name, value, steps in zip(table.heads, entropy, available, strict=True)
            if steps > 0
        ),
        "kl": named([move.head_kl(head) for head in heads]),
        "clipped": named([move.head_clipped(head, clip) for head in heads]),
        "relevant": tuple((table.heads[head], relevant[head]) for head in heads),
        "op_values": tuple(zip(op_names, scale.points(said.op_values).mean(0).tolist(), strict=True)),
    }
