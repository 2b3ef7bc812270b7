"""The fault injections, short in the normal suite and in full where asked for.

    python -m pytest -m slow tests/faults
    CHARJAX_FAULT_RESULTS=benchmarks/results python -m pytest -m slow tests/faults

The second also writes the results from which `python -m tests.faults.page` makes the table of
docs/reliability.md.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.environment import with_devices

from .__main__ import FAULTS, main, run
from .page import PAGE, RESULTS, table, with_table

ROOT = Path(__file__).parents[2]


def run_in_full(fault: str, *flags: str) -> None:
    """In a new process on one device, since two of them fork or replace signal handlers."""
    command = [sys.executable, "-m", "tests.faults", fault, *flags]
    ended = subprocess.run(command, cwd=ROOT, env=with_devices(1), capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.parametrize(
    ("fault", "n", "figure"),
    [
        ("resume", 6, "restored_at"),
        ("corrupt", 24, "fell_back_to_an_older_step"),
        ("stores", 3, "found_by_verify"),
        ("disk", 3, "refused_with_exit_4"),
        ("servers", 9, "refused_in_one_line"),
        pytest.param("inputs", 50, "texts", marks=pytest.mark.slow),
    ],
)
def test_short_faults(fault, n, figure, monkeypatch):
    monkeypatch.setattr("tests.faults.disk._can_mount", lambda: False)
    figures = run(fault, n)
    assert figures["passed"], figures
    assert figures[figure] > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "n"),
    [
        ("kill", 3), ("signals", 6), ("endings", 5), ("two-writers", 2),
        ("readers", 8), ("shapes", 40), ("caches", 10), ("sanitizers", 60),
    ],
)  # fmt: skip
def test_faults_that_take_processes_of_their_own(fault, n):
    run_in_full(fault, f"--n={n}")


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_in_full(fault):
    folder = os.environ.get("CHARJAX_FAULT_RESULTS")
    file = f"reliability_{fault.replace('-', '_')}.json"
    run_in_full(fault, *([f"--out={Path(folder).resolve() / file}"] if folder else []))


def test_a_result_may_go_into_a_new_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.faults.__main__.run", lambda *_: {"passed": True})
    file = tmp_path / "new" / "result.json"
    assert main(["cost", f"--out={file}"]) == 0
    assert json.loads(file.read_text())["figures"] == {"passed": True}


@pytest.mark.parametrize(
    ("flag", "problem"),
    [("--n=-1", "must be at least 0"), ("--out=.", "is a folder")],
)
def test_a_flag_that_cannot_be_followed_is_refused_at_once(flag, problem, capsys):
    with pytest.raises(SystemExit):
        main(["kill", flag])
    assert f"{flag}: {problem}" in capsys.readouterr().err


def test_the_page_has_the_table_of_the_results():
    page = PAGE.read_text(encoding="utf-8")
    assert with_table(page, table(RESULTS)) == page


@pytest.mark.parametrize("file", sorted(RESULTS.glob("reliability_*.json")), ids=lambda p: p.stem)
def test_every_result_names_its_command_machine_and_versions(file):
    values = json.loads(file.read_text(encoding="utf-8"))
    assert values["figures"]["passed"] is True
    assert {"date", "command", "machine", "versions"} <= values.keys()
    assert re.search(r", \d+ cores$", values["machine"])
    assert {"charjax", "jax", "orbax-checkpoint"} <= values["versions"].keys()
