"""The learned policy from update to update: how open its choices are, whether it learns soundly, what it expects."""

from __future__ import annotations

from plotly.subplots import make_subplots

from esper.karn.colours import look
from esper.karn.figures.canvas import OF, Drawn, Nothing, Subject, canvas, finished, limit, line, safe, whole
from esper.karn.figures.rounds import ROUND

FLOOR = 0.10  # normalised entropy below which the view `head_health` calls a head collapsed
_RULE = Nothing("No policy learned in this run.")
_HEALTH: tuple[tuple[str, str], ...] = (
    ("approx_kl", "KL from the policy before the update"),
    ("clip_fraction", "share of decisions clipped"),
    ("explained_variance", "explained variance of returns"),
    ("grad_norm", "norm of the gradient, before clipping"),
    ("value_loss", "loss of the critic"),
    ("value_deviation", "standard deviation of values"),
)
_LIMITS = {"approx_kl": ("$.ppo.target_kl", "target"), "grad_norm": ("$.ppo.max_grad_norm", "clipped to")}
"""Settings that bound a column, and what the bound is called."""


def entropies(of: Subject) -> Drawn:
    rows = of.rows(
        "select head, max(round), avg(entropy) from head_health join heads using (head) "
        f"where {OF} group by head, head_index, round // $3 order by head_index, 2",
        of.bucket("rounds"),
    )
    if not rows:
        return _RULE
    figure = canvas(ROUND, ("entropy (1: all choices alike)", 1.0))
    for index, head in enumerate(dict.fromkeys(row[0] for row in rows)):
        ours = [row for row in rows if row[0] == head]
        figure.add_trace(line(head, [row[1] for row in ours], [row[2] for row in ours], look(index)))
    whole(figure, [row[1] for row in rows])
    limit(figure, FLOOR, "collapsed below")
    return figure.update_yaxes(range=[-0.03, 1.05])


def health(of: Subject) -> Drawn:
    columns = ", ".join(f"avg({column})" for column, _ in _HEALTH)
    rows = of.rows(
        f"select max(round), {columns}, string_agg(distinct skipped, '; ') from ppo_updates where {OF} "
        "group by round // $3 order by 1",
        of.bucket("rounds"),
    )
    if not rows:
        return _RULE
    figure = make_subplots(
        rows=2, cols=3, vertical_spacing=0.2, horizontal_spacing=0.08, subplot_titles=[title for _, title in _HEALTH]
    )
    at = [row[0] for row in rows]
    for index, (column, title) in enumerate(_HEALTH):
        place = {"row": index // 3 + 1, "col": index % 3 + 1}
        figure.add_trace(line(title, at, [row[index + 1] for row in rows], look(index), showlegend=False), **place)
        figure.update_xaxes(title_text=ROUND, **place)
        if column != "explained_variance":
            figure.update_yaxes(rangemode="tozero", **place)
        if column in _LIMITS:
            setting, says = _LIMITS[column]
            bound = of.setting(setting)
            if bound is not None:
                limit(figure, bound, f"{says} {bound:g}", **place)
    skipped = [(row[0], row[-1]) for row in rows if row[-1] is not None]
    if skipped:
        figure.add_scatter(
            name="update skipped", x=[at for at, _ in skipped], y=[0.0] * len(skipped), mode="markers", row=1, col=1,
            marker={"symbol": "x", "size": 10, "color": look(1).colour}, customdata=[why for _, why in skipped],
            hovertemplate="skipped: %{customdata}",
        )  # fmt: skip
    figure.update_annotations(font_size=12)
    return finished(whole(figure, at), 520, above=24)


def operation_values(of: Subject) -> Drawn:
    rows = of.rows(
        "select op, max(round), avg(value) from op_values join ops using (op) "
        f"where {OF} group by op, op_index, round // $3 order by op_index, 2",
        of.bucket("rounds"),
    )
    if not rows:
        return _RULE
    figure = canvas(ROUND, (f"expected return ({safe(of.points)})", 1.0))
    for index, op in enumerate(dict.fromkeys(row[0] for row in rows)):
        ours = [row for row in rows if row[0] == op]
        figure.add_trace(line(op, [row[1] for row in ours], [row[2] for row in ours], look(index)))
    return whole(figure, [row[1] for row in rows])
