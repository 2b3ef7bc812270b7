"""The proofs of docs/reliability.md in their short form; the long form is slow."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.reliability import disk, servers
from benchmarks.reliability.__main__ import PROOFS
from benchmarks.reliability.corrupt import prove_corrupt
from benchmarks.reliability.inputs import prove_inputs
from benchmarks.reliability.page import PAGE, RESULTS, table, with_table
from benchmarks.reliability.resume import prove_resume

ROOT = Path(__file__).parents[1]


def say(line: str) -> None:
    pass


def prove(*arguments: str) -> dict:
    command = [sys.executable, "-m", "benchmarks.reliability", *arguments, "--json"]
    environment = os.environ | {"XLA_FLAGS": ""}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return json.loads(ended.stdout)["figures"]


def test_a_run_goes_on_from_every_step_as_if_never_stopped(tmp_path):
    figures = prove_resume(12, tmp_path, say)
    assert figures["passed"], figures
    assert figures["restored_at"] == 11


def test_damage_is_found_and_an_older_step_taken(tmp_path):
    figures = prove_corrupt(24, tmp_path, say)
    assert figures["passed"], figures
    assert figures["fell_back_to_an_older_step"] > 0


def test_a_disk_that_is_full_costs_nothing_but_the_message(tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "_can_mount", lambda: False)
    figures = disk.prove_disk(3, tmp_path, say)
    assert figures["passed"], figures


def test_hasty_servers_that_lie_are_refused(tmp_path):
    figures = servers.prove_servers(9, tmp_path, say)
    assert figures["passed"], figures


@pytest.mark.slow
@pytest.mark.parametrize(("proof", "n"), [("kill", 3), ("signals", 6), ("two-writers", 2)], ids=str)
def test_processes_that_are_killed_stopped_or_doubled(proof, n):
    prove(proof, f"--n={n}")


@pytest.mark.slow
def test_any_text_and_any_argument(tmp_path):
    figures = prove_inputs(50, tmp_path, say)
    assert figures["passed"], figures


@pytest.mark.slow
@pytest.mark.parametrize("proof", PROOFS)
def test_the_long_form(proof):
    prove(proof)


def test_the_page_says_what_the_results_say():
    page = PAGE.read_text(encoding="utf-8")
    assert with_table(page, table(RESULTS)) == page


@pytest.mark.parametrize("file", sorted(RESULTS.glob("reliability_*.json")), ids=lambda p: p.stem)
def test_every_result_names_its_command_machine_and_versions(file):
    values = json.loads(file.read_text(encoding="utf-8"))
    assert values["figures"]["passed"] is True
    assert {"date", "command", "machine", "versions"} <= values.keys()
    assert re.search(r", \d+ cores$", values["machine"])
    assert {"charjax", "jax", "orbax-checkpoint"} <= values["versions"].keys()
