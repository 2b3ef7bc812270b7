"""Fills the tables of docs/scaling.md and docs/quality.md from the result files.

python -m benchmarks.tables
"""

from __future__ import annotations

import argparse
import re

from benchmarks.common import ROOT
from benchmarks.result_files import table

PAGES = (ROOT / "docs" / "scaling.md", ROOT / "docs" / "quality.md")


def with_tables(page: str) -> str:
    """The page with the table of `results/NAME.json` between `<!-- NAME -->` and its end marker."""
    return re.sub(
        r"(<!-- (\w+) -->\n).*?(<!-- /\2 -->)",
        lambda match: match[1] + table(match[2]) + match[3],
        page,
        flags=re.DOTALL,
    )


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    for path in PAGES:
        path.write_text(with_tables(path.read_text(encoding="utf-8")), encoding="utf-8")
