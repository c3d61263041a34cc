"""Commands that read runs: `runs`, `show`, `sql`, `gates`, `export`, `report`. They touch no training."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from importlib import import_module
from pathlib import Path
from typing import Any

import duckdb

from esper.karn.exporters.traces import Trace, traces
from esper.karn.mcp.schema import view_list
from esper.karn.memory import folders_of, load, name_of, open_memory, why_unread
from esper.karn.phases import PHASES, create_gates, gates
from esper.karn.query_process import QueryLimits, QueryProcess
from esper.karn.sql_gate import Answer, Question
from esper.karn.tables import quoted
from esper.karn.views import views
from esper.leyline.errors import ConfigError, ExitCode, StorageError
from esper.nissa.run_folder import runs as run_ids
from esper.nissa.storage import shown, storage_errors
from esper.scripts.columns import cells, gate_rows, plain, printable
from esper.scripts.show import screen

_JUDGED = ("integrity", "gates")
"""Tables that are exported with the views."""


def add_to(commands: Any) -> None:
    """Adds these commands to the parser's subcommands."""
    for name, (handler, summary, configure) in _COMMANDS.items():
        parser = commands.add_parser(name, help=summary, description=handler.__doc__)
        parser.add_argument("--root", type=Path, default=Path("runs"), metavar="DIR", help="where runs are (runs)")
        configure(parser)
        parser.set_defaults(run_command=handler)


# --- runs ----------------------------------------------------------------------------------------------------------


def list_runs(args: argparse.Namespace) -> int:
    """What ran, when, and how it ended, the newest last; arms stand below the run that they are of."""
    if args.last < 1:
        raise ConfigError(f"--last {args.last}: must be at least 1")
    ids = run_ids(args.root)[-args.last :]
    if not ids:
        raise ConfigError(f"--root: there is no run in {args.root} yet")
    folders = [folder for run in ids for folder in folders_of(args.root, run)]
    unread = {folder: why for folder in folders if (why := why_unread(folder)) is not None}
    rows = [(name_of(folder), *("–",) * 8, why) for folder, why in unread.items()]
    with closing(open_memory([folder for folder in folders if folder not in unread])) as store:
        found = store.con.execute(
            "select run, task, controller, status, rounds_done || '/' || rounds, episodes, "
            "round(test_metric, if(unit = '%', 1, 3)), unit, round(params), if(complete, '', 'lines are missing') "
            "from runs"
        ).fetchall()
    head = ("run", "task", "controller", "status", "rounds", "episodes", "test", "", "parameters", "")
    print(plain((head, sorted([*rows, *map(cells, found)]))))
    return 0


def _configure_runs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--last", type=int, default=20, metavar="N", help="so many of the newest (20)")


# --- show ----------------------------------------------------------------------------------------------------------


def show(args: argparse.Namespace) -> int:
    """One screen about a run: what was grown, when, what it cost, what it brought. Several for a run with arms."""
    with closing(open_memory(folders_of(args.root, args.run))) as store:
        names = [run for (run,) in store.con.execute("select run from runs order by started, run").fetchall()]
        print(f"\n{'-' * 80}\n".join(screen(store.con, run) for run in names))
    return 0


def _name_a_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="its id, the beginning of it, 'latest', or a folder")


# --- sql -----------------------------------------------------------------------------------------------------------


def sql(args: argparse.Namespace) -> int:
    """Asks one SELECT of a run; `from runs` is one too. Without SQL: the views and what they answer."""
    if args.sql is None:
        listed = [(v.name, v.grain or "-", v.summary) for v in view_list().views if not v.name.startswith("live_")]
        print(plain((("view", "one row is", "what it answers"), listed)))
        print("\nEvery event is one too, env.step as live_env_step; `esper list events` says which there are.")
        return 0
    question = Question(args.sql, max_rows=args.rows, max_chars=4_000_000, explain=args.explain)
    folders = [str(folder.resolve()) for folder in folders_of(args.root, args.run)]
    with QueryProcess(load, folders, QueryLimits.lasting(args.seconds)) as process:
        answer = process.ask(question)
    print(_formatted(answer, "plan" if args.explain and args.format == "table" else args.format))
    if answer.truncated:
        print(f"esper: the first {len(answer.rows)} rows; --rows gives more", file=sys.stderr)
    return 0


def _configure_sql(parser: argparse.ArgumentParser) -> None:
    _name_a_run(parser)
    parser.add_argument("sql", metavar="SQL", nargs="?", help="one SELECT, or `from VIEW`; left out: what there is")
    parser.add_argument("--rows", type=int, default=200, metavar="N", help="at most so many (200)")
    parser.add_argument("--seconds", type=float, default=30.0, metavar="S", help="longest time for an answer (30)")
    parser.add_argument("--format", choices=("table", "json", "csv"), default="table", help="how rows are printed")
    parser.add_argument("--explain", action="store_true", help="the plan instead of the answer")


def _formatted(answer: Answer, how: str) -> str:
    head = tuple(column.name for column in answer.columns)
    if how == "json":
        return "\n".join(json.dumps(dict(zip(head, row, strict=True))) for row in answer.rows)
    if how == "csv":
        return "\n".join(",".join(_quoted(cell) for cell in row) for row in (head, *answer.rows))
    if how == "plan":
        return "\n".join(printable(line) for row in answer.rows for line in str(row[-1]).split("\n"))
    return plain((head, [cells(row) for row in answer.rows]))


def _quoted(cell: Any) -> str:
    text = "" if cell is None else str(cell)
    return '"' + text.replace('"', '""') + '"' if any(sign in text for sign in ',"\n\r') else text


# --- gates ---------------------------------------------------------------------------------------------------------


def show_gates(args: argparse.Namespace) -> int:
    """A phase's gates: of arms each by itself, or of all together against a control. A failed gate blocks nothing."""
    ours, theirs = (
        [folder for name in names for folder in folders_of(args.root, name)] for names in ([args.run], args.vs)
    )
    with closing(open_memory([*ours, *theirs])) as store:
        treatment, control = ([name_of(folder) for folder in folders] for folders in (ours, theirs))
        cohorts = [treatment] if control else [[run] for run in treatment]
        found = [gates(store.con, cohort, control, args.phase) for cohort in cohorts]
    tables = [plain(gate_rows(each)) for each in found]
    if len(cohorts) > 1:
        tables = [f"{cohort[0]}\n{table}" for cohort, table in zip(cohorts, tables, strict=True)]
    print("\n\n".join(tables))
    failed = any(gate.passed is False for each in found for gate in each)
    return int(ExitCode.GATE_FAILED if args.check and failed else ExitCode.DONE)


def _configure_gates(parser: argparse.ArgumentParser) -> None:
    _name_a_run(parser)
    parser.add_argument("--vs", nargs="+", default=[], metavar="CONTROL", help="runs to compare with, paired by seed")
    parser.add_argument("--phase", type=int, choices=tuple(PHASES), default=0, help="of the roadmap (0)")
    parser.add_argument("--check", action="store_true", help="leave with exit code 1 if a gate failed")


# --- export --------------------------------------------------------------------------------------------------------


def export(args: argparse.Namespace) -> int:
    """Writes every view of a run as Parquet or CSV, or its curves for TensorBoard or Weights & Biases."""
    tool, where = ("tensorboard", args.tensorboard) if args.wandb is None else ("wandb", args.wandb)
    if where is not None and args.to is not None:
        raise ConfigError("--to: is where Parquet and CSV files go; leave it out")
    with closing(open_memory(folders_of(args.root, args.run))) as store:
        if where is None:
            create_gates(store.con)
            target = args.to or Path(f"{args.run.replace('/', '-')}-{args.format}")
            print(_to_files(store.con, args.format, target))
        else:
            print(_to_tool(tool, traces(store.con), where))
    return 0


def _to_files(con: duckdb.DuckDBPyConnection, kind: str, target: Path) -> str:
    if target.exists():
        raise ConfigError(f"--to: {target} exists already; nothing is written over")
    with storage_errors(target):
        target.mkdir(parents=True)
    names = [*_JUDGED, *(view.name for view in views() if view.kind == "view")]
    options = "format parquet" if kind == "parquet" else "format csv, header"
    for name in names:
        path = target / f"{name}.{kind}"
        try:
            con.execute(f"copy (from {name}) to {quoted(str(path))} ({options})")
        except duckdb.IOException as error:
            raise StorageError(f"{shown(path)}: {shown(error)}; check the disk or choose another folder") from error
    return f"{len(names)} views: {target}"


def _to_tool(tool: str, told: Sequence[Trace], where: Path | str) -> str:
    """`tool` is a module of `karn/exporters`; what it needs is a package that not every installation has."""
    try:
        exporter = import_module(f"esper.karn.exporters.{tool}")
    except ModuleNotFoundError:
        raise ConfigError(f"--{tool}: needs {tool}; pip install 'esper[export]'") from None
    exporter.write(told, where)
    curves = {name for trace in told for point in trace.points for name in point.values}
    return f"{len(curves)} curves of {len(told)} {'run' if len(told) == 1 else 'runs'}: {where}"


def _configure_export(parser: argparse.ArgumentParser) -> None:
    _name_a_run(parser)
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--parquet", dest="format", action="store_const", const="parquet", help="Parquet files")
    kind.add_argument("--csv", dest="format", action="store_const", const="csv", help="CSV files (the default)")
    kind.add_argument("--tensorboard", type=Path, metavar="DIR", help="a folder of runs that TensorBoard shows")
    kind.add_argument("--wandb", metavar="PROJECT", help="a project there; WANDB_MODE=offline needs no account")
    parser.add_argument("--to", type=Path, metavar="DIR", help="a new folder for Parquet or CSV files")
    parser.set_defaults(format="csv")


_COMMANDS: dict[str, tuple[Callable[[argparse.Namespace], int], str, Callable[[argparse.ArgumentParser], None]]] = {
    "runs": (list_runs, "what ran, and how it ended", _configure_runs),
    "show": (show, "one screen about a run", _name_a_run),
    "sql": (sql, "ask a run in SQL", _configure_sql),
    "gates": (show_gates, "pass or fail? the gates of a phase of the roadmap", _configure_gates),
    "export": (export, "a run as files, or for another tool", _configure_export),
}
