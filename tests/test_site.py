"""The site of the documentation builds without a warning, and has every command and option."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

from charjax.cli.main import make_parser

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_site_has_every_command_and_option(tmp_path):
    for package in ("sphinx", "myst_parser", "furo"):
        pytest.importorskip(package, reason="needs the extra docs")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", ROOT / "docs", tmp_path]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    page = (tmp_path / "made" / "commands.html").read_text("utf-8")
    (commands,) = (a for a in make_parser()._actions if isinstance(a, argparse._SubParsersAction))
    for name, parser in commands.choices.items():
        assert f"charjax {name}" in page
        assert all(option in page for action in parser._actions for option in action.option_strings)
