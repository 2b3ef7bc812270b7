"""Identifiers of charjax use the field's words: none of the private ones of its first versions."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "charjax"
SOURCES = sorted(path for path in PACKAGE.rglob("*") if path.suffix in (".py", ".pyi", ".c", ".h"))

# Word: what to say instead. Words with a blank are parts of a name such as `whole_numbers`.
BANNED = {
    "lane": "sequence, batch row; the mesh axis is `data`",
    "lanes": "sequences, batch rows",
    "lie": "layout",
    "lies": "layout",
    "share": "input gates (igates), hidden gates (hgates)",
    "shares": "input gates (igates), hidden gates (hgates)",
    "begun": "saved, resumed_from, initial_carry",
    "narrow": "bf16",
    "whole numbers": "quantized, int8",
    "settle": "resolve",
    "own": "reset_after, d_candidate",
    "fresh": "reset",
}
# Where a lane is the hardware's: SIMD registers in C, tiles of a GPU in Pallas.
HARDWARE_LANES = ("model/recurrence/c/src/", "model/recurrence/pallas_hopper/")


def words_of(identifier: str) -> str:
    """The words of a snake_case or CamelCase identifier, in lower case, a blank around each."""
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+", identifier)
    return f" {' '.join(words).lower()} "


def python_identifiers(source: str) -> Iterator[str]:
    """Every name in the source: variables, attributes, parameters, functions, classes, imports."""
    for node in ast.walk(ast.parse(source)):
        for field in ("id", "attr", "arg", "name", "asname", "rest"):
            if isinstance(name := getattr(node, field, None), str):
                yield name
        if isinstance(node, ast.ImportFrom):
            yield node.module or ""


def c_identifiers(source: str) -> Iterator[str]:
    """Every name in the source, without comments and string literals."""
    code = re.sub(r"/\*.*?\*/|//[^\n]*|\"(\\.|[^\"\\])*\"", " ", source, flags=re.DOTALL)
    yield from re.findall(r"[A-Za-z_]\w*", code)


def banned_words(identifier: str) -> list[str]:
    return [word for word in BANNED if f" {word} " in words_of(identifier)]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_identifiers_use_the_words_of_the_field(path):
    source, name = path.read_text("utf-8"), path.relative_to(PACKAGE).as_posix()
    identifiers = (
        c_identifiers(source) if path.suffix in (".c", ".h") else python_identifiers(source)
    )
    found = {i: banned_words(i) for i in {path.stem, *identifiers} if banned_words(i)}
    if name.startswith(HARDWARE_LANES):
        found = {i: words for i, words in found.items() if set(words) - {"lane", "lanes"}}
    remedies = [f"{i} (say {BANNED[words[0]]})" for i, words in sorted(found.items())]
    assert not remedies, f"charjax/{name}: {'; '.join(remedies)}"


@pytest.mark.parametrize(
    ("identifier", "words"),
    [
        ("lane_keys", ["lane"]),
        ("FreshCarry", ["fresh"]),
        ("_WholeNumbers", ["whole numbers"]),
        ("OWN", ["own"]),
        ("shared_memory", []),
        ("unknown", []),
        ("whole_batch", []),
    ],
)
def test_banned_words_are_whole_words_of_an_identifier(identifier, words):
    assert banned_words(identifier) == words


def test_identifiers_are_found_in_both_languages():
    python = "from a.b import c as d\ndef f(x, *, y=1):\n    z.w = [f'{v}' for v in x]\n"
    assert {"a.b", "c", "d", "f", "x", "y", "z", "w", "v"} <= set(python_identifiers(python))
    c = '/* lane */ int f(int a) { return b["lie"]; } // own\n#define D 1\n'
    assert {"f", "a", "b", "D"} <= set(c_identifiers(c))
    assert not {"lane", "lie", "own"} & set(c_identifiers(c))
