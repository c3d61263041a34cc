"""Signs and colours: what anyone can read, on a light and on a dark background, in colour or without."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.karn.colours import CONTRAST, DARK, LIGHT, STAGES, contrast, ink_on, look, luminance, readable
from esper.leyline.factored_actions import HEADS, LifecycleOp
from esper.leyline.stages import LIVE, SeedStage
from esper.nissa.progress import STAGE_MARKS

COLOURS = st.integers(0, 0xFFFFFF).map(lambda number: f"#{number:06X}")


def test_contrast_is_that_of_the_guidelines_for_colours_whose_contrast_is_known() -> None:
    assert luminance("#000000") == 0.0
    assert luminance("#FFFFFF") == pytest.approx(1.0)
    assert contrast("#FFFFFF", "#000000") == contrast("#000000", "#FFFFFF") == pytest.approx(21.0)
    assert contrast("#767676", "#FFFFFF") == pytest.approx(4.54, abs=0.005)  # the darkest grey that fails AA is #777777
    assert contrast("#FF0000", "#FFFFFF") == pytest.approx(4.0, abs=0.005)


@pytest.mark.parametrize("background", [LIGHT, DARK])
@pytest.mark.parametrize("stage", SeedStage)
def test_every_stage_stands_out_from_both_backgrounds_and_its_letter_from_it(stage: SeedStage, background: str) -> None:
    mark = STAGES[stage.name]

    assert contrast(mark.colour, background) >= 3.0
    assert contrast(mark.colour, ink_on(mark.colour)) >= 4.5


def test_a_stage_has_the_letter_that_it_has_in_a_terminal() -> None:
    assert {name: mark.letter for name, mark in STAGES.items()} == {
        stage.name: letter for stage, (letter, _) in STAGE_MARKS.items()
    }


def test_stages_of_different_colour_have_different_letters() -> None:
    letters = {(mark.letter, mark.colour) for mark in STAGES.values()}

    assert len({letter for letter, _ in letters}) == len({colour for _, colour in letters}) == len(letters)
    assert len({STAGES[stage.name] for stage in LIVE}) == len(LIVE)


@given(colour=COLOURS)
def test_any_colour_has_a_shade_that_is_read_on_light_and_on_dark(colour: str) -> None:
    shade = readable(colour)

    assert min(contrast(shade, LIGHT), contrast(shade, DARK)) >= CONTRAST


@given(colour=COLOURS, background=st.sampled_from([LIGHT, DARK]))
def test_a_colour_that_is_readable_already_is_left_alone(colour: str, background: str) -> None:
    shade = readable(colour, [background])

    assert contrast(shade, background) >= CONTRAST
    assert (shade == colour) == (contrast(colour, background) >= CONTRAST)


def test_forty_things_look_different_as_lines_and_as_areas() -> None:
    looks = [look(index) for index in range(40)]

    assert len({(each.colour, each.dash, each.symbol) for each in looks}) == 40
    assert len({(each.colour, each.pattern) for each in looks}) == 40


def test_operations_and_heads_are_told_apart_by_colour_alone_and_without_colour() -> None:
    most = max(len(HEADS), len(LifecycleOp))
    looks = [look(index) for index in range(most)]

    assert len({each.colour for each in looks}) == most
    assert len({each.pattern for each in looks}) == most
    assert len({each.symbol for each in looks}) == most
