"""Writes the tables of docs/scaling.md from the result files: python -m benchmarks.tables.

Between the markers of a result's name stands one line for each of its rows.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from benchmarks.machine import RESULTS

PAGE = Path(__file__).parent.parent / "docs" / "scaling.md"


def cell(value: Any) -> str:
    """A value as the table shows it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float) and 0 < abs(value) < 1e-3:
        return f"{value:.1e}"
    return f"{value:,}" if isinstance(value, int | float) else str(value)


def table(name: str) -> str:
    """The rows of `results/<name>.json`, and where they come from, or what measures them."""
    path = RESULTS / f"{name}.json"
    if not path.exists():
        return f"Not measured; `python -m benchmarks.{' '.join(name.split('_'))}`.\n"
    result = json.loads(path.read_text(encoding="utf-8"))
    rows = result["rows"]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["| " + " | ".join(column.replace("_", " ") for column in columns) + " |"]
    lines.append("|---" * len(columns) + "|")
    lines += ["| " + " | ".join(cell(row.get(c, "")) for c in columns) + " |" for row in rows]
    source = f"`{result['command']}`, {result['machine']}, jax {result['versions']['jax']}"
    return "\n".join([*lines, "", f"({source}, {result['date']}: [{name}.json]", ""]).replace(
        f"[{name}.json]", f"[{name}.json](../benchmarks/results/{name}.json).)"
    )


def main() -> None:
    """Replaces what stands between the markers."""
    page = PAGE.read_text(encoding="utf-8")
    for name in re.findall(r"<!-- (\w+) -->", page):
        start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        before, rest = page.split(start)
        page = f"{before}{start}\n{table(name)}{end}{rest.split(end)[1]}"
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
