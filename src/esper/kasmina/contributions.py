"""From items measured under several configurations to what each configuration lacks: paired differences."""

from __future__ import annotations

from torch import Tensor, stack

from esper.leyline.reports import Contribution


def paired_effects(
    values: Tensor, epoch: int, sign: float = 1.0, scale: float = 1.0
) -> tuple[float, float, list[Contribution]]:
    """Mean loss and mean metric of the first configuration, and what it gains over each one, itself included.

    values: [configurations, 2, items] float64: loss in nats and score of each item; at least 2 items. The metric is
    `scale` x mean score, and `sign` is -1 where less is better. Standard errors are those of the mean over items of
    the paired difference. Copies to the host once.
    """
    effects = values[:1] - values  # as it is minus without
    summary = stack((values.mean(2), effects.mean(2), effects.std(2) / values.shape[2] ** 0.5)).tolist()
    means, gains, errors = summary
    found = [
        Contribution(
            metric=sign * scale * gain[1],
            metric_sem=scale * error[1],
            loss=-gain[0],
            loss_sem=error[0],
            epoch=epoch,
        )
        for gain, error in zip(gains, errors, strict=True)
    ]
    return means[0][0], scale * means[0][1], found
