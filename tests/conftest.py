"""One thread per process: small hosts are slower with two, and many times slower when the machine is busy."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
