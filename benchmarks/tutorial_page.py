"""docs/tutorials.md from the committed result files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.machine import RESULTS
from benchmarks.tutorial_figures import TUTORIALS, Tutorial

PAGE = Path(__file__).parent.parent / "docs" / "tutorials.md"
_VARIANTS = ("held_out", "better", "deep", "scheduled")
_MORE = {("ag_news", "deep"), ("grimm", "scheduled")}
_NOT_MEASURED = "not measured"
_SHOWN_CHARS = 220

_HEAD = """\
# The five tutorials

Five tutorials that people come from, each one config here. This page is written by
`python -m benchmarks.tutorials page` from the files in `benchmarks/results/`; losses are nats per
character. Where a figure is missing, the command that measures it is given instead.

Every config has variants: `held_out` is the tutorial with a tenth of its text kept for validation,
`better` is what charjax makes of the same task in no more steps.
"""


def write() -> Path:
    """Writes the page and returns where it is."""
    timing = _result("tutorial_timing")
    parts = [_HEAD, _summary(timing)]
    counts = _result("tutorial_counts") or {"tutorials": {}}
    for name, tutorial in TUTORIALS.items():
        parts.append(_section(name, tutorial, timing, counts["tutorials"].get(name)))
    parts += [_parity(), _timing_note(timing)]
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text("\n".join(parts), encoding="utf-8")
    return PAGE


def _result(name: str) -> dict[str, Any] | None:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _summary(timing: dict[str, Any] | None) -> str:
    rows = [
        "| config | final training loss, theirs | ours | best validation, held out | better "
        "| epoch, ours over theirs |",
        "|---|---|---|---|---|---|",
    ]
    for name, tutorial in TUTORIALS.items():
        plain = _result(f"tutorial_{name}")
        ratio = (timing or {"tutorials": {}})["tutorials"].get(name, {}).get("ratio")
        cells = [
            f"[`{name}`](#{name.replace('_', '-')})",
            f"{tutorial.losses[-1]:.4f} ({len(tutorial.losses)})" if tutorial.losses else "none",
            _last_loss(plain),
            *(_best(_result(f"tutorial_{name}_{variant}")) for variant in ("held_out", "better")),
            _NOT_MEASURED if ratio is None else f"{ratio:.2f}",
        ]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join([*rows, "", "In brackets the epochs that a figure comes after.", ""])


def _last_loss(result: dict[str, Any] | None) -> str:
    if result is None:
        return _NOT_MEASURED
    epochs = result["epochs"]
    return f"{epochs[-1]['train_loss']:.4f} ({len(epochs)})"


def _best(result: dict[str, Any] | None) -> str:
    if result is None:
        return _NOT_MEASURED
    return f"{result['best']['val_loss']:.4f} in {result['steps']:,} steps"


def _section(
    name: str, tutorial: Tutorial, timing: dict[str, Any] | None, info: dict[str, Any] | None
) -> str:
    plain = _result(f"tutorial_{name}")
    lines = [f"## {name.replace('_', '-')}", "", f"{tutorial.title}.", ""]
    lines += _counts(name, tutorial, info)
    lines += ["", f"Where the paths differ: {tutorial.paths}", ""]
    lines += _losses(name, tutorial, plain)
    lines += _variants(name)
    lines += _timed(name, tutorial, timing)
    lines += _texts(tutorial, plain)
    return "\n".join(lines)


def _counts(name: str, tutorial: Tutorial, info: dict[str, Any] | None) -> list[str]:
    theirs = (tutorial.parameters, tutorial.vocab_size, tutorial.windows)
    keys = ("parameters", "vocab_size", "windows")
    command = f"`charjax info --config=configs/tutorials/{name}.py`"
    ours = [f"{info[key]:,}" for key in keys] if info else [command] * 3
    rows = ["| | theirs | ours |", "|---|---|---|"]
    for what, printed, here in zip(("parameters", "symbols", "windows"), theirs, ours, strict=True):
        rows.append(f"| {what} | {f'{printed:,}' if printed else 'not printed'} | {here} |")
    return rows


def _losses(name: str, tutorial: Tutorial, plain: dict[str, Any] | None) -> list[str]:
    if plain is None:
        command = f"python -m benchmarks.tutorials train {name}"
        return [f"Training losses: {_NOT_MEASURED}; `{command}`.", ""]
    rows = ["| epoch | theirs | ours | difference |", "|---|---|---|---|"]
    measured = {row["epoch"]: row["train_loss"] for row in plain["epochs"]}
    for epoch in range(1, max(len(tutorial.losses), len(measured)) + 1):
        their = tutorial.losses[epoch - 1] if epoch <= len(tutorial.losses) else None
        our = measured.get(epoch)
        apart = f"{100 * (our / their - 1):+.1f} %" if our and their else ""
        shown = ("" if x is None else f"{x:.4f}" for x in (their, our))
        rows.append(f"| {epoch} | {' | '.join(shown)} | {apart} |")
    said = f"Measured by `{plain['command']}` on {plain['machine']}, {plain['date']}."
    wanted = plain["run"]["train"]["max_epochs"]
    notes = [said]
    if plain["run"]["model"]["dtype"] != "float32":
        notes.append(f"Products of matrices ran in {plain['run']['model']['dtype']}.")
    if wanted < len(tutorial.losses):
        notes.append(
            f"Later epochs are not measured: `python -m benchmarks.tutorials train {name}`."
        )
    if plain["notice"]:
        notes.append(f"{plain['notice']}.")
    return [*rows, "", " ".join(notes), ""]


def _variants(name: str) -> list[str]:
    rows = [
        "| variant | best validation loss | at step | steps | real words | overrides |",
        "|---|---|---|---|---|---|",
    ]
    for variant in _VARIANTS:
        result = _result(f"tutorial_{name}_{variant}")
        if result is not None:
            best = result["best"]
            rows.append(
                f"| `{variant}` | {best['val_loss']:.4f} | {best['step']:,} | "
                f"{result['steps']:,} | {100 * result['real_words']:.1f} % | "
                f"{' '.join(result['overrides'])} |"
            )
        elif variant in ("held_out", "better") or (name, variant) in _MORE:
            command = f"python -m benchmarks.tutorials train {name} --variant={variant}"
            rows.append(f"| `{variant}` | {_NOT_MEASURED}; `{command}` | | | | |")
    note = "Real words: the share of words, written at temperature 1, that the tutorial's text has."
    return [*rows, "", note, ""]


def _timed(name: str, tutorial: Tutorial, timing: dict[str, Any] | None) -> list[str]:
    timed = (timing or {"tutorials": {}})["tutorials"].get(name)
    author = f"{tutorial.epoch_s:g} s on its author's GPU; " if tutorial.epoch_s else ""
    if timed is None:
        command = f"python -m benchmarks.tutorials timing --name={name}"
        return [f"Seconds an epoch: {author}here {_NOT_MEASURED}; `{command}`.", ""]
    versions = ", ".join(f"{k} {v}" for k, v in timed["theirs"]["versions"].items())
    said = [
        f"Seconds an epoch: {author}here {timed['epoch']['ours_s']:.1f}, and "
        f"{timed['epoch']['theirs_s']:.1f} with {versions}: a ratio of {timed['ratio']:.2f}.",
        f"Their parameters, counted there: {timed['theirs']['parameters']:,}.",
    ]
    if "generation" in timed["ours"]:
        made = timed["ours"]["generation"]
        said.append(
            f"A text of {made['chars']:,} characters takes {made['one_s']:.2f} s, five at once "
            f"{made['five_s']:.2f} s: {made['ratio']:.2f} times as long."
        )
    return [" ".join(said), ""]


def _texts(tutorial: Tutorial, plain: dict[str, Any] | None) -> list[str]:
    lines = ["Theirs:", "", "```text", tutorial.sample, "```", ""]
    for temperature, text in (plain or {"samples": {}})["samples"].items():
        lines += [
            f"Ours, temperature {temperature}:",
            "",
            "```text",
            text[:_SHOWN_CHARS],
            "```",
            "",
        ]
    return lines


def _parity() -> str:
    """How near the same path comes to Keras', and where Keras leaves it."""
    result = _result("tutorial_parity")
    if result is None:
        return f"Held against Keras: {_NOT_MEASURED}; `python -m benchmarks.tutorial_parity`.\n"
    means = result["mean_loss_of_the_last_82_steps"]
    peer = f"Keras {result['peer']['keras']} on {result['peer']['backend']}"
    return (
        "## The same path\n\n"
        f"`grimm` from the same weights over the same {result['steps']} batches, charjax against "
        f"{peer}. With the embedding written there as a product with one-hot rows, every step's "
        "loss is that of charjax to a relative "
        f"{result['largest_relative_difference_to_one_hot']:.1e}. With Keras' own `Embedding` "
        "layer, whose gradient is sparse, that version learns faster: the mean loss of the "
        f"second epoch's steps is {means['keras']:.3f} instead of {means['keras_one_hot']:.3f} "
        f"(charjax {means['charjax']:.3f}). The tutorials' own figures, from older versions, lie "
        f"with the latter. Measured by `{result['command']}` on {result['machine']}, "
        f"{result['date']}.\n"
    )


def _timing_note(timing: dict[str, Any] | None) -> str:
    if timing is None:
        return "No timing is measured yet: `python -m benchmarks.tutorials timing --all --json`.\n"
    return (
        f"Timed by `{timing['command']}` on {timing['machine']}, {timing['date']}, with a load of "
        f"{timing['load_before']:.1f} before: the median step of each system, times the steps of "
        "an epoch, data included, one system after the other.\n"
    )
