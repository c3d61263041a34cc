"""Which torch runs the tests: below 2.10 a model that the run itself did not write is refused."""

from __future__ import annotations

import pytest
import torch

from esper.leyline.saved import SAFE_LOADER

OLD_LOADER = tuple(int(part) for part in torch.__version__.split(".")[:2]) < SAFE_LOADER
safe_loader = pytest.mark.skipif(OLD_LOADER, reason="this torch refuses models that the run did not write")
