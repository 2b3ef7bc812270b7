"""Writes the figures of README.md and of pages of docs/ from the result files.

python -m benchmarks.pages
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable

from benchmarks.common import ROOT
from benchmarks.performance import page as performance
from benchmarks.performance import readme
from benchmarks.result_files import table
from benchmarks.tutorials import page as tutorials


def with_tables(page: str) -> str:
    """The page with the table of `results/NAME.json` between `<!-- NAME -->` and its end marker."""
    return re.sub(
        r"(<!-- (\w+) -->\n).*?(<!-- /\2 -->)",
        lambda match: match[1] + table(match[2]) + match[3],
        page,
        flags=re.DOTALL,
    )


# Page -> its text with the figures of today, from its text.
PAGES: dict[str, Callable[[str], str]] = {
    "README.md": readme.with_block,
    "docs/performance.md": lambda _: performance.page(performance.load()),
    "docs/tutorials.md": lambda _: tutorials.page(),
    "docs/quality.md": with_tables,
    "docs/scaling.md": with_tables,
}


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    for name, fill in PAGES.items():
        path = ROOT / name
        path.write_text(fill(path.read_text(encoding="utf-8")), encoding="utf-8")
    performance.plot_sweeps(performance.load(), ROOT / "docs" / "img")
