"""Text: the alphabet, contexts, how documents are dealt to splits, and where text comes from."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from esper.leyline.errors import ConfigError
from esper.leyline.randomness import stream
from esper.runtime.data import first_half, python_help, second_half, stdlib_text, synthetic_stories, text, tinystories
from esper.runtime.data.stories import CHILDREN, COLOURS, THINGS, stories
from esper.runtime.data.text import BREAK, Texts, decode, divided, encode, texts_to_splits, windows
from esper.runtime.data.tinystories import COUNT

# --- tokens -----------------------------------------------------------------------------------------------------


def test_every_symbol_has_a_token_of_its_own_and_comes_back() -> None:
    assert text.VOCABULARY == 97
    assert sorted(encode(text.SYMBOLS).tolist()) == list(range(96))
    assert decode(encode("Hello,\n~world!")) == "Hello,\n~world!"


def test_a_character_outside_the_alphabet_is_one_unknown_token() -> None:
    assert encode("aé\t☃😀b").tolist() == [66, 96, 96, 96, 96, 67]  # line end 0, space 1, ..., a 66
    assert decode(encode("é")) == "\N{REPLACEMENT CHARACTER}"


def test_contexts_lie_end_to_end_and_targets_are_the_next_characters() -> None:
    split = windows("abcdefghij", 3, "training")

    assert [decode(row) for row in split.inputs] == ["abc", "def", "ghi"]
    assert [decode(row) for row in split.targets] == ["bcd", "efg", "hij"]


def test_a_last_context_without_a_next_character_is_left_out() -> None:
    assert [decode(row) for row in windows("abcdefghi", 3, "training").inputs] == ["abc", "def"]


def test_a_text_shorter_than_two_contexts_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"task.context: 5 is too long for the test text of 10 characters"):
        windows("abcdefghij", 5, "test")


# --- splits -----------------------------------------------------------------------------------------------------


def test_documents_are_dealt_whole_and_each_once() -> None:
    documents = [f"document {index} " * (1 + index % 7) for index in range(60)]

    dealt = divided(documents, stream(0, "test"))

    found = [part for whole in (dealt.train, dealt.val, dealt.test) for part in whole.split(BREAK)]
    assert sorted(found) == sorted(documents)


def test_splits_have_their_shares_of_the_characters_even_if_one_document_is_huge() -> None:
    documents = ["x" * 1000, *("y" * 20 for _ in range(50))]

    dealt = divided(documents, stream(1, "test"))

    assert "x" in dealt.train
    assert 80 <= dealt.val.count("y") <= 100  # 5 % of 2,000, in documents of 20
    assert 180 <= dealt.test.count("y") <= 200


def test_fewer_documents_than_splits_are_refused() -> None:
    with pytest.raises(ConfigError, match="2 documents are too few"):
        divided(["a", "b"], stream(0, "test"))


@pytest.mark.parametrize("load", [stdlib_text, second_half, synthetic_stories])
def test_the_seed_decides_what_trains_and_nothing_else(load: Any) -> None:
    once, again, other = load(0), load(0), load(1)

    assert once == again
    assert once.train != other.train


def test_no_topic_and_no_story_stands_in_two_splits() -> None:
    told, texts, topics = synthetic_stories(0), stdlib_text(0, "any"), python_help.topics("any").values()
    train, val, test = (set(part.split(BREAK)) for part in (told.train, told.val, told.test))

    assert len(train) + len(val) + len(test) == len(train | val | test)
    parts = (texts.train, texts.val, texts.test)
    assert all(any(topic in part for part in parts) for topic in topics)
    assert sum(map(len, parts)) == sum(map(len, topics)) + len(BREAK) * (len(topics) - len(parts))


# --- Python's own text ------------------------------------------------------------------------------------------


def test_the_text_of_this_python_is_known_by_its_hash() -> None:
    from pydoc_data.topics import topics

    said = "\0".join(f"{name}\0{topics[name]}" for name in sorted(topics))
    digest = hashlib.sha256(said.encode()).hexdigest()

    assert python_help.fingerprint(python_help.topics("any")) == digest
    if sys.version_info[:3] in ((3, 11, 7), (3, 12, 1), (3, 13, 0)):
        assert python_help.KNOWN[digest] == ".".join(map(str, sys.version_info[:3]))


def test_another_text_is_refused_unless_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("pydoc_data.topics")
    vars(module)["topics"] = {"b": "two", "a": "one"}
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", module)

    with pytest.raises(ConfigError, match=r"ships another text .* --set task.text=any takes it"):
        python_help.topics()
    assert python_help.topics("any") == {"a": "one", "b": "two"}


def test_a_python_without_the_text_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)

    with pytest.raises(ConfigError, match=r"has no pydoc_data.topics"):
        python_help.topics()


def test_the_halves_share_no_topic_and_hold_them_all() -> None:
    learned, rest = first_half("any"), second_half(3, "any")
    places = [
        (topic in learned, topic in rest.train + rest.val + rest.test) for topic in python_help.topics("any").values()
    ]

    assert all(one != other for one, other in places)
    assert abs(sum(one for one, _ in places) - sum(other for _, other in places)) <= 1


# --- stories ----------------------------------------------------------------------------------------------------


def test_a_story_keeps_to_its_child_and_to_what_it_wants() -> None:
    names = [name for name, _, _ in CHILDREN]
    for story in stories(50, stream(0, "test")):
        assert sum(name in story for name in names) == 1
        assert sum(f" {thing}" in story.replace(".", " ") for thing in THINGS) >= 1
        assert len({colour for colour in COLOURS if f" {colour} " in story}) <= 1
        assert "{" not in story
        assert 150 < len(story) < 900


def test_stories_are_made_of_the_alphabet() -> None:
    made = "".join(stories(200, stream(1, "test")))

    assert int(encode(made).max()) < text.UNKNOWN
    assert len(set(stories(200, stream(1, "test")))) == 200


def test_stories_are_read_from_text_files_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("three\nlines\n<|endoftext|>\nfour<|endoftext|>", encoding="utf-8")
    (tmp_path / "a.txt").write_text("one\n\ntwo\n", encoding="utf-8")
    (tmp_path / "c.md").write_text("not a story")

    found = tinystories(str(tmp_path), download=False, seed=0)

    told = [part for whole in (found.train, found.val, found.test) for part in whole.split(BREAK)]
    assert sorted(told) == ["four", "one", "three\nlines", "two"]


@pytest.mark.parametrize(
    ("files", "words"),
    [({}, "holds no .txt and no .parquet file"), ({"a.txt": b"\xff\xfe\xfa"}, "cannot be read as UTF-8 text")],
)
def test_a_folder_without_stories_is_refused(tmp_path: Path, files: dict[str, bytes], words: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)

    with pytest.raises(ConfigError, match=words):
        tinystories(str(tmp_path), download=False, seed=0)


@pytest.fixture
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Parquet, where the extra `hub` is installed, with a cache of its own and without a network."""
    parquet = pytest.importorskip("pyarrow.parquet")
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    return parquet


def test_stories_are_read_from_parquet_files_of_a_folder_beside_its_text_files(tables: Any, tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    for name, told in (("b", ["three\nlines", "four"]), ("a", ["one", "two é"])):
        tables.write_table(pa.table({"id": [0, 1], "text": told}), tmp_path / f"{name}.parquet")
    (tmp_path / "c.txt").write_text("five", encoding="utf-8")

    found = tinystories(str(tmp_path), download=False, seed=0)
    again = tinystories(str(tmp_path), download=False, seed=0)

    told = [part for whole in (found.train, found.val, found.test) for part in whole.split(BREAK)]
    assert sorted(told) == ["five", "four", "one", "three\nlines", "two é"]
    assert found == again


def test_of_long_tables_the_first_stories_are_read(tables: Any, tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    for part in range(2):
        numbers = range(part * COUNT // 2, part * COUNT // 2 + COUNT)
        tables.write_table(pa.table({"text": [f"story {n}" for n in numbers]}), tmp_path / f"{part}.parquet")

    found = tinystories(str(tmp_path), download=False, seed=0)

    told = [part for whole in (found.train, found.val, found.test) for part in whole.split(BREAK)]
    assert sorted(told) == sorted(f"story {n}" for n in range(COUNT))


def test_a_table_without_stories_and_a_file_that_is_no_table_are_refused_in_one_line(
    tables: Any, tmp_path: Path
) -> None:
    pa = pytest.importorskip("pyarrow")
    nameless, broken = tmp_path / "nameless", tmp_path / "broken"
    for folder in (nameless, broken):
        folder.mkdir()
    tables.write_table(pa.table({"story": ["one"]}), nameless / "a.parquet")
    (broken / "a.parquet").write_bytes(b"not a table")

    for folder in (nameless, broken):
        with pytest.raises(ConfigError) as caught:
            tinystories(str(folder), download=False, seed=0)
        assert str(caught.value).startswith(f"tinystories: a table in '{folder}' cannot be read: ")
        assert "\n" not in str(caught.value)


def test_without_the_extra_the_hub_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)

    with pytest.raises(ConfigError, match=r"pip install 'esper\[hub\]'"):
        tinystories(None, download=True, seed=0)


def hub(answer: Any) -> ModuleType:
    """A stand-in for the package `datasets`, which CI does not install."""
    module = ModuleType("datasets")
    vars(module).update(load_dataset=answer, exceptions=SimpleNamespace(DatasetsError=RuntimeError))
    return module


def test_the_hub_is_asked_for_the_first_stories_of_the_training_split(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(name: str, **options: Any) -> dict[str, list[str]]:
        asked.append((name, options))
        return {"text": [f"story {index}" for index in range(40)]}

    monkeypatch.setitem(sys.modules, "datasets", hub(load_dataset))
    found = tinystories(None, download=True, seed=0)

    assert asked == [("roneneldan/TinyStories", {"data_files": None, "split": f"train[:{COUNT}]"})]
    assert sum(whole.count("story") for whole in (found.train, found.val, found.test)) == 40


def test_a_hub_that_does_not_answer_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(name: str, **options: Any) -> None:
        raise ConnectionError("no route\nto host")

    monkeypatch.setitem(sys.modules, "datasets", hub(load_dataset))
    with pytest.raises(ConfigError, match="cannot be read: no route") as caught:
        tinystories(None, download=True, seed=0)

    assert "\n" not in str(caught.value)


def test_splits_of_texts_are_contexts_of_each() -> None:
    splits = texts_to_splits(Texts("abcdefg", "hijklmn", "opqrstu"), 3)

    assert [decode(split.inputs.flatten()) for split in (splits.train, splits.val, splits.test)] == [
        "abcdef",
        "hijklm",
        "opqrst",
    ]
    assert all(split.inputs.dtype == torch.int64 for split in (splits.train, splits.val, splits.test))
