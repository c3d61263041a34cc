"""A file from elsewhere is read as plain data, or refused in one line by the error that the caller names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from esper.leyline.errors import CheckpointError, ConfigError, EsperError
from esper.leyline.saved import SAFE_LOADER, load_plain


@pytest.fixture
def safe_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rule for old loaders is asked for by itself below."""
    monkeypatch.setattr(torch, "__version__", f"{SAFE_LOADER[0]}.{SAFE_LOADER[1]}.0+cpu")


class Stranger:
    """No tensor and no primitive."""


@pytest.mark.usefixtures("safe_torch")
def test_tensors_and_primitives_come_back(tmp_path: Path):
    torch.save({"weights": torch.arange(3), "name": "norm", "rungs": [True, None]}, tmp_path / "saved.pt")

    saved = load_plain(tmp_path / "saved.pt", "a thing", ConfigError)

    assert saved.pop("weights").tolist() == [0, 1, 2]
    assert saved == {"name": "norm", "rungs": [True, None]}


@pytest.mark.usefixtures("safe_torch")
@pytest.mark.parametrize("error", [ConfigError, CheckpointError])
def test_what_is_not_such_a_file_is_refused_in_one_line(tmp_path: Path, error: type[EsperError]):
    (tmp_path / "text.pt").write_text("weights: many\nand more\n")
    (tmp_path / "empty.pt").write_bytes(b"")
    torch.save(Stranger(), tmp_path / "stranger.pt")
    torch.save(torch.zeros(100), tmp_path / "whole.pt")
    (tmp_path / "half.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:500])

    for name in ("text", "empty", "stranger", "half"):
        with pytest.raises(error, match=f"{name}.pt: not a thing") as refused:
            load_plain(tmp_path / f"{name}.pt", "a thing", error)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["nothing.pt", ".", "x" * 5000, "\0"])
def test_where_there_is_no_file_it_says_so(tmp_path: Path, name: str):
    with pytest.raises(ConfigError, match="no such file; want a thing"):
        load_plain(tmp_path / name, "a thing", ConfigError)


@pytest.mark.parametrize(("version", "refused"), [("2.9.1+cpu", True), ("2.10.0", False), ("2.13.0+cu130", False)])
def test_a_torch_with_a_hole_in_its_loader_reads_nothing_from_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, refused: bool
):
    torch.save({"x": 1}, tmp_path / "saved.pt")
    monkeypatch.setattr(torch, "__version__", version)

    if not refused:
        assert load_plain(tmp_path / "saved.pt", "a thing", ConfigError) == {"x": 1}
        return
    with pytest.raises(ConfigError, match=r"torch 2\.9\.1\+cpu has a known hole .* install torch 2\.10 or newer"):
        load_plain(tmp_path / "saved.pt", "a thing", ConfigError)
