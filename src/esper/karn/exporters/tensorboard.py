"""Runs as TensorBoard shows them: below a folder one of each run's name, with one file of events.

Curves are scalars, the configuration is in the tab HPARAMS. TensorBoard keeps 32 bits of a number.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import metadata
from tensorboard.plugins.hparams.api_pb2 import Status
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from tensorboard.plugins.scalar.summary_v2 import scalar_pb
from tensorboard.summary.writer.record_writer import RecordWriter

from esper.karn.exporters.traces import Trace
from esper.leyline.errors import ConfigError
from esper.nissa.storage import shown, storage_errors

FILE = "events.out.tfevents.0.esper"
"""TensorBoard knows its files by the word in the middle."""


def write(traces: Sequence[Trace], root: Path) -> None:
    """Raises ConfigError if one of them is there already, before anything is written; StorageError."""
    for trace in traces:
        if (root / trace.name).exists():
            raise ConfigError(f"{shown(root / trace.name)} exists already; nothing is written over")
    for trace in traces:
        path = root / trace.name / FILE
        with storage_errors(path):
            path.parent.mkdir(parents=True)
            with path.open("xb") as file:
                records = RecordWriter(file)
                for event in _events(trace):
                    records.write(event.SerializeToString())


def _events(trace: Trace) -> Iterator[Event]:
    yield Event(wall_time=trace.started_s, file_version="brain.Event:2")
    settings = hparams_pb(_flat(trace.config), trial_id=trace.name, start_time_secs=trace.started_s)
    yield Event(wall_time=trace.started_s, summary=settings)
    for point in trace.points:
        values = [value for tag, number in point.values.items() for value in scalar_pb(tag, number).value]
        yield Event(wall_time=point.time_s, step=point.place, summary=Summary(value=values))
    yield Event(wall_time=trace.last_s, summary=_end(trace))


def _end(trace: Trace) -> Summary:
    """What the tab HPARAMS says about the run's status."""
    known = {"done": Status.STATUS_SUCCESS, "running": Status.STATUS_RUNNING}
    end = SessionEndInfo(status=known.get(trace.status, Status.STATUS_FAILURE), end_time_secs=trace.last_s)
    about = metadata.create_summary_metadata(HParamsPluginData(session_end_info=end))
    value = Summary.Value(tag=metadata.SESSION_END_INFO_TAG, metadata=about, tensor=metadata.NULL_TENSOR)
    return Summary(value=[value])


def _flat(config: Mapping[str, Any], above: str = "") -> dict[str, bool | float | str]:
    """`{"task.name": "digits"}`. Lists become text; what is None has no place there and is left out."""
    found: dict[str, bool | float | str] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{above}{name}.")
        elif value is not None:
            found[f"{above}{name}"] = value if isinstance(value, bool | int | float | str) else json.dumps(value)
    return found
