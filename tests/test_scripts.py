"""The scripts of tests/, and the example that takes flags, refuse arguments that they lack."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
INTERNAL = {"endings", "readers", "shapes"}  # other modules of tests/ alone start these
SCRIPTS = [
    TESTS.parent / "examples" / "weak_scaling.py",
    *(
        path
        for path in sorted(TESTS.rglob("*.py"))
        if '\nif __name__ == "__main__":' in path.read_text(encoding="utf-8")
        and path.stem not in INTERNAL
    ),
]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_says_how_it_is_called_if_an_argument_is_wrong(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(script), "--no_such_flag"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script), run_name="__main__")
    said = capsys.readouterr().err + str(ended.value.code)
    assert "usage:" in said or f"python examples/{script.name}" in said
