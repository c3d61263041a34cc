"""One file about runs: it stands alone, it says what the lines say, and nothing in a run's texts becomes markup."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
from contextlib import closing
from html.parser import HTMLParser
from pathlib import Path
from statistics import fmean
from typing import Any

import plotly.graph_objects as go
import pytest
from tests.karn.made import Made
from tests.karn.recorded import Recorded

from esper.karn.figures import PANELS, draw
from esper.karn.memory import open_memory
from esper.karn.report import DETAILED, html, image
from esper.karn.store import Store
from esper.karn.views import create_views
from esper.leyline.errors import ConfigError
from esper.leyline.telemetry import (
    SCHEMA_VERSION,
    EnvStepPayload,
    EpisodeFinishedPayload,
    SeedFossilizedPayload,
    SeedGerminatedPayload,
    SeedPrunedPayload,
)
from esper.nissa.run_folder import RunFolder

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chrome or Chromium is installed")


class Page(HTMLParser):
    """What a browser makes of a page, as far as the tests ask."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.styles: list[str] = []
        self.texts: list[str] = []
        self._inside = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        {"script": self.scripts, "style": self.styles}.get(self._inside, self.texts).append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.texts).split())

    @property
    def data(self) -> list[Any]:
        """The JSON of the figures, in their order."""
        told = [json.loads(script) for script in self.scripts if script.startswith("{")]
        return [each for each in told if "data" in each]


@pytest.fixture(scope="module")
def text(recorded: Recorded) -> str:
    return html(recorded.con, [recorded.run], "What grew")


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


def report_of(folders: list[Path], title: str = "made") -> Page:
    with closing(open_memory(folders)) as store:
        return Page(html(store.con, [folder.name for folder in folders], title))


# --- it stands alone -----------------------------------------------------------------------------------------------


def test_nothing_is_fetched(page: Page) -> None:
    for tag, attrs in page.tags:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base", "form")
        assert not {"src", "href", "srcset", "action", "data"} & attrs.keys()
    assert not any("url(" in style or "@import" in style for style in page.styles)
    own = [script for script in page.scripts if "plotly.js v" not in script[:200]]
    assert not [script for script in own if "http:" in script or "https:" in script]
    policy = next(attrs["content"] for _, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; ")
    assert "http" not in policy


def test_plotly_is_in_it_once_and_sends_nothing_anywhere(page: Page) -> None:
    libraries = [script for script in page.scripts if "plotly.js v" in script[:200]]
    (drawing,) = [script for script in page.scripts if "Plotly.react" in script[:5000] and script not in libraries]

    assert len(libraries) == 1
    assert "showSendToCloud: false" in drawing


def test_besides_plotly_it_is_small(text: str, page: Page) -> None:
    library = max(map(len, page.scripts))

    assert len(text) - library < 300_000


def test_it_follows_light_and_dark(page: Page) -> None:
    (themes,) = [json.loads(script) for script in page.scripts if script.startswith('{"light"')]

    assert themes["light"]["layout"]["paper_bgcolor"] != themes["dark"]["layout"]["paper_bgcolor"]
    assert "prefers-color-scheme: dark" in page.styles[0]
    assert not [figure for figure in page.data if "template" in figure["layout"]]


@pytest.mark.slow
@needs_browser
def test_a_browser_without_a_network_draws_every_figure_and_complains_of_nothing(
    text: str, page: Page, tmp_path: Path
) -> None:
    file = tmp_path / "report.html"
    file.write_text(text)
    ended = subprocess.run(
        [
            str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND",
            "--enable-logging=stderr", "--window-size=1000,20000", "--virtual-time-budget=20000", "--dump-dom",
            file.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip

    assert "CONSOLE" not in ended.stderr
    assert ended.stdout.count("data-drawn") - text.count("data-drawn") == len(page.data)
    assert len(re.findall(r'<svg class="main-svg"[^>]*style="background', ended.stdout)) == len(page.data)


# --- it says what the lines say ------------------------------------------------------------------------------------


def test_every_figure_is_in_it_with_its_question_or_a_reason(recorded: Recorded, page: Page) -> None:
    figures = [draw(name, recorded.con, [recorded.run]) for name in PANELS]

    for each in PANELS.values():
        assert each.question in page.words
    assert len(page.data) == sum(isinstance(figure, go.Figure) for figure in figures)


def test_its_numbers_are_those_of_the_figures_to_five_digits(recorded: Recorded, page: Page) -> None:
    expected = draw("growth", recorded.con, [recorded.run])
    assert isinstance(expected, go.Figure)

    (found,) = [
        figure for figure in page.data if any(trace.get("name") == "test, at the end" for trace in figure["data"])
    ]
    for ours, theirs in zip(found["data"], expected.data, strict=True):
        assert ours["x"] == list(theirs.x)
        assert ours["y"] == [None if y is None else pytest.approx(y, rel=1e-4) for y in theirs.y]


def test_the_story_tells_what_was_grown_what_it_cost_and_what_it_brought(recorded: Recorded, page: Page) -> None:
    planted, kept, pruned = (
        len(recorded.of(kind)) for kind in (SeedGerminatedPayload, SeedFossilizedPayload, SeedPrunedPayload)
    )
    run = recorded.manifest["config"]["run"]
    finished = [(where.round or 0, told) for where, told in recorded.of(EpisodeFinishedPayload)]
    late = [told for round_, told in finished if round_ >= math.floor(0.8 * run["rounds"])]

    assert f"{run['controller']} on digits, seed {run['seed']}: " in page.words
    assert f"{planted} seeds planted, {kept} kept, {pruned} pruned." in page.words
    assert f"Test accuracy (%) {fmean(told.test_metric or 0.0 for told in late):.2f} ±" in page.words
    assert f"{fmean(math.log2(told.params / told.host_params) for told in late):.2f} ±" in page.words
    wasted = sum(told.flops_wasted for _, told in finished) / sum(told.flops for _, told in finished)
    assert f", {wasted:.0%} of them for what did not stay" in page.words


def test_a_whole_run_has_no_problems(page: Page) -> None:
    assert "Problems" not in page.texts


def test_problems_of_the_files_stand_on_top(tmp_path: Path) -> None:
    folder = Made([["WAIT"] * 4], seed=1).write(tmp_path, "torn")
    (segment,) = (folder / "ev").glob("*.jsonl")
    lines = segment.read_bytes().splitlines(keepends=True)
    segment.write_bytes(b"".join([*lines[:5], *lines[6:8], b"half a line\n", *lines[8:-1], lines[-1][:20]]))

    words = report_of([folder]).words

    assert "Problems torn died: its process ended without a word" in words
    assert "torn: 1 events of writer r0.1 are missing" in words
    assert "torn: 1 lines of writer r0.1 are no events; " in words
    assert "torn: the last 20 bytes of writer r0.1 are half a line" in words
    assert words.index("Problems") < words.index("What ran")


def test_several_runs_are_compared_first_and_told_one_by_one_behind_a_click(tmp_path: Path) -> None:
    folders = [Made([["WAIT"] * 2], seed=seed).write(tmp_path, f"run-{seed}") for seed in range(DETAILED + 2)]

    page = report_of(folders)

    assert [tag for tag, _ in page.tags].count("details") == DETAILED
    assert [attrs for tag, attrs in page.tags if tag == "details" and "open" in attrs] == [{"open": None}]
    assert "How do the runs compare?" in page.words
    assert f"run-{DETAILED + 1}" in page.words
    assert f"These are the first {DETAILED} of {DETAILED + 2} runs" in page.words


def test_a_legend_of_many_rows_has_room_below_the_buttons(tmp_path: Path) -> None:
    def room(*names: str) -> int:
        """Pixels above the first figure about rounds of runs with these names."""
        page = report_of([Made([["WAIT"] * 4] * 2, seed=len(name)).write(tmp_path, name) for name in names])
        (progress,) = [each for each in page.data if any(": test" in trace.get("name", "") for trace in each["data"])]
        return int(progress["layout"]["margin"]["t"])

    # Three names for each run: with short ones two fit into a row, with long ones one. A row takes 29 pixels.
    assert room("x" * 40, "y" * 41) - room("x", "yy") == (6 - 3) * 29


def test_a_run_that_has_told_nothing_yet_has_a_report(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, "made", "begun") as folder:
        folder.write_manifest({"schema_version": SCHEMA_VERSION})

    page = report_of([folder.path])

    assert "It has not said what it runs; died." in page.words
    assert page.data == []


def test_a_run_that_was_killed_in_its_first_episode_has_a_report(recorded: Recorded, tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    (folder / "ev").mkdir(parents=True)
    shutil.copy(recorded.folder / "run.json", folder)
    (segment,) = (recorded.folder / "ev").glob("*.jsonl")
    lines = segment.read_bytes().splitlines(keepends=True)
    (folder / "ev" / "r0.1-000000.open").write_bytes(b"".join(lines[:40]))

    page = report_of([folder])

    assert "No episode has come to its end." in page.words
    (growth,) = [figure for figure in page.data if any(trace.get("name") == "validation" for trace in figure["data"])]
    steps = [
        payload for _, payload in recorded.told[:40] if isinstance(payload, EnvStepPayload) and payload.env_id == 0
    ]
    assert growth["data"][2]["y"] == pytest.approx([step.val_metric for step in steps], rel=1e-4)


def test_a_report_of_nothing_is_refused(recorded: Recorded) -> None:
    with pytest.raises(ConfigError, match="a report needs a run"):
        html(recorded.con, [], "none")


# --- hostile texts -------------------------------------------------------------------------------------------------


def test_markup_in_a_run_is_text(tmp_path: Path) -> None:
    bad = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"
    folder = Made([["GROW_INTERNAL"] * 3] * 2, blueprint=bad, rollbacks=[1, 1]).write(tmp_path, "r0")
    with closing(Store.open([folder], names=[bad])) as store:
        create_views(store.con)
        store.con.execute("update manifest set metric = $1, unit = $1, controller = $1, started = $1", [bad])
        page = Page(html(store.con, [bad], bad))

    assert not [attrs for tag, attrs in page.tags if tag == "img" or "onerror" in attrs]
    assert sum(tag == "script" for tag, _ in page.tags) == len(page.data) + 3  # themes, plotly, drawing
    assert not [script for script in page.scripts if script.startswith("alert")]
    assert not [script for script in page.scripts if script.startswith("{") and "<" in script]
    assert "<img src=x onerror=alert(1)>" in page.words
    assert not [figure for figure in page.data if "<img" in json.dumps(figure)]


# --- pictures ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@needs_browser
def test_a_figure_becomes_a_picture_with_its_question_on_it(recorded: Recorded, tmp_path: Path) -> None:
    pytest.importorskip("kaleido")
    figure = draw("lanes", recorded.con, [recorded.run])
    assert isinstance(figure, go.Figure)

    image(figure, tmp_path / "lanes.svg")
    image(figure, tmp_path / "lanes.PNG")

    assert PANELS["lanes"].question in (tmp_path / "lanes.svg").read_text()
    head = (tmp_path / "lanes.PNG").read_bytes()[:24]
    assert head.startswith(b"\x89PNG")
    assert int.from_bytes(head[16:20], "big") == 2 * 900


def test_a_picture_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"lanes\.bmp: a picture's name ends in \.png or \.svg"):
        image(go.Figure(), tmp_path / "lanes.bmp")


def test_without_kaleido_a_sentence_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kaleido", None)

    with pytest.raises(ConfigError, match=r"pictures need kaleido; pip install 'esper\[web\]'"):
        image(go.Figure(), tmp_path / "lanes.svg")


def test_without_a_browser_a_sentence_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("kaleido")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("BROWSER_PATH", str(tmp_path / "none"))

    with pytest.raises(
        ConfigError, match="pictures need Chrome or Chromium; install it or run `plotly_get_chrome`"
    ) as e:
        image(go.Figure(), tmp_path / "lanes.svg")
    assert "\n" not in str(e.value)
    assert not (tmp_path / "lanes.svg").exists()
