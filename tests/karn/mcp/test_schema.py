"""What can be asked, in words."""

from __future__ import annotations

from esper.karn.mcp.schema import EXAMPLES, UNITS, describe, view_list
from esper.karn.views import views


def test_every_view_has_a_question_that_it_is_for_and_every_unit_a_column() -> None:
    columns = {column.name for view in view_list().views for column in describe(view.name).columns}

    assert set(EXAMPLES) == {view.name for view in views()}
    assert {column for names in UNITS.values() for column in names} <= columns


def test_everything_in_the_database_is_listed() -> None:
    listed = {view.name for view in view_list().views}

    for view in view_list().views:
        assert view.summary
        assert describe(view.name).columns
    tables = {name.removeprefix("live_") for name in listed if name.startswith("live_")}
    assert {describe(name).name for name in tables} == tables
    assert {"manifest", "slots", "choices", "integrity", "gates", "ops", "stages", "heads"} <= listed
