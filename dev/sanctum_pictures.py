"""Pictures of Sanctum's six screens for `docs/sanctum`, as SVG: `python dev/sanctum_pictures.py RUN [RUN_TO_COMPARE]`.

The first screens show the first run, the last one both beside each other; both must be below one folder.
"""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

from textual.pilot import Pilot

from esper.karn.sanctum import board, keys
from esper.karn.sanctum.app import Sanctum
from esper.karn.sanctum.watching import Watch

SIZE = (120, 40)
FOLDER = Path(__file__).parents[1] / "docs" / "sanctum"


async def pictures(folder: Path) -> None:
    root = folder.resolve().parent
    app = Sanctum(Watch(folder, root), lambda name: Watch(root / name, root))
    async with app.run_test(size=SIZE) as pilot:
        for number, screen in enumerate(board.SCREENS):
            await pilot.press(str(number + 1))
            await _settle(app, pilot)
            if number == keys.RUNS:
                await pilot.press("space", "j", "space", "c")
                await _settle(app, pilot)
            (FOLDER / f"{screen.name.lower()}.svg").write_text(_plain(app.export_screenshot(title="esper sanctum")))
    app.watch_.close()


async def _settle(app: Sanctum, pilot: Pilot[None]) -> None:
    for _ in range(4):
        await pilot.pause(0.3)
        await asyncio.to_thread(app.watch_.settle, 60.0)
    await pilot.pause()


def _plain(svg: str) -> str:
    """Without fonts that a reader would have to fetch, and without names that change from one picture to the next."""
    svg = re.sub(r"@font-face\s*{[^}]*}", "", svg)
    return re.sub(r"terminal-\d+", "t", re.sub(r"\n\s*\n+", "\n", svg))


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    asyncio.run(pictures(Path(sys.argv[1])))
