"""Learning-rate schedulers of an optimiser whose parameter groups come and go: their lists per group follow.

A torch scheduler copies what it knows about each group into lists by position when it is made, and never
looks again, so a group added later breaks it (pytorch#53712) or takes another group's numbers. Here every
such list is declared once, in `SCALED_LISTS` and `COPIED_LISTS`. Callers: `optimiser.add_group`,
`remove_group` and `load_state_by_name`; read those first.

A scheduler class of your own takes part if it names its lists like torch does; one that keeps a list per
group under another name has to be kept up by its author.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from esper.leyline.errors import ConfigError

# Learning rates: a seed's entry is lr_scale times the host's, so that its curve is the host's curve, scaled.
SCALED_LISTS = ("base_lrs", "max_lrs", "min_lrs", "_last_lr")
# Everything else that a scheduler holds per group: a seed's entry is the host's.
COPIED_LISTS = ("lr_lambdas", "base_momentums", "max_momentums")
# Learning rates that OneCycleLR, SWALR and the base class keep in the group itself.
SCALED_KEYS = ("lr", "initial_lr", "max_lr", "min_lr", "swa_lr")


def follow(optimizer: Optimizer, schedulers: Sequence[LRScheduler]) -> list[LRScheduler]:
    """The schedulers and those nested in them, each once, after checking that they know this optimiser's groups.

    Raises ConfigError if one drives another optimiser, or missed a group that came or went earlier.
    """
    found = list(_flat(schedulers, set()))
    for scheduler in found:
        kind = type(scheduler).__name__
        if scheduler.optimizer is not optimizer:
            raise ConfigError(f"schedulers: this {kind} drives another optimiser; pass those of the one you change")
        for attribute in _lists_of(scheduler):
            known, held = len(vars(scheduler)[attribute]), len(optimizer.param_groups)
            if known != held:
                raise ConfigError(
                    f"schedulers: {kind}.{attribute} has {known} entries, the optimiser {held} groups; "
                    "pass the schedulers each time a group is added or removed"
                )
    return found


def rearrange(schedulers: Sequence[LRScheduler], sources: Sequence[int]) -> None:
    """Entry i of every per-group list becomes what was entry `sources[i]`. Takes what `follow` returned."""
    for scheduler in schedulers:
        for attribute in _lists_of(scheduler):
            # A fresh list each time: SequentialLR shares `_last_lr` with the scheduler it is running.
            entries = vars(scheduler)[attribute]
            setattr(scheduler, attribute, [entries[i] for i in sources])


def append_scaled(schedulers: Sequence[LRScheduler], lr_scale: float) -> None:
    """One more entry in every per-group list: the first group's, learning rates times `lr_scale`."""
    for scheduler in schedulers:
        for attribute in _lists_of(scheduler):
            entries = vars(scheduler)[attribute]
            entry = lr_scale * entries[0] if attribute in SCALED_LISTS else entries[0]
            setattr(scheduler, attribute, [*entries, entry])


def _lists_of(scheduler: LRScheduler) -> list[str]:
    return [attribute for attribute in SCALED_LISTS + COPIED_LISTS if attribute in vars(scheduler)]


def _flat(schedulers: Sequence[LRScheduler], seen: set[int]) -> Iterator[LRScheduler]:
    for scheduler in schedulers:
        if id(scheduler) not in seen:
            seen.add(id(scheduler))
            yield scheduler
            if "_schedulers" in vars(scheduler):  # SequentialLR, ChainedScheduler
                yield from _flat(vars(scheduler)["_schedulers"], seen)
