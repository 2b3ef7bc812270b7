"""Identifiers, comments, docstrings, messages and pages use the words of the field."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "charjax"
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
# The same for prose: regular expressions of terms that have no ordinary meaning there.
BANNED_PROSE = {
    r"lanes?": "sequence, batch row; the mesh axis is `data`",
    r"(as|where) (they|it) lies?": "layout",
    r"(the )?(input|state|gate)s?'s? shares?|two_shares": "input gates, hidden gates",
    r"begun": "saved, resumed from, initial carry",
    r"narrow(?! layer)": "bf16",  # a layer of few units is narrow
    r"whole numbers?": "quantized, int8, integers",
    r"settles?|settled|settling": "resolve",
    r"fresh (carry|carries|state|row|sequence)s?": "reset",
    r"(the )?way back|retreats?": "backward pass",
    r"stacks? of residuals": "residual buffer",
    r"matrix products?|products? of sampling": "matmul",
    r"laws? [0-9]": "invariant",
}
PROSE = [
    path
    for folder in ("charjax", "configs", "examples", "benchmarks", "tests", "docs", "notebooks")
    for path in sorted((ROOT / folder).rglob("*"))
    if path.suffix in (".py", ".pyi", ".c", ".h", ".md")
    # The one replaces the words of older result files, the other has them to ban them.
    and path.name not in ("result_files.py", "test_words.py")
] + [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "launch.py")]
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


def prose(source: str, suffix: str) -> Iterator[str]:
    """The comments and strings of a program, docstrings included; the whole of a page."""
    if suffix == ".md":
        yield source
    elif suffix in (".c", ".h"):
        yield from re.findall(r"/\*.*?\*/|//[^\n]*", source, flags=re.DOTALL)
    else:
        tokens = tokenize.generate_tokens(io.StringIO(source).readline)
        yield from (token.string for token in tokens if token.type == tokenize.COMMENT)
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def banned_terms(text: str) -> dict[str, str]:
    """{term: what to say instead} of the banned terms in a text, however its lines are broken."""
    text = re.sub(r"[\s*#]+", " ", text)
    return {
        found[0]: remedy
        for term, remedy in BANNED_PROSE.items()
        for found in re.finditer(rf"\b({term})\b", text, flags=re.IGNORECASE)
    }


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


@pytest.mark.parametrize("path", PROSE, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_prose_uses_the_words_of_the_field(path):
    name = path.relative_to(ROOT).as_posix()
    texts = prose(path.read_text("utf-8"), path.suffix)
    found = {term: remedy for text in texts for term, remedy in banned_terms(text).items()}
    if name.startswith(tuple(f"charjax/{folder}" for folder in HARDWARE_LANES)):
        found = {term: remedy for term, remedy in found.items() if "lane" not in term.lower()}
    remedies = [f"{term} (say {remedy})" for term, remedy in sorted(found.items())]
    assert not remedies, f"{name}: {'; '.join(remedies)}"


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("Settles the dtype.", ["Settles"]),
        ("the gradients on the way\n * back", ["the way back"]),
        ("as whole\n    numbers", ["whole numbers"]),
        ("see law 3", ["law 3"]),
        ("in a narrow layer, and the narrow copy", ["narrow"]),
        ("a fresh environment in which processes share a whole batch", []),
        ("the number of SIMD planes", []),
    ],
)
def test_banned_terms_are_found_across_lines_and_leave_ordinary_english(text, terms):
    assert list(banned_terms(text)) == terms


def test_prose_is_comments_and_strings():
    python = 'def f(x):\n    """Adds."""\n    return x + lane, f"a {x} b"  # why\n'
    assert {"Adds.", "a ", " b", "# why"} == set(prose(python, ".py"))
    assert list(prose("int lane; /* how\n * far */ // so\n", ".c")) == [
        "/* how\n * far */",
        "// so",
    ]
