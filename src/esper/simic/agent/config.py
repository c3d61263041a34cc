"""Settings of PPO."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from esper.leyline.config import check_ranges, setting


@dataclass(frozen=True)
class TeacherConfig:
    """A rule that decides in the first rounds, and that the policy learns to imitate before it learns from rewards."""

    rule: str | None = setting(None, help="who teaches: a rule of `esper list controllers`; nobody if not given")
    rounds: int = setting(10, low=1, help="rounds in which the teacher decides")
    epochs: int = setting(20, low=1, help="passes over each of them")

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class GuardConfig:
    """When an update is undone, and when the policy goes back further."""

    max_kl: float = setting(3.0, above=0.0, help="nats per free decision that an update may move the policy by")
    collapse: float = setting(
        0.1, low=0.0, high=1.0, help="an update may not take the mean entropy from above this to below a tenth of it"
    )
    patience: int = setting(3, low=1, help="updates undone in a row after which the policy goes back further")
    bless_updates: int = setting(2, low=1, help="updates that stand after which the policy before them is good")

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class PPOConfig:
    """How a policy learns from a round."""

    lr: float = setting(3e-4, above=0.0, high=1.0, help="Adam's step size")
    lr_left: float = setting(0.1, above=0.0, high=1.0, help="share of it that is left in the last round")
    epochs: int = setting(8, low=1, help="passes over a round; fewer where target_kl says so")
    minibatch: int = setting(4, low=1, help="sequences per step of Adam")
    clip: float = setting(0.2, above=0.0, high=1.0, help="how far a probability ratio may stray from 1")
    clip_mode: Literal["joint", "per_head"] = setting("joint", help="ratio of the whole decision, or one per head")
    gamma: float = setting(1.0, above=0.0, high=1.0, help="discount per step; must be the reward's")
    lam: float = setting(1.0, low=0.0, high=1.0, help="lambda of the advantages: 1 trusts returns, 0 the critic")
    entropy: tuple[float, ...] = setting(
        (0.05,), low=0.0, high=10.0, help="weight of the entropy bonus: one number, or one for each head"
    )
    entropy_left: float = setting(0.1, low=0.0, high=1.0, help="share of it that is left in the last round")
    value: float = setting(0.5, low=0.0, high=1e3, help="weight of the value loss")
    max_grad_norm: float = setting(0.5, above=0.0, help="gradients longer than this are shortened")
    target_kl: float | None = setting(0.03, above=0.0, help="stop the round's epochs when the policy moved further")
    value_norm: bool = setting(True, help="the critic learns in units of the returns' deviation")
    baseline: Literal["none", "group"] = setting(
        "group", help="group: compare with the round's other environments at the same step"
    )
    horizon_end: Literal["terminated", "truncated"] = setting(
        "terminated", help="truncated: what the critic expects after the horizon is added, as if episodes went on"
    )
    adam_eps: float = setting(1e-5, above=0.0, high=1.0, help="Adam's epsilon")
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)

    def __post_init__(self) -> None:
        check_ranges(self)

    @property
    def taught_rounds(self) -> int:
        """Rounds, from the first on, in which the policy imitates."""
        return 0 if self.teacher.rule is None else self.teacher.rounds
