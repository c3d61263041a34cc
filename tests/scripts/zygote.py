"""Real processes without the wait: a process that has imported everything forks once per command. Read `Zygote`.

    zygote.run("train", "static", "--quiet") -> Ended(code, out, err)

A command gets its own process, working directory, standard streams, signal handlers and exit code; it only inherits
the imports, which take longer than most runs of a test do. `test_train.py` holds it against the installed command.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Ended:
    """What a command left behind."""

    code: int
    out: str
    err: str


class Zygote:
    """Talks to the process that forks."""

    def __init__(self) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "120"}
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self._streams: dict[int, tuple[Path, Path]] = {}
        self._folder = tempfile.TemporaryDirectory()

    def start(self, *argv: str, cwd: Path, **environment: str) -> int:
        """Begins a command; returns the id of its process."""
        place = Path(self._folder.name) / str(len(self._streams))
        out, err = place.with_suffix(".out"), place.with_suffix(".err")
        pid: int = self._ask(start=list(argv), cwd=str(cwd), out=str(out), err=str(err), environment=environment)
        self._streams[pid] = out, err
        return pid

    def wait(self, pid: int) -> Ended:
        out, err = self._streams[pid]
        return Ended(self._ask(wait=pid), out.read_text(), err.read_text())

    def run(self, *argv: str, cwd: Path, **environment: str) -> Ended:
        return self.wait(self.start(*argv, cwd=cwd, **environment))

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)
        self._folder.cleanup()

    def _ask(self, **request: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())


def serve() -> None:
    from importlib import import_module

    from esper.scripts import main

    for name in main.COMMANDS.values():
        import_module(f"esper.scripts.{name}")
    warm_up()
    for line in sys.stdin:
        request = json.loads(line)
        if "start" in request:
            answer = os.fork() or become(main.main, request)
        else:
            answer = os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])
        print(json.dumps(answer), flush=True)


def warm_up() -> None:
    """Does once what is slow the first time: reading the digits, and counting a model's FLOPs."""
    import torch

    from esper.runtime.config import TaskConfig
    from esper.runtime.tasks import make_task
    from esper.tolaria.flops import count_eval

    torch.set_num_threads(1)
    task = make_task(TaskConfig(), 0)
    count_eval(task.make_host(), task.splits.val.inputs[:1])


def become(main: Any, request: dict[str, Any]) -> None:
    """What the interpreter does around `sys.exit(main())`; does not return."""
    import atexit
    import traceback

    os.chdir(request["cwd"])
    os.environ.update(request["environment"])
    for number, path in ((0, os.devnull), (1, request["out"]), (2, request["err"])):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), number)
    code: Any = 1
    try:
        code = main(request["start"])
    except SystemExit as exit_:
        code = exit_.code
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        if not stream.closed:
            stream.flush()
    os._exit(0 if code is None else int(code))


if __name__ == "__main__":
    serve()
