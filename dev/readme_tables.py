"""Keeps the generated tables of README true: prints what is out of date, or with --write puts it right.

A table stands between `<!-- table: NAME -->` and `<!-- end -->`, NAME being one of `esper list`'s.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from esper.scripts.columns import markdown
from esper.scripts.shelves import SHELVES

README = Path(__file__).parent.parent / "README.md"
_TABLE = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def renewed(text: str) -> str:
    """The text with every table made anew from the code."""
    return _TABLE.sub(lambda found: f"{found[1]}{markdown(SHELVES[found[2]]())}\n{found[3]}", text)


def main() -> int:
    """0 if README is true, or was made so."""
    text = README.read_text()
    fresh = renewed(text)
    if "--write" in sys.argv[1:]:
        README.write_text(fresh)
        return 0
    if fresh != text:
        print("README.md: generated tables are out of date; run make docs")
    return int(fresh != text)


if __name__ == "__main__":
    sys.exit(main())
