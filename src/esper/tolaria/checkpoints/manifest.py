"""`MANIFEST.json`: what is in a checkpoint, and by which hashes it can be told that it still is. Written last."""

from __future__ import annotations

import hashlib
import re

import msgspec

from esper.leyline.errors import CheckpointError

FORMAT = 1
NAME = "MANIFEST.json"
LARGEST = 1 << 16  # bytes
_SEAL = re.compile(rb',"sha256":"([0-9a-f]{64})"}\n')


class File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file beside the manifest."""

    size: int  # bytes
    sha256: str

    @classmethod
    def of(cls, data: bytes) -> File:
        return cls(len(data), hashlib.sha256(data).hexdigest())


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All that is known of a checkpoint without reading it."""

    format: int = FORMAT
    run: str  # which only this run has
    seq: int  # the number in the folder's name
    round: int  # where the run goes on
    step: int
    value: float | None  # the validation objective of the round that has just ended; None in the middle of one
    blessed: bool  # no host of it was ill
    environment: dict[str, str]  # see `fingerprint.py`
    files: dict[str, File]


def sealed(manifest: Manifest) -> bytes:
    """The file's text: JSON with its own hash as the last entry."""
    body = msgspec.json.encode(manifest)
    return body[:-1] + b',"sha256":"' + hashlib.sha256(body).hexdigest().encode() + b'"}\n'


def opened(text: bytes, where: str) -> Manifest:
    """The inverse of `sealed`. Raises CheckpointError for a text that is not, to the last bit, what it was."""
    end = len(text) - len(b',"sha256":"') - 64 - len(b'"}\n')
    seal = _SEAL.fullmatch(text[max(end, 0) :])
    body = text[: max(end, 0)] + b"}"
    if seal is None or hashlib.sha256(body).hexdigest() != seal[1].decode():
        raise CheckpointError(f"{where}: does not match its own hash")
    try:
        manifest = msgspec.json.decode(body, type=Manifest)
    except msgspec.MsgspecError as error:
        raise CheckpointError(f"{where}: not a manifest ({error})") from error
    if manifest.format != FORMAT:
        raise CheckpointError(f"{where}: of format {manifest.format}, and this version reads {FORMAT}")
    return manifest
