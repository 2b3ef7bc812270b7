"""Writes docs/tutorials.md from the result files."""

from __future__ import annotations

import itertools
from typing import Any

from benchmarks.result_files import command, load, markdown, read
from benchmarks.tutorials.published import TUTORIALS, Tutorial

_VARIANTS = ("held_out", "better", "deep", "scheduled")
_SHOWN_CHARS = 220
_TRAIN = "python -m benchmarks.tutorials train"

_HEAD = """\
# The five tutorials

<!-- Written by `python -m benchmarks.pages` from the files in benchmarks/results/. -->

Five tutorials on character models are configs here: `charjax train --config=tutorials/grimm`. This
page compares each with the figures that its authors print ("theirs"). [A notebook](notebooks.md)
goes through TensorFlow's tutorial step by step.

Losses are nats per character. `held_out` is a variant, `tutorials/grimm:held_out`, that keeps a
tenth of the text for validation; `better` is charjax's recipe on the same text in no more steps
than the tutorial's; `scheduled`, of `grimm`, is `better` with scheduled sampling. "Real words" is
the fraction of sampled words (temperature 1) that occur in the text.
"""


def page() -> str:
    """The whole page."""
    timing = load("tutorial_timing")
    return "\n".join(
        [
            _HEAD,
            _summary(timing["tutorials"]),
            *(_section(name, timing["tutorials"][name]) for name in TUTORIALS),
            _parity(),
            f"Timed by {command(timing)} on {timing['machine']}, {timing['date']}; load average "
            f"before: {timing['load_before']:.1f}. The systems ran one after the other; a time per "
            "epoch is the median time of a step, input included, times the steps per epoch.\n",
        ]
    )


def _summary(timed: dict[str, Any]) -> str:
    rows = []
    for name, tutorial in TUTORIALS.items():
        epochs = load(f"tutorial_{name}")["epochs"]
        printed = tutorial.losses
        cells = (
            f"[`{name}`](#{name.replace('_', '-')})",
            f"{printed[-1]:.4f} ({len(printed)})" if printed else "not printed",
            f"{epochs[-1]['train_loss']:.4f} ({len(epochs)})",
            *(_best(load(f"tutorial_{name}_{variant}")) for variant in ("held_out", "better")),
            f"{timed[name]['ratio']:.2f}",
        )
        rows.append(cells)
    header = ("config", "final training loss, theirs", "ours", "best validation loss, `held_out`")
    table = markdown((*header, "`better`", "time per epoch here, ours / their framework's"), rows)
    return f"{table}\n\nIn brackets: the number of epochs.\n"


def _best(result: dict[str, Any]) -> str:
    return f"{result['best']['val_loss']:.4f} in {result['steps']:,} steps"


def _section(name: str, timed: dict[str, Any]) -> str:
    tutorial, plain = TUTORIALS[name], load(f"tutorial_{name}")
    lines = [f"## {name.replace('_', '-')}", "", f"{tutorial.title}.", "", _counts(name)]
    lines += ["", f"Differences in training: {tutorial.differences}", ""]
    lines += [*_losses(name, tutorial, plain), *_variants(name), *_timed(tutorial, timed)]
    lines += [f"Theirs, temperature {tutorial.temperature:g}:", ""]
    lines += ["```text", tutorial.sample, "```", ""]
    for temperature, text in plain["samples"].items():
        lines += [f"Ours, temperature {temperature}:", ""]
        lines += ["```text", text[:_SHOWN_CHARS], "```", ""]
    return "\n".join(lines)


def _counts(name: str) -> str:
    tutorial, info = TUTORIALS[name], load("tutorial_counts")["tutorials"][name]
    rows = []
    for field in ("parameters", "vocab_size", "windows"):
        theirs = getattr(tutorial, field)
        title = field.replace("vocab_size", "vocabulary size")
        rows.append((title, f"{theirs:,}" if theirs else "not printed", f"{info[field]:,}"))
    return markdown(("", "theirs", "ours"), rows)


def _losses(name: str, tutorial: Tutorial, plain: dict[str, Any]) -> list[str]:
    rows = []
    measured = [row["train_loss"] for row in plain["epochs"]]
    both = itertools.zip_longest(tutorial.losses, measured)
    for epoch, (theirs, ours) in enumerate(both, start=1):
        difference = f"{100 * (ours / theirs - 1):+.1f} %" if ours and theirs else ""
        shown = ("" if x is None else f"{x:.4f}" for x in (theirs, ours))
        rows.append((f"{epoch}", *shown, difference))
    notes = [f"Measured by {command(plain)} on {plain['machine']}, {plain['date']}."]
    if plain["run"]["model"]["dtype"] != "float32":
        notes.append(f"Matmuls ran in {plain['run']['model']['dtype']}.")
    if plain["run"]["train"]["max_epochs"] < len(tutorial.losses):
        notes.append(f"Later epochs are not measured: `{_TRAIN} {name}`.")
    if plain["notice"]:
        notes.append(f"{plain['notice']}.")
    table = markdown(("epoch", "theirs", "ours", "difference"), rows)
    return [table, "", " ".join(notes), ""]


def _variants(name: str) -> list[str]:
    rows = []
    for variant in _VARIANTS:
        if result := read(f"tutorial_{name}_{variant}"):
            best = result["best"]
            numbers = f"{best['val_loss']:.4f}", f"{best['step']:,}", f"{result['steps']:,}"
            words = f"{100 * result['real_words']:.1f} %"
            rows.append((f"`{variant}`", *numbers, words, " ".join(result["overrides"])))
    header = ("variant", "best validation loss", "at step", "steps", "real words", "overrides")
    return [markdown(header, rows), ""]


def _timed(tutorial: Tutorial, timed: dict[str, Any]) -> list[str]:
    author = f"{tutorial.epoch_s:g} s on its author's GPU; " if tutorial.epoch_s else ""
    versions = ", ".join(f"{k} {v}" for k, v in timed["theirs"]["versions"].items())
    lines = [
        f"Seconds per epoch: {author}here {timed['epoch']['ours_s']:.1f}, and "
        f"{timed['epoch']['theirs_s']:.1f} with {versions}: a ratio of {timed['ratio']:.2f}.",
        f"Parameters, counted by that framework: {timed['theirs']['parameters']:,}.",
    ]
    return [" ".join(lines), ""]


def _parity() -> str:
    """Training from the same weights on the same batches as Keras."""
    result = load("tutorial_parity")
    means = result["mean_loss_of_the_last_82_steps"]
    peer = f"Keras {result['peer']['keras']} on {result['peer']['backend']}"
    return (
        "## Equality with Keras\n\n"
        f"`grimm` from the same weights over the same {result['steps']} batches, charjax against "
        f"{peer}. If the embedding is a matmul with one-hot rows there, the losses of all steps "
        "agree to a relative "
        f"{result['largest_relative_difference_to_one_hot']:.1e}. With Keras' own `Embedding` "
        "layer, whose gradient is sparse, that version of Keras learns faster: the mean loss of "
        f"the second epoch's steps is {means['keras']:.3f} instead of {means['keras_one_hot']:.3f} "
        f"(charjax {means['charjax']:.3f}). The losses that the tutorials print, from older "
        f"versions of Keras, agree with charjax. Measured by {command(result)} on "
        f"{result['machine']}, {result['date']}.\n"
    )
