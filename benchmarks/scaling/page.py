"""Fills the tables of docs/scaling.md from the result files.

python -m benchmarks.scaling.page
"""

from __future__ import annotations

import re

from benchmarks.common import ROOT
from benchmarks.result_files import table

PAGE = ROOT / "docs" / "scaling.md"


def with_tables(page: str) -> str:
    """The page with the table of `results/NAME.json` between `<!-- NAME -->` and its end marker."""
    return re.sub(
        r"(<!-- (\w+) -->\n).*?(<!-- /\2 -->)",
        lambda match: match[1] + table(match[2]) + match[3],
        page,
        flags=re.DOTALL,
    )


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
