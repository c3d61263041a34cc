"""How much memory does the demo need at its peak?"""

from __future__ import annotations

import subprocess
import sys
import tempfile

from bench.measuring import Effort, Finding

BOUND_MIB = 1024.0

# A process between this one and the demo: the peak of a child counts from before its exec, so it would be ours.
BETWEEN = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(peak if sys.platform == "darwin" else peak * 1024)
"""


def answer(_effort: Effort) -> list[Finding]:
    """One process, and the same work every time: once is enough."""
    with tempfile.TemporaryDirectory() as root:
        demo = [sys.executable, "-m", "esper.scripts.main", "demo", "--quiet", "--set", f"run.root={root}"]
        told = subprocess.run([sys.executable, "-c", BETWEEN, *demo], check=True, capture_output=True, text=True)
    peak = int(told.stdout) / 2**20
    return [Finding("esper demo, largest resident size", peak, "MiB", BOUND_MIB, 0.0, {"peak_mib": [peak]})]
