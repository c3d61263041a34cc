"""Everything that can be told about a run: one struct per event. Facts only; what can be derived is not sent.

To add an event write a struct here and a member in `TelemetryEventType`; the JSON both ways follows. On the wire an
event is one flat JSON object: the envelope (`t` type, `n` counter of its writer, `w` writer, `ts` wall-clock
seconds, `g` group, `rd` round, `ep` episode, `st` step) and the payload's fields, defaults left out.

Mechanics return payloads; the engine stamps `env_id`; only the main loop publishes them.
"""

from __future__ import annotations

import math
import types
import typing
from dataclasses import dataclass
from enum import Enum
from functools import cache
from typing import Any, ClassVar

import msgspec

from esper.leyline.errors import EsperError

SCHEMA_VERSION = 6
UNSTAMPED = -1
"""`env_id` of a payload that has not passed the engine yet."""


class TelemetryEventType(Enum):
    """The names are on the wire; the values are the short forms that screens show."""

    RUN_STARTED = "run.started"
    RUN_RESUMED = "run.resumed"
    RUN_HEARTBEAT = "run.heartbeat"
    RUN_FINISHED = "run.finished"
    ROUND_FINISHED = "round.finished"
    EPISODE_FINISHED = "episode.finished"
    ENV_STEP = "env.step"
    SEED_GERMINATED = "seed.germinated"
    SEED_STAGE_CHANGED = "seed.stage"
    SEED_GATE_EVALUATED = "seed.gate"
    SEED_INTERNAL_LEVEL_CHANGED = "seed.level"
    SEED_CONTRIBUTION_MEASURED = "seed.cf"
    SEED_PRUNED = "seed.pruned"
    SEED_FOSSILIZED = "seed.fossilized"
    GOVERNOR_ROLLBACK = "gov.rollback"
    GOVERNOR_STEPS_SKIPPED = "gov.skipped"
    GOVERNOR_SUSPECTED = "gov.suspected"
    PPO_UPDATED = "ppo.updated"
    OBSERVATIONS = "obs.stats"
    RANKS_TROUBLED = "ranks.trouble"
    LOG = "log"


ZERO = 0.0
"""Left out of a line where it is a field's default: the encoder knows defaults by identity, and this is that one."""


class Payload(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Base of all events: `type` names it, `critical` ones are written to disk at once."""

    type: ClassVar[TelemetryEventType]
    critical: ClassVar[bool] = False


class EnvPayload(Payload, frozen=True, kw_only=True, rename={"env_id": "env"}):
    """An event of one environment."""

    env_id: int = UNSTAMPED


class SeedPayload(EnvPayload, frozen=True, kw_only=True):
    """An event of one seed."""

    critical: ClassVar[bool] = True
    slot_id: str
    seed_id: str
    blueprint_id: str


class RunStartedPayload(Payload, frozen=True, kw_only=True):
    type: ClassVar = TelemetryEventType.RUN_STARTED
    critical: ClassVar[bool] = True
    schema_version: int
    controller: str
    task: str
    envs: int
    rounds: int
    episode_length: int


class RunResumedPayload(Payload, frozen=True, kw_only=True):
    """A further attempt: what earlier ones told from this step of this round on has not happened."""

    type: ClassVar = TelemetryEventType.RUN_RESUMED
    critical: ClassVar[bool] = True
    from_round: int
    from_step: int


class RunHeartbeatPayload(Payload, frozen=True, kw_only=True):
    type: ClassVar = TelemetryEventType.RUN_HEARTBEAT
    critical: ClassVar[bool] = True
    rss_bytes: int
    buffered_bytes: int


class RunFinishedPayload(Payload, frozen=True, kw_only=True):
    """`status` is `done`, `interrupted` or `failed`."""

    type: ClassVar = TelemetryEventType.RUN_FINISHED
    critical: ClassVar[bool] = True
    status: str
    reason: str = ""
    digest: str | None = None  # sha256 of weights, optimisers, generators and decisions
    seconds: float  # what earlier attempts have spent on it included


class RoundFinishedPayload(Payload, frozen=True, kw_only=True):
    type: ClassVar = TelemetryEventType.ROUND_FINISHED
    critical: ClassVar[bool] = True
    episodes: int
    metric_mean: float | None = None
    reward_mean: float
    seconds: float
    phases: tuple[tuple[str, float], ...] = ()  # seconds of each phase of the main loop


class EpisodeFinishedPayload(EnvPayload, frozen=True, kw_only=True):
    """The only event that carries test figures: the test split is read once, when an episode ends."""

    type: ClassVar = TelemetryEventType.EPISODE_FINISHED
    critical: ClassVar[bool] = True
    val_metric: float | None = None
    val_loss: float | None = None
    test_metric: float | None = None
    test_loss: float | None = None
    host_params: int
    params: int
    fossilized: int
    flops: int
    flops_wasted: int
    reward: float
    outcome: str = "finished"  # or `diverged`
    drawn: tuple[tuple[str, str], ...] = ()  # what makes this member of a family of tasks, by name


class EnvStepPayload(EnvPayload, frozen=True, kw_only=True):
    """One decision and the epoch it led to. Lists run over slots in execution order.

    Measured numbers are rounded to seven significant digits, ratios of gradients to four.
    """

    type: ClassVar = TelemetryEventType.ENV_STEP
    op: str
    slot: str | None = None
    blueprint: str | None = None
    style: str | None = None
    tempo: str | None = None
    alpha_target: str | None = None
    alpha_speed: str | None = None
    alpha_curve: str | None = None
    done: bool = True
    refused_by: str | None = None
    why: str = ""
    op_mask: int  # bit i: operation i was possible
    slot_mask: int = 0  # bit i: slot i was possible for `op`; 0 where it needs none
    log_prob: float | None = None  # of the whole decision; None from a rule
    value: float | None = None  # of the state, in the learner's unit; likewise
    reward: float = ZERO
    terms: tuple[tuple[str, float], ...] = ()  # weighted, those that are 0 left out; `reward` is their sum
    train_loss: float | None = None
    val_loss: float | None = None
    val_metric: float | None = None
    params: int
    effective_params: int
    effective_seed_params: int = 0  # active rungs of all seeds, heard or not yet
    effective_seed_params_alpha: float = ZERO  # each times its alpha
    alpha_delta_sq_sum: float = ZERO  # over seeds: (change of alpha)^2 x parameters / host parameters
    flops: int  # of the environment so far
    stage: tuple[int, ...]
    alpha: tuple[float, ...]
    level: tuple[int, ...]
    slot_params: tuple[int, ...]  # of active rungs
    grad_ratio: tuple[float | None, ...]
    output_change: float | None = None


class SeedGerminatedPayload(SeedPayload, frozen=True, kw_only=True):
    type: ClassVar = TelemetryEventType.SEED_GERMINATED
    params: int
    blend: str
    tempo: int
    internal_kind: int
    internal_level: int
    internal_max_level: int


class SeedStageChangedPayload(SeedPayload, frozen=True, kw_only=True):
    type: ClassVar = TelemetryEventType.SEED_STAGE_CHANGED
    from_stage: str
    to_stage: str
    driver: str  # the operation, `time` or `rollback`
    alpha: float
    age: int


class SeedGateEvaluatedPayload(SeedPayload, frozen=True, kw_only=True):
    """`checks` are (name, value, limit, passed); a value that was never measured is None."""

    type: ClassVar = TelemetryEventType.SEED_GATE_EVALUATED
    gate: str
    passed: bool
    checks: tuple[tuple[str, float | None, float | None, bool], ...]


class SeedInternalLevelChangedPayload(SeedPayload, frozen=True, kw_only=True):
    type: ClassVar = TelemetryEventType.SEED_INTERNAL_LEVEL_CHANGED
    internal_kind: int
    from_level: int
    to_level: int
    internal_max_level: int
    params_before: int  # effective parameters before the change
    internal_effective_params: int
    cause: str = "op"  # or `rollback`


class SeedContributionMeasuredPayload(SeedPayload, frozen=True, kw_only=True):
    """`against` is `off` (leave one out) or `level` (the seed at its level before the last internal operation)."""

    type: ClassVar = TelemetryEventType.SEED_CONTRIBUTION_MEASURED
    critical: ClassVar[bool] = False
    against: str
    metric: float
    metric_sem: float
    loss: float
    loss_sem: float


class SeedPrunedPayload(SeedPayload, frozen=True, kw_only=True):
    type: ClassVar = TelemetryEventType.SEED_PRUNED
    initiator: str  # `controller`, `fade` or `governor`
    age: int
    params: int
    contribution: float | None = None


class SeedFossilizedPayload(SeedPayload, frozen=True, kw_only=True):
    type: ClassVar = TelemetryEventType.SEED_FOSSILIZED
    age: int
    params: int
    params_removed: int  # of rungs that were off
    internal_level: int
    contribution: float | None = None


class GovernorRollbackPayload(EnvPayload, frozen=True, kw_only=True):
    type: ClassVar = TelemetryEventType.GOVERNOR_ROLLBACK
    critical: ClassVar[bool] = True
    reason: str
    detector: str  # `nonfinite`, `burst`, `level` or `validation`
    loss: float | None = None
    baseline: float | None = None  # what the loss was compared with
    z_loss: float | None = None  # robust deviations above the baseline
    z_grad: float | None = None
    limit: float | None = None  # of z_loss; of the loss where the detector is `level`
    steps: int  # optimiser steps of the episode that were tried
    culprit: str | None = None  # slot whose seed was taken back alone
    restored_epoch: int
    restored_steps: int  # likewise, when the snapshot was taken
    rollbacks: int  # of this episode, this one included


class GovernorStepsSkippedPayload(EnvPayload, frozen=True, kw_only=True):
    """Steps of an epoch that no weight has seen, because loss or gradient was not finite or a spike."""

    type: ClassVar = TelemetryEventType.GOVERNOR_STEPS_SKIPPED
    critical: ClassVar[bool] = True
    skipped: int  # of the host, and so of all its seeds
    seeds: tuple[tuple[str, int], ...] = ()  # slot -> steps that its seed alone did not take
    steps: int  # optimiser steps of the episode that were tried


class GovernorSuspectedPayload(EnvPayload, frozen=True, kw_only=True):
    """A suspicion has begun: until it ends, the baseline stands still and operations are vetoed."""

    type: ClassVar = TelemetryEventType.GOVERNOR_SUSPECTED
    critical: ClassVar[bool] = True
    far_off: int  # of the last six steps
    failing: int  # checks of the loss's level in a row that found it too high
    steps: int  # optimiser steps of the episode that were tried


class PpoUpdatedPayload(Payload, frozen=True, kw_only=True):
    """One update of a policy. Losses are means over its steps of Adam; how far it moved is measured after the last.

    Pairs are (head, value), or (operation, value); a head that nothing was decided by is left out.
    """

    type: ClassVar = TelemetryEventType.PPO_UPDATED
    critical: ClassVar[bool] = True
    update: int  # 0, 1, ...
    skipped: str = ""  # why the update was undone; empty where it stands
    failures: int = 0  # updates undone in a row, this one included
    restored_update: int | None = None  # the policy went back to what this one left; -1: to the untrained one
    imitated: str | None = (
        None  # rule whose decisions the round holds: policy_loss is how unlikely the policy finds them
    )
    sequences: int
    steps: int
    forced_share: float  # of the steps: nothing could be decided
    ratio_error: float  # largest |ratio - 1| before the first step; more than rounding is a bug
    invalid_executed: int  # decisions that their masks forbid; a bug
    all_masked: int  # steps with a mask that forbids everything; a bug
    explained_variance: float | None = None  # of the returns, by the values that the rollout was collected with
    value_mean: float  # unit of the critic, in points
    value_deviation: float
    memory_rms: float  # of the LSTM's state
    lr: float
    entropy_share: float  # of the entropy's first weight
    epochs: int = 0
    policy_loss: float | None = None
    value_loss: float | None = None
    entropy_bonus: float | None = None
    op_value_loss: float | None = None
    grad_norm: float | None = None  # before it was shortened
    approx_kl: float | None = None
    clip_fraction: float | None = None
    entropy: tuple[tuple[str, float], ...] = ()  # normalised, over the steps where the head was available
    kl: tuple[tuple[str, float], ...] = ()  # over the steps where the head mattered to what was done
    clipped: tuple[tuple[str, float], ...] = ()  # likewise
    relevant: tuple[tuple[str, int], ...] = ()  # how many those steps are
    head_grad_norm: tuple[tuple[str, float], ...] = ()  # of the loss by the head's logits
    op_values: tuple[tuple[str, float], ...] = ()  # mean Q(s, op), in points


class ObservationsPayload(Payload, frozen=True, kw_only=True):
    """What a round's sensors read: (name, mean, deviation, share outside its range, share at the policy's limit)."""

    type: ClassVar = TelemetryEventType.OBSERVATIONS
    sensors: tuple[tuple[str, float, float, float, float], ...]


class RanksTroubledPayload(Payload, frozen=True, kw_only=True):
    """A rank is slow, or all of them end because one died, is stuck, failed or is in another state than the others."""

    type: ClassVar = TelemetryEventType.RANKS_TROUBLED
    critical: ClassVar[bool] = True
    kind: str  # `slow`, `died`, `stuck`, `failed` or `diverged`
    ranks: tuple[int, ...]  # those that it is about
    text: str
    steps: int | None = None  # optimiser steps taken, where ranks were compared
    field: str = ""  # in which they differ
    values: tuple[str, ...] = ()  # what each rank has there


class LogPayload(Payload, frozen=True, kw_only=True):
    type: ClassVar = TelemetryEventType.LOG
    level: str
    text: str


def _leaves(cls: type[Payload]) -> list[type[Payload]]:
    below = cls.__subclasses__()
    return [cls] if not below else [leaf for child in below for leaf in _leaves(child)]


EVENTS: dict[TelemetryEventType, type[Payload]] = {leaf.type: leaf for leaf in _leaves(Payload)}
assert set(EVENTS) == set(TelemetryEventType), "every event type has one payload"


class Envelope(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, rename={
    "counter": "n", "writer": "w", "time_s": "ts", "group": "g", "round": "rd", "episode": "ep", "step": "st",
}):  # fmt: skip
    """Where and when an event happened."""

    t: str  # name of the TelemetryEventType
    counter: int  # 0, 1, 2, ... per writer, so that a gap shows
    writer: str
    time_s: float
    group: str | None = None
    round: int | None = None
    episode: int | None = None
    step: int | None = None


class UnknownEventError(EsperError):
    """A line is not an event of this schema."""


_encode = msgspec.json.Encoder().encode


def encode_event(envelope: Envelope, payload: Payload) -> bytes:
    """One line without its newline. Raises TypeError for a field of another type than declared (a tensor, say).

    JSON has no NaN or infinity: such a value becomes null and its place is named in `nf` (`train_loss`,
    `alpha.1`), so that it does not read as "not measured".
    """
    head = _encode(envelope)
    try:
        body = _encode(payload)
    except TypeError:
        _inspect(payload)  # says which field
        raise
    not_finite = [] if _reads_as(body, payload) else _inspect(payload)
    parts = [head[:-1]]
    if len(body) > 2:
        parts.append(body[1:-1])
    if not_finite:
        parts.append(b'"nf":' + _encode(not_finite))
    return b",".join(parts) + b"}"


def decode_event(line: bytes) -> tuple[Envelope, Payload]:
    """Inverse of `encode_event`, every non-finite value being NaN. Raises UnknownEventError for anything else."""
    try:
        raw: dict[str, Any] = msgspec.json.decode(line)
        payload_type = EVENTS[TelemetryEventType[raw["t"]]]
        not_finite = raw.pop("nf", [])
        head = {key: raw.pop(key) for key in _ENVELOPE_KEYS if key in raw}
        envelope = msgspec.convert(head, Envelope)
        for place in not_finite:
            _put_nan(raw, place.split("."))
        return envelope, msgspec.convert(raw, payload_type)
    except (msgspec.DecodeError, LookupError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UnknownEventError(f"not an event of schema {SCHEMA_VERSION}: {error}") from error


_ENVELOPE_KEYS = tuple(field.encode_name for field in msgspec.structs.fields(Envelope))


def _reads_as(body: bytes, payload: Payload) -> bool:
    """Whether a reader gets the payload back: all in C, where a look at each value would take twice as long."""
    try:
        return bool(_decoder(type(payload)).decode(body) == payload)
    except msgspec.ValidationError:
        return False


@cache
def _decoder(cls: type[Payload]) -> msgspec.json.Decoder[Payload]:
    return msgspec.json.Decoder(cls)


@dataclass(frozen=True)
class _Kind:
    """What a value may be: exact types, and for a tuple what its items may be."""

    allowed: frozenset[type]
    each: _Kind | None = None  # tuple[X, ...]
    items: tuple[_Kind, ...] = ()  # tuple[X, Y]


@cache
def _kinds(cls: type[Payload]) -> dict[str, tuple[str, _Kind]]:
    """Of every field its name on the wire and what it may hold."""
    hints = typing.get_type_hints(cls)
    return {field.name: (field.encode_name, _kind(hints[field.name])) for field in msgspec.structs.fields(cls)}


def _kind(hint: Any) -> _Kind:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return _Kind(frozenset().union(*(_kind(part).allowed for part in args)))
    if origin is not tuple:
        return _Kind(frozenset({float, int} if hint is float else {hint}))
    if args[1:] == (...,):
        return _Kind(frozenset({tuple}), each=_kind(args[0]))
    return _Kind(frozenset({tuple}), items=tuple(map(_kind, args)))


def _inspect(payload: Payload) -> list[str]:
    """Looks at every value: places of those that are not finite. Raises TypeError for one of an undeclared type."""
    not_finite: list[str] = []
    for name, (wire, kind) in _kinds(type(payload)).items():
        _inspect_value(getattr(payload, name), kind, (wire,), type(payload).__name__, not_finite)
    return not_finite


def _inspect_value(value: Any, kind: _Kind, place: tuple[str, ...], owner: str, not_finite: list[str]) -> None:
    if type(value) not in kind.allowed:
        wanted = " or ".join(sorted(allowed.__name__ for allowed in kind.allowed))
        raise TypeError(f"{owner}.{'.'.join(place)} is a {type(value).__name__}, want {wanted}")
    if type(value) is float and not math.isfinite(value):
        not_finite.append(".".join(place))
    if type(value) is tuple:
        kinds = kind.items if kind.each is None else (kind.each,) * len(value)
        if len(kinds) != len(value):
            raise TypeError(f"{owner}.{'.'.join(place)} has {len(value)} items, want {len(kinds)}")
        for index, (item, inner) in enumerate(zip(value, kinds, strict=True)):
            _inspect_value(item, inner, (*place, str(index)), owner, not_finite)


def _put_nan(raw: Any, path: list[str]) -> None:
    *parents, last = path
    for key in parents:
        raw = raw[int(key)] if isinstance(raw, list) else raw[key]
    raw[int(last) if isinstance(raw, list) else last] = math.nan
