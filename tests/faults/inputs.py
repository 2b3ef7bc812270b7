"""Any text and any argument: an exact result, or a one-line error and the right exit code."""

from __future__ import annotations

import gzip
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from charjax.config import DataConfig
from charjax.data.corpus import load_corpus
from charjax.data.vocab import Vocab
from charjax.errors import CharjaxError
from charjax.train.loop import train
from tests.faults.trial import Trial, call, small_config, write_words
from tests.train.tiny import Recorder

_HUGE = "1" + "0" * 30
_LINE_BYTES = 50_000_000
_BYTES_A_CHARACTER = 12  # limit on the peak memory of reading a text

# (flag, value, exit code)
_SAMPLE_ROWS: tuple[tuple[str, str, int], ...] = (
    *(("--num_chars", v, 0) for v in ("0", "1", "300")),
    *(("--num_chars", v, 2) for v in ("-1", "1000000000000", _HUGE, "nan", "1.5", "")),
    *(("--temperature", v, 0) for v in ("0", "-0.0", "5e-324", "1e-30", "1", "1e30", "1e308")),
    *(("--temperature", v, 2) for v in ("-1", "nan", "inf", "-inf", "1e400", "warm")),
    *(("--top_k", v, 0) for v in ("0", "1", "1000000", _HUGE)),
    *(("--top_k", v, 2) for v in ("-1", "1.5", "nan")),
    *(("--top_p", v, 0) for v in ("1", "1e-300", "0.5")),
    *(("--top_p", v, 2) for v in ("0", "-1", "1.1", "nan", "inf")),
    *(("--num_samples", v, 0) for v in ("1", "9")),
    *(("--num_samples", v, 2) for v in ("0", "-1", _HUGE)),
    *(("--seed", v, 0) for v in ("0", "4294967295")),
    *(("--seed", v, 2) for v in ("-1", "4294967296", _HUGE)),
    *(("--prompt", v, 0) for v in ("", "the ", "the " * 20_000)),
    *(("--prompt", v, 2) for v in ("日", "the\udcff", "e\u0301", "\U0001f600", "\r\n")),
    *(("--separator", v, 2) for v in ("\udcff",)),
    *(("--checkpoint", v, 0) for v in ("best", "newest", "20")),
    *(("--checkpoint", v, 3) for v in ("0", _HUGE)),
    *(("--checkpoint", v, 2) for v in ("-1", "last", "")),
    *(("--unknown", v, 2) for v in ("", "drop")),
    ("--workdir", "nowhere", 3),
    ("--workdir", "nowhere\udcff", 2),
    ("--temprature", "1", 2),
)
_NUMBERS = ("-1", "nan", "inf", "1e400", _HUGE, "many")
_TRAIN_ROWS: tuple[tuple[str, str, int], ...] = (
    *(
        (f"--config.{field}", v, 2)
        for field in (
            "data.batch_size", "data.seq_len", "model.hidden", "model.layers", "model.embed",
            "model.dropout", "optim.learning_rate", "optim.clip_norm", "optim.ema",
            "train.max_steps", "train.checkpoint_every", "train.max_minutes", "seed",
        )
        for v in _NUMBERS
    ),
    *((f"--config.{field}", "0", 2) for field in ("data.batch_size", "data.seq_len")),
    *((f"--config.{field}", "0", 2) for field in ("model.hidden", "model.layers")),
    *((f"--config.{field}", "True", 2) for field in ("seed", "train.max_steps")),
    ("--config.data.seq_len", "1000000", 2),
    ("--config.data.batch_size", "1000000", 2),
    ("--config.data.split", "(1.0,)", 2),
    ("--config.data.split", "(nan, nan, nan)", 2),
    ("--config.sample.temperatures", "(-1.0,)", 2),
    ("--config.model.cell", "transformer", 2),
    ("--config.modle.hidden", "16", 2),
    ("--config.data.path", "nowhere.txt", 2),
    ("--config.data.path", "\udcff.txt", 2),
    ("--confg", "x", 2),
    ("--allow", "config.model.hiden", 2),
    ("--allow", "everything", 2),
)  # fmt: skip

_LETTERS = "the quick brown fox\n" * 40
# name -> (bytes of the text, exit code of a short training run on it)
_TEXT_ROWS: dict[str, tuple[bytes, int]] = {
    "empty": (b"", 2),
    "one_character": (b"a", 2),
    "shorter_than_a_window": (b"abcdefgh", 2),
    "one_symbol_only": (b"a" * 10_000, 0),
    "byte_order_mark": (("\ufeff" + _LETTERS).encode(), 0),
    "crlf": (_LETTERS.replace("\n", "\r\n").encode(), 0),
    "combining_characters": (("e\u0301 a\u0308 " * 200).encode(), 0),
    "emoji_and_joiners": (("\U0001f469\u200d\U0001f52c \U0001f1e9\U0001f1ea " * 100).encode(), 0),
    "right_to_left": (("שלום עולם " * 100).encode(), 0),
    "nul_and_controls": (b"\x00\x01\x1b[31m\x7f " * 200, 0),
    "noncharacters": (("\uffff\U0010ffff\ufffe " * 200).encode(), 0),
    "invalid_utf8": (b"abc\xff" * 500, 2),
    "cut_off_utf8": (("é" * 1000).encode()[:-1], 2),
    "encoded_surrogate": (b"abc \xed\xa0\x80 " * 200, 2),
    "utf16": (_LETTERS.encode("utf-16"), 0),
    "utf16_without_mark": (_LETTERS.encode("utf-16-le"), 2),
    "compressed": (gzip.compress(_LETTERS.encode()), 2),
}


def check_inputs(n: int, folder: Path, report: Callable[[str], None]) -> dict[str, Any]:
    """Tries n random texts and every row below; returns the figures of the page."""
    texts, faults = _round_trips(n, folder)
    report(f"{texts} texts: {len(faults)} problems")
    trial = Trial.prepare(folder)
    text = write_words(folder / "text.txt", 600)
    config = small_config(text, max_steps=20, eval_every=20, checkpoint_every=20)
    train(config, folder / "run", Recorder())
    sample = ["sample", f"--workdir={folder / 'run'}", "--num_chars=8"]
    new = ["train", f"--config={trial.config}", f"--workdir={folder / 'new'}"]
    rows = [(sample, *row) for row in _SAMPLE_ROWS] + [(new, *row) for row in _TRAIN_ROWS]
    for command, name, value, wanted in rows:
        faults += _call([*command, f"{name}={value}"], wanted)
    report(f"{len(rows)} rows of arguments: {len(faults)} problems")
    faults += _kinds_of_text(trial, folder)
    report(f"{len(_TEXT_ROWS)} kinds of text: {len(faults)} problems")
    faults += _call_with_little_memory(trial, folder)
    bytes_a_character = _peak_of_a_line(folder)
    if bytes_a_character > _BYTES_A_CHARACTER:
        faults.append(f"one line of 50 MB takes {bytes_a_character:.1f} bytes a character")
    return {
        "texts": texts,
        "rows_of_arguments": len(rows),
        "kinds_of_text": len(_TEXT_ROWS),
        "tracebacks": sum("Traceback" in fault for fault in faults),
        "line_of_50_MB_peak_bytes_a_character": round(bytes_a_character, 2),
        "problems": faults[:20],
        "passed": not faults and texts >= n,
    }


def _round_trips(n: int, folder: Path) -> tuple[int, list[str]]:
    """(number of texts, faults): each is read from a file, encoded and decoded again."""
    tried, faults = 0, []
    file = folder / "any.txt"
    any_text = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=60)

    @settings(
        max_examples=n, derandomize=True, database=None, deadline=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(
        st.one_of(
            any_text, st.text(st.sampled_from("a\r\n\ufeff\u0301\u200d\U0001f600"), min_size=1)
        ),
        st.sampled_from(["codepoint", "byte"]),
        st.sampled_from(["sorted", "appearance"]),
    )
    def try_text(text: str, unit: str, order: str) -> None:
        nonlocal tried
        tried += 1
        file.write_bytes(text.encode())
        wanted = text.removeprefix("\ufeff")
        config = DataConfig(path=str(file), unit=unit)
        try:
            corpus = load_corpus(config)
            vocab = Vocab.from_text(corpus.text, order=order, unit=unit, unk=False)
            again = Vocab.from_json(vocab.to_json())
            if again.decode(again.encode_corpus(corpus.text)) not in (wanted, text):
                faults.append(f"not exact: {text!r} with unit={unit}")
        except CharjaxError as error:
            if wanted or "empty" not in str(error):
                faults.append(f"refused: {text!r}: {error}")

    try_text()
    return tried, faults


def _kinds_of_text(trial: Trial, folder: Path) -> list[str]:
    faults = []
    for name, (data, wanted) in _TEXT_ROWS.items():
        file = folder / f"{name}.txt"
        file.write_bytes(data)
        flags = [
            f"--config={trial.config}", f"--workdir={folder / name}",
            f"--config.data.path={file}", "--config.train.max_steps=4",
        ]  # fmt: skip
        found = _call(["train", *flags], wanted)
        if not found and wanted == 0:
            found = _call(["sample", f"--workdir={folder / name}", "--num_chars=4"], 0)
        faults += [f"{name}: {fault}" for fault in found]
    return faults


def _call(arguments: list[str], wanted: int) -> list[str]:
    """Faults of a command: a wrong exit code, a traceback, or an error of several lines."""
    shown = " ".join(
        argument[:80].encode(errors="backslashreplace").decode() for argument in arguments
    )
    try:
        code, _, said = call(arguments)
    except Exception:
        return [f"{shown}: {traceback.format_exc()}"]
    if code != wanted:
        return [f"{shown}: exit {code}, not {wanted}: {said[-300:]}"]
    if code and (said.count("\n") != 1 or not said.startswith("charjax: ")):
        return [f"{shown}: not one line: {said[-300:]}"]
    return []


def _call_with_little_memory(trial: Trial, folder: Path) -> list[str]:
    """A model that needs more memory than `ulimit -v` allows must end with exit code 4."""
    flags = ["--config.model.hidden=32768", "--config.model.layers=8"]

    limited = ["bash", "-c", f'ulimit -v {12 * 2**20}; exec "$@"', "bash"]
    ended = subprocess.run(
        [*limited, *trial.command(folder / "large", *flags)],
        env=trial.environment(),
        capture_output=True,
        text=True,
    )
    last = ended.stderr.splitlines()[-1:] or [""]
    if ended.returncode == 4 and "out of memory" in last[0] and "Traceback" not in ended.stderr:
        return []
    return [f"out of memory: exit {ended.returncode}: {ended.stderr[-300:]}"]


_PEAK = """
import sys
from pathlib import Path
from charjax.config import Config, DataConfig
from charjax.data.dataset import load_dataset

def peak():
    status = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))

before = peak()
config = Config(data=DataConfig(path=sys.argv[1]))
load_dataset(config)
print(peak() - before)
"""


def _peak_of_a_line(folder: Path) -> float:
    """Peak bytes of memory for each byte of a text that is one very long line."""
    file = folder / "line.txt"
    words = b"one line without an end and "
    file.write_bytes((words * (_LINE_BYTES // len(words) + 1))[:_LINE_BYTES])
    command = [sys.executable, "-c", _PEAK, str(file)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(ended.stdout) / _LINE_BYTES
