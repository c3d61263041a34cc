"""CIFAR-10 from the files its authors publish: read in memory, and fetched only when asked.

The binary version is preferred. The Python version is a pickle, so it is read by an unpickler that builds
nothing but plain values (`_PlainUnpickler`). Archives are read as they are, never unpacked.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import io
import os
import pickle
import tarfile
import urllib.request
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from esper.leyline.errors import ConfigError, StorageError
from esper.leyline.randomness import stream
from esper.leyline.task import Splits
from esper.runtime.data.splitting import Images, normalised, stratified_split

SHAPE = (3, 32, 32)
BYTES = 3 * 32 * 32  # of an image, red plane first
CLASSES = 10
SHARES = (0.9, 0.1)  # of the 50,000 training images, to train and validation
TIMEOUT_S = 30.0  # without a byte from the server


@dataclass(frozen=True)
class Version:
    """One of the two forms in which the data set is published."""

    archive: str
    md5: str
    folder: str  # inside the archive, and the name of the unpacked folder
    suffix: str  # of the batch files

    @property
    def batches(self) -> list[str]:
        """Five batches to train on, then the test batch."""
        return [f"data_batch_{number}{self.suffix}" for number in range(1, 6)] + [f"test_batch{self.suffix}"]

    @property
    def url(self) -> str:
        return f"https://www.cs.toronto.edu/~kriz/{self.archive}"


# MD5 sums as printed on https://www.cs.toronto.edu/~kriz/cifar.html
BINARY = Version("cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530", "cifar-10-batches-bin", ".bin")
PYTHON = Version("cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a", "cifar-10-batches-py", "")


def cifar10(data_dir: Path | str, seed: int, download: bool = False) -> Splits:
    """45,000 / 5,000 / 10,000 images, [N, 3, 32, 32]; the seed decides which training images validate.

    data_dir: holds either archive or either unpacked folder, or is that folder. download: fetch the binary
    archive (162 MB) into it if nothing is there. ConfigError when there are no files, or not those of CIFAR-10.
    """
    directory = Path(data_dir)
    found = find(directory)
    if found is None:
        if not download:
            raise ConfigError(
                f"cifar10: no files in {str(directory)!r}; allow the download, or put {BINARY.archive} "
                f"(MD5 {BINARY.md5}) from {BINARY.url} there, or use --data synthetic"
            )
        fetch(BINARY, BINARY.url, directory)
        found = directory / BINARY.archive, BINARY
    *training, test = read_batches(*found)
    training_images = Images(torch.cat([b.pixels for b in training]), torch.cat([b.labels for b in training]))
    train, val = stratified_split(training_images.labels, SHARES, stream(seed, "cifar10 split"))
    return normalised(training_images.pick(train), training_images.pick(val), test)


def find(directory: Path) -> tuple[Path, Version] | None:
    """What to read in `directory`, the binary version and unpacked folders first; None if there is nothing."""
    for version in (BINARY, PYTHON):
        here = [directory] if directory.name == version.folder else []
        for path in (*here, directory / version.folder, directory / version.archive):
            if path.exists():
                return path, version
    return None


def read_batches(path: Path, version: Version) -> list[Images]:
    """The six batches in a folder or archive, each checked; ConfigError names the first that is wrong."""
    contents = _read_folder(path, version) if path.is_dir() else _read_archive(path, version)
    parse = _parse_binary if version == BINARY else _parse_python
    batches = []
    for name in version.batches:
        batch = parse(contents[name])
        if batch is None or not batch.labels.numel() or not 0 <= batch.labels.min() <= batch.labels.max() < CLASSES:
            raise _broken(path, version, f"{name} is not a batch of CIFAR-10")
        batches.append(batch)
    sizes = [len(batch.labels) for batch in batches]
    if len(set(sizes)) > 1:
        raise _broken(path, version, f"its batches hold {', '.join(map(str, sizes))} images instead of equally many")
    return batches


def fetch(version: Version, url: str, directory: Path) -> Path:
    """Download the archive from `url`, check it, and only then give it its name in `directory`."""
    target = directory / version.archive
    partial = target.with_name(f"{target.name}.{os.getpid()}.part")
    by_hand = f"put {version.archive} (MD5 {version.md5}) into {str(directory)!r} by hand, or use --data synthetic"
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response:
            data: bytes = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise ConfigError(f"cifar10: could not download {url} ({error}); {by_hand}") from error
    md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
    if md5 != version.md5:
        raise ConfigError(f"cifar10: {url} sent {len(data):,} bytes with MD5 {md5}; {by_hand}")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(data)
        partial.replace(target)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise StorageError(f"cifar10: could not write {str(target)!r} ({error}); choose another data folder") from error
    return target


def _read_folder(path: Path, version: Version) -> dict[str, bytes]:
    contents = {}
    for name in version.batches:
        try:
            contents[name] = (path / name).read_bytes()
        except OSError as error:
            raise _broken(path, version, f"{name} cannot be read ({error.strerror})") from error
    return contents


def _read_archive(path: Path, version: Version) -> dict[str, bytes]:
    contents = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                folder, _, name = member.name.removeprefix("./").rpartition("/")
                # A member that is not a plain file has no content to extract.
                file = archive.extractfile(member) if folder == version.folder and name in version.batches else None
                if file is not None:
                    contents[name] = file.read()
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise _broken(path, version, f"it is not a whole archive ({error})") from error
    missing = [name for name in version.batches if name not in contents]
    if missing:
        raise _broken(path, version, f"{version.folder}/{missing[0]} is not in it")
    return contents


def _parse_binary(data: bytes) -> Images | None:
    """Records of a label byte and 3,072 pixel bytes; None if the length does not fit."""
    if not data or len(data) % (1 + BYTES):
        return None
    records = torch.frombuffer(bytearray(data), dtype=torch.uint8).reshape(-1, 1 + BYTES)
    return Images(records[:, 1:].reshape(-1, *SHAPE), records[:, 0].to(torch.int64))


def _parse_python(data: bytes) -> Images | None:
    """A pickled dict of `data`, an [N, 3072] uint8 array, and `labels`, a list of N numbers; None if it is not."""
    try:
        batch = _PlainUnpickler(io.BytesIO(data), encoding="bytes").load()
        array, labels = batch[b"data"], batch[b"labels"]
        _, shape, dtype, by_column, content = array.state
        if shape != (len(labels), BYTES) or dtype.arguments[0] not in (b"u1", "u1") or not isinstance(content, bytes):
            return None
        flat = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        rows = flat.reshape(BYTES, -1).T if by_column else flat.reshape(-1, BYTES)
        return Images(rows.reshape(-1, *SHAPE), torch.tensor(labels, dtype=torch.int64))
    # A crafted or damaged pickle can fail in any of these ways; it cannot run code.
    except (
        pickle.UnpicklingError,
        EOFError,
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
        RuntimeError,
        OverflowError,
    ):
        return None


class _Record:
    """Stands in for numpy's array and dtype: keeps what the pickle says about them and runs nothing."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _PlainUnpickler(pickle.Unpickler):
    """Numbers, text, lists, dicts, and a `_Record` wherever the CIFAR-10 pickles name a numpy object."""

    ALLOWED = frozenset(
        {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
        }
    )

    def find_class(self, module: str, name: str) -> type[_Record]:
        if (module, name) in self.ALLOWED:
            return _Record
        raise pickle.UnpicklingError(f"{module}.{name} has no place in CIFAR-10")


def _broken(path: Path, version: Version, what: str) -> ConfigError:
    return ConfigError(
        f"cifar10: {str(path)!r} is not complete: {what}; "
        f"delete it and put {version.archive} (MD5 {version.md5}) in its place"
    )
