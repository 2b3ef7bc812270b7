"""Writes the table of docs/reliability.md from the result files: `python -m tests.faults.page`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from tests.environment import replaced_between

_ROOT = Path(__file__).parents[2]
PAGE, RESULTS = _ROOT / "docs" / "reliability.md", _ROOT / "benchmarks" / "results"
_BEGIN = "<!-- begin: python -m tests.faults.page -->"
_END = "<!-- end -->"

# fault -> (what was injected, the result); see `_fill`
_COLUMNS = {
    "kill": (
        "{kills} kills, {inside_a_save} of them inside a save",
        "{unrecoverable} unrecoverable; at most {most_steps_lost} steps lost, with a checkpoint "
        "every {checkpoint_every_steps} steps; losses in hexadecimal and checkpoint digests equal "
        "after {folders_equal_after_the_kill}; {runs_finished_equal} of {runs_finished} finished "
        "runs equal",
    ),
    "resume": (
        "a restore at {restored_at} steps of a run of {steps}, {resumes_in_a_row} resumptions in "
        "a row",
        "{differences} and {differences_in_a_row} differences",
    ),
    "signals": (
        "{signals} signals, half SIGTERM, half SIGINT: {by_phase[loading]} while loading, "
        "{by_phase[compiling]} while compiling, {by_phase[working]} at work",
        "right exit code: {sum_of_right_exit_code}; finished steps lost: {finished_steps_lost}; "
        "slowest {most_seconds_to_exit} s; after a second SIGINT {second_interrupt_most_seconds} s",
    ),
    "endings": (
        "{endings} endings: {list_of_by_way}",
        "{steps_lost} steps lost; slowest {most_seconds_to_exit} s",
    ),
    "corrupt": (
        "{corruptions} corruptions of {files_that_were_hit} files, {resumed_to_the_end} of them "
        "also resumed",
        "{silent} silent, {restarts_from_zero} restarts from zero, "
        "{no_fallback_though_a_good_step_was_there} that ignored an intact older step; "
        "{resumed_equal} resumed equal, or refused without deleting anything",
    ),
    "stores": (
        "{stores} packed texts with a flipped bit, a truncated or a deleted file among their "
        "{files}",
        "found by `verify`: {found_by_verify}; training ended with exit 3: "
        "{training_ended_with_exit_3}, refused without `store.json`: "
        "{store_json_deleted_and_refused}, did not read the damage: "
        "{damage_that_training_does_not_read}; steps on damaged text: {steps_on_damaged_text}",
    ),
    "disk": (
        "a {how} at {positions} positions",
        "exit 4: {refused_with_exit_4}; older checkpoints intact: {older_checkpoints_intact}; "
        "resumed equal once there was space: {resumed_equal_once_there_was_room}",
    ),
    "servers": (
        "{number_of_servers} misbehaving servers on loopback",
        "refused in one line: {refused_in_one_line}; bad files kept: {bad_files_kept}; slowest "
        "{slowest_s} s",
    ),
    "two_writers": (
        "{double_starts} double starts",
        "exactly one ran: {exactly_one_ran}; slowest refusal {slowest_refusal_s} s",
    ),
    "inputs": (
        "{texts} texts, {rows_of_arguments} arguments, {kinds_of_text} kinds of text, one line of "
        "50 MB",
        "{tracebacks} tracebacks; {number_of_problems} other faults; peak memory "
        "{line_of_50_MB_peak_bytes_a_character} bytes per character",
    ),
    "readers": (
        "{readings} readings, {at_a_time} at a time, beside a run that saves every "
        "{checkpoint_every_steps} steps ({saves_meanwhile} saves meanwhile)",
        "{wrong_verdicts} wrong verdicts",
    ),
    "shapes": (
        "{shapes} shapes of records and of metadata of arrays",
        "{tracebacks} tracebacks; refused in one line: {refused_with_exit_3}, harmless: "
        "{harmless}; {memory_ratio} times the memory of a healthy run",
    ),
    "caches": (
        "{caches} damaged caches of compiled kernels, {with_the_real_compiler} with the real "
        "compiler",
        "{crashes} crashes; compiled again: {compiled_again}",
    ),
    "sanitizers": (
        "the C kernels in {number_of_programs} programs with sanitizers, of addresses and "
        "undefined behaviour or of threads; {shapes} odd shapes in each",
        "{number_of_problems} findings in {calls} calls; planted mistakes found: "
        "{planted_mistakes_found}",
    ),
    "cost": (
        "`{config}`: {checkpoint_every_steps} steps of {step_ms} ms between checkpoints",
        "digests {digests_ms} ms, checks {verification_of_a_checkpoint_ms} ms: "
        "{digests_and_verification_percent} % of training time; the whole save "
        "{whole_save_percent} %",
    ),
}


def _fill(template: str, figures: dict[str, Any]) -> str:
    """A template with the figures, and with the number, the list and the sum of those of parts."""
    more: dict[str, Any] = {}
    for name, value in figures.items():
        if isinstance(value, list | dict):
            more[f"number_of_{name}"] = len(value)
        if isinstance(value, dict):
            more[f"list_of_{name}"] = ", ".join(f"{n} {part}" for part, n in value.items())
            more[f"sum_of_{name}"] = sum(value.values())
    return template.format(**figures, **more)


def table(results: Path) -> str:
    """The Markdown table of the result files in a folder."""
    lines = ["| fault | injected | result | passed | measured |", "|---|---|---|---|---|"]
    for name, (injected, result) in _COLUMNS.items():
        file = results / f"reliability_{name}.json"
        if not file.exists():
            continue
        values = json.loads(file.read_text(encoding="utf-8"))
        figures = values["figures"]
        where = f"{values['date'][:10]}, {values['machine']}"
        passed = "yes" if figures["passed"] else "**no**"
        cells = (_fill(template, figures) for template in (injected, result))
        row = (f"`{name.replace('_', '-')}`", *cells, passed, where)
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def with_table(page: str, new: str) -> str:
    """The page with its table replaced."""
    return replaced_between(page, _BEGIN, f"\n{new}\n", _END)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(with_table(page, table(RESULTS)), encoding="utf-8")
