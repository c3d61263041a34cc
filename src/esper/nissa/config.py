"""Settings of the telemetry: how soon events are on disk, and how much may wait in memory."""

from __future__ import annotations

from dataclasses import dataclass

from esper.leyline.config import check_ranges, setting


@dataclass(frozen=True)
class TelemetryConfig:
    """Critical events (seeds, rollbacks, the run itself) are written at once, whatever stands here."""

    flush_ms: int = setting(100, low=1, high=60_000, help="longest wait of an event in memory, in milliseconds")
    segment_mib: int = setting(64, low=1, high=4096, help="size at which a file of events is sealed, in MiB")
    fsync_s: float = setting(5.0, above=0.0, help="time between two syncs to the disk itself, in seconds")
    buffer_mib: int = setting(64, low=1, high=4096, help="events that may wait for a slow disk, in MiB; then we wait")
    heartbeat_s: float = setting(5.0, above=0.0, help="time between two signs of life, in seconds")

    def __post_init__(self) -> None:
        check_ranges(self)
