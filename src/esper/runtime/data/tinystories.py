"""TinyStories (Eldan and Li 2023): from the Hugging Face Hub, from a folder of one's own, or procedural ones instead.

`datasets` is imported only where the Hub or Parquet files are read; the extra `hub` brings it.
"""

from __future__ import annotations

from pathlib import Path

from esper.leyline.errors import ConfigError
from esper.leyline.randomness import stream
from esper.runtime.data.stories import stories
from esper.runtime.data.text import Texts, divided

NAME = "roneneldan/TinyStories"
COUNT = 5_000  # stories that are read; about four million characters
SYNTHETIC = 1_500  # stories that are made; about 0.6 million characters
COLUMN = "text"
STORY_END = "<|endoftext|>"  # between two stories in the text files of the data set


def synthetic_stories(seed: int) -> Texts:
    """Procedural stories, tokenised and divided as the others are."""
    made = stories(SYNTHETIC, stream(seed, "stories"))
    return divided(made, stream(seed, "stories split"))


def tinystories(data_dir: str | None, download: bool, seed: int) -> Texts:
    """The first stories of a folder or of the Hub; the seed decides which of them train, validate and test.

    data_dir: a folder with .txt files (stories end with <|endoftext|> or at an empty line) or .parquet files (a column
    `text`). Raises ConfigError where nothing can be read, with the ways there are.
    """
    if data_dir is not None:
        found = _from_folder(Path(data_dir))
    elif download:
        found = _from_hub()
    else:
        raise ConfigError(
            f"tinystories: no data; --download fetches {NAME} from the Hugging Face Hub (pip install 'esper[hub]'), "
            "--data-dir reads a folder of .txt or .parquet files, --data synthetic makes stories up"
        )
    return divided(found[:COUNT], stream(seed, "stories split"))


def _from_folder(folder: Path) -> list[str]:
    texts, tables = sorted(folder.glob("*.txt")), sorted(folder.glob("*.parquet"))
    if not texts and not tables:
        raise ConfigError(f"task.data_dir: {str(folder)!r} holds no .txt and no .parquet file; give a folder that does")
    found: list[str] = []
    for path in texts:
        try:
            found += _stories_in(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"task.data_dir: {str(path)!r} cannot be read as UTF-8 text: {error}") from error
    if tables:
        found += _rows(f"a table in {str(folder)!r}", "parquet", [str(path) for path in tables])
    return found


def _stories_in(text: str) -> list[str]:
    parts = text.split(STORY_END if STORY_END in text else "\n\n")
    return [part.strip() for part in parts if part.strip()]


def _from_hub() -> list[str]:
    return _rows(NAME, NAME)


def _rows(what: str, source: str, data_files: list[str] | None = None) -> list[str]:
    """The first stories of a data set as `datasets` knows it; `what` it is to people."""
    try:
        import datasets
    except ImportError as error:
        raise ConfigError(
            "tinystories: reading the Hub or .parquet files needs the package datasets; pip install 'esper[hub]', or "
            "use --data synthetic"
        ) from error
    try:
        rows = datasets.load_dataset(source, data_files=data_files, split=f"train[:{COUNT}]")
        return [str(story) for story in rows[COLUMN]]
    except (OSError, ValueError, KeyError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).splitlines()
        why = reason[0] if reason else type(error).__name__
        raise ConfigError(f"tinystories: {what} cannot be read: {why}") from error
