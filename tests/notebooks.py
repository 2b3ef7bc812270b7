"""Makes notebooks/*.ipynb from the .py beside them: `python -m tests.notebooks`.

With `pictures`, `python -m tests.notebooks pictures`, it also runs them and draws
docs/img/notebook-*.png: needs `.[dev]`, `pip install nbconvert playwright`, and Chromium.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import jupytext

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "notebooks").glob("*.py"))
_METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def make(source: Path) -> Any:
    """The notebook of a percent source, without outputs, the same each time."""
    notebook = jupytext.read(source)
    notebook.metadata = _METADATA
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{number}", {}
    return notebook


def to_json(source: Path) -> str:
    """The content of the .ipynb of a source."""
    import nbformat

    return nbformat.writes(make(source)) + "\n"


def run(source: Path, folder: Path, timeout_s: int = 1200) -> Any:
    """The notebook with its outputs, from a new kernel that works in a folder.

    Raises:
      nbclient.exceptions.CellExecutionError: a cell failed.
    """
    import nbclient

    notebook = make(source)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    client = nbclient.NotebookClient(
        notebook, timeout=timeout_s, kernel_name="python3", resources={"metadata": {"path": folder}}
    )
    client.execute(env=environment)
    return notebook


def picture(notebook: Any, file: Path) -> None:
    """Draws the cell that trains, with its output, as Chromium shows it."""
    import nbconvert
    from playwright.sync_api import sync_playwright

    exporter = nbconvert.HTMLExporter(theme="light")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        html = Path(folder) / "notebook.html"
        content = exporter.from_notebook_node(notebook)[0].replace(sys.executable, "python")
        html.write_text(content, encoding="utf-8")
        chromium = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = chromium.new_page(viewport={"width": 960, "height": 900})
        page.goto(html.as_uri(), wait_until="domcontentloaded")
        page.locator(".jp-Cell", has=page.locator("svg[role=img]")).first.screenshot(path=file)
        chromium.close()


def main() -> None:
    """Writes all notebooks, and their pictures if asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pictures", nargs="?", choices=["pictures"], help="draw them, too")
    args = parser.parse_args()
    for source in SOURCES:
        source.with_suffix(".ipynb").write_text(to_json(source), encoding="utf-8")
        if args.pictures:
            with tempfile.TemporaryDirectory() as folder:
                notebook = run(source, Path(folder))
            picture(notebook, ROOT / "docs" / "img" / f"notebook-{source.stem}.png")


if __name__ == "__main__":
    main()
