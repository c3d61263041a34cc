"""Shared words: tables, reports, events, strict configs. Imports nothing of ours; everyone may import it.

Start with `factored_actions.py` (what can be done), `stages.py` (the life of a seed) and `reports.py` (what can
be seen).
"""

from esper.leyline.sensors import NUM_OPS, OBS_V3_BASE_FEATURE_SIZE, OBS_V3_SLOT_FEATURE_SIZE

__all__ = ["NUM_OPS", "OBS_V3_BASE_FEATURE_SIZE", "OBS_V3_SLOT_FEATURE_SIZE"]
