"""What kind of rungs a seed has. Reports carry the number, so the values never change."""

from __future__ import annotations

from enum import IntEnum


class SeedInternalKind(IntEnum):
    NONE = 0  # one indivisible module: level 1 of 1
    CONV_LADDER = 1  # residual convolution stages
    LORA_LADDER = 2  # blocks of rank
    CHANNEL_LADDER = 3  # groups of channels
    ATTN_HEAD_LADDER = 4  # groups of attention heads
