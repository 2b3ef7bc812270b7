"""Writes the table of docs/reliability.md from the result files: `python -m tests.faults.page`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

_ROOT = Path(__file__).parents[2]
PAGE, RESULTS = _ROOT / "docs" / "reliability.md", _ROOT / "benchmarks" / "results"
_BEGIN = "<!-- begin: python -m tests.faults.page -->"
_END = "<!-- end -->"
_Figures: TypeAlias = dict[str, Any]

# fault -> (what was injected, the result)
_COLUMNS: dict[str, tuple[Callable[[_Figures], str], Callable[[_Figures], str]]] = {
    "kill": (
        lambda f: f"{f['kills']} kills, {f['inside_a_save']} of them inside a save",
        lambda f: (
            f"{f['unrecoverable']} unrecoverable; at most {f['most_steps_lost']} steps lost, with "
            f"a checkpoint every {f['checkpoint_every_steps']} steps; losses in hexadecimal and "
            f"checkpoint digests equal after {f['folders_equal_after_the_kill']}; "
            f"{f['runs_finished_equal']} of {f['runs_finished']} finished runs equal"
        ),
    ),
    "resume": (
        lambda f: (
            f"a restore at {f['restored_at']} steps of a run of {f['steps']}, "
            f"{f['resumes_in_a_row']} resumptions in a row"
        ),
        lambda f: f"{f['differences']} and {f['differences_in_a_row']} differences",
    ),
    "signals": (
        lambda f: (
            f"{f['signals']} signals, half SIGTERM, half SIGINT: "
            f"{f['by_phase']['loading']} while loading, {f['by_phase']['compiling']} while "
            f"compiling, {f['by_phase']['working']} at work"
        ),
        lambda f: (
            f"right exit code: {sum(f['right_exit_code'].values())}; finished steps lost: "
            f"{f['finished_steps_lost']}; slowest {f['most_seconds_to_exit']} s; after a second "
            f"SIGINT {f['second_interrupt_most_seconds']} s"
        ),
    ),
    "endings": (
        lambda f: (
            f"{f['endings']} endings: " + ", ".join(f"{n} {w}" for w, n in f["by_way"].items())
        ),
        lambda f: f"{f['steps_lost']} steps lost; slowest {f['most_seconds_to_exit']} s",
    ),
    "corrupt": (
        lambda f: (
            f"{f['corruptions']} corruptions of {f['files_that_were_hit']} files, "
            f"{f['resumed_to_the_end']} of them also resumed"
        ),
        lambda f: (
            f"{f['silent']} silent, {f['restarts_from_zero']} restarts from zero, "
            f"{f['no_fallback_though_a_good_step_was_there']} that ignored an intact older step; "
            f"{f['resumed_equal']} resumed equal, or refused without deleting anything"
        ),
    ),
    "stores": (
        lambda f: (
            f"{f['stores']} packed texts with a flipped bit, a truncated or a deleted file among "
            f"their {f['files']}"
        ),
        lambda f: (
            f"found by `verify`: {f['found_by_verify']}; training ended with exit 3: "
            f"{f['training_ended_with_exit_3']}, refused without `store.json`: "
            f"{f['store_json_deleted_and_refused']}, did not read the damage: "
            f"{f['damage_that_training_does_not_read']}; steps on damaged text: "
            f"{f['steps_on_damaged_text']}"
        ),
    ),
    "disk": (
        lambda f: f"a {f['how']} at {f['positions']} positions",
        lambda f: (
            f"exit 4: {f['refused_with_exit_4']}; older checkpoints intact: "
            f"{f['older_checkpoints_intact']}; resumed equal once there was space: "
            f"{f['resumed_equal_once_there_was_room']}"
        ),
    ),
    "servers": (
        lambda f: f"{len(f['servers'])} misbehaving servers on loopback",
        lambda f: (
            f"refused in one line: {f['refused_in_one_line']}; bad files kept: "
            f"{f['bad_files_kept']}; slowest {f['slowest_s']} s"
        ),
    ),
    "two_writers": (
        lambda f: f"{f['double_starts']} double starts",
        lambda f: (
            f"exactly one ran: {f['exactly_one_ran']}; slowest refusal {f['slowest_refusal_s']} s"
        ),
    ),
    "inputs": (
        lambda f: (
            f"{f['texts']} texts, {f['rows_of_arguments']} arguments, "
            f"{f['kinds_of_text']} kinds of text, one line of 50 MB"
        ),
        lambda f: (
            f"{f['tracebacks']} tracebacks; {len(f['problems'])} other faults; "
            f"peak memory {f['line_of_50_MB_peak_bytes_a_character']} bytes per character"
        ),
    ),
    "readers": (
        lambda f: (
            f"{f['readings']} readings, {f['at_a_time']} at a time, beside a run that saves every "
            f"{f['checkpoint_every_steps']} steps ({f['saves_meanwhile']} saves meanwhile)"
        ),
        lambda f: f"{f['wrong_verdicts']} wrong verdicts",
    ),
    "shapes": (
        lambda f: f"{f['shapes']} shapes of records and of metadata of arrays",
        lambda f: (
            f"{f['tracebacks']} tracebacks; refused in one line: {f['refused_with_exit_3']}, "
            f"harmless: {f['harmless']}; {f['memory_ratio']} times the memory of a healthy run"
        ),
    ),
    "caches": (
        lambda f: (
            f"{f['caches']} damaged caches of compiled kernels, {f['with_the_real_compiler']} "
            "with the real compiler"
        ),
        lambda f: f"{f['crashes']} crashes; compiled again: {f['compiled_again']}",
    ),
    "sanitizers": (
        lambda f: (
            f"the C kernels in {len(f['programs'])} programs with sanitizers, of addresses and "
            f"undefined behaviour or of threads; {f['shapes']} odd shapes in each"
        ),
        lambda f: (
            f"{len(f['problems'])} findings in {f['calls']} calls; planted mistakes found: "
            f"{f['planted_mistakes_found']}"
        ),
    ),
    "cost": (
        lambda f: (
            f"`{f['config']}`: {f['checkpoint_every_steps']} steps of {f['step_ms']} ms "
            "between checkpoints"
        ),
        lambda f: (
            f"digests {f['digests_ms']} ms, checks {f['verification_of_a_checkpoint_ms']} ms: "
            f"{f['digests_and_verification_percent']} % of training time; "
            f"the whole save {f['whole_save_percent']} %"
        ),
    ),
}


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
        row = (f"`{name.replace('_', '-')}`", injected(figures), result(figures), passed, where)
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def with_table(page: str, new: str) -> str:
    """The page with its table replaced."""
    head, _, rest = page.partition(_BEGIN)
    _, _, tail = rest.partition(_END)
    return f"{head}{_BEGIN}\n{new}\n{_END}{tail}"


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(with_table(page, table(RESULTS)), encoding="utf-8")
