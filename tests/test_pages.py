"""What the pages name is there: commands, flags, config fields, modules, files and headings."""

from __future__ import annotations

import importlib.util
import pkgutil
import re
import subprocess
from dataclasses import fields
from pathlib import Path

import pytest

from charjax.cli.arguments import Parser
from charjax.cli.commands import load_commands
from charjax.config import Config
from charjax.schema import field_type

ROOT = Path(__file__).parents[1]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text("utf-8")
    for path in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
}
SECTIONS = "|".join(field.name for field in fields(Config))
FOLDERS = "benchmarks|charjax|configs|docs|examples|notebooks|tests"
FILES = r"(?!\.(?:bin|c|html|js|keras|onnx|py|safetensors|weights)\b)"  # model.py is no field
any_page = pytest.mark.parametrize("page", PAGES)


def shell_lines(text: str) -> list[str]:
    """The lines of shell blocks, without comments; continued lines are joined."""
    blocks = "".join(re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S))
    return [re.sub(r"(^|\s)#.*", "", line) for line in blocks.replace("\\\n", " ").splitlines()]


def prose_of(text: str) -> str:
    return re.sub(r"^ *```.*?^ *```", "", text, flags=re.M | re.S)


def inline_code(text: str) -> list[str]:
    return [code.replace("\n", " ") for code in re.findall(r"`([^`]+)`", prose_of(text))]


def flags_of(text: str) -> list[tuple[str, list[str]]]:
    """(command of charjax, its flags) of each call of charjax or launch.py on a page."""
    calls = []
    for line in [*shell_lines(text), *inline_code(text)]:
        for words in re.split(r"[|;]|&&", line):
            if call := re.search(r"(?:^|[$/ ])(?:charjax ([a-z]+)|python launch\.py)\b", words):
                flags = re.findall(r"(?<![\w-])--[a-z_.\d]+", words[call.end() :])
                calls.append((call[1] or "train", flags))
    return calls


@pytest.fixture(scope="module")
def parsers() -> dict[str, Parser]:
    """The parser of each command of charjax."""
    modules = load_commands()
    found = {name: Parser() for name in modules}
    for name, module in modules.items():
        module.add_arguments(found[name])
    return found


def test_calls_are_found_with_their_flags():
    block = "```sh\n$ charjax pack 'a' --out=b && charjax info \\\n --workdir=c  # --no\n```\n"
    found = [("pack", ["--out"]), ("info", ["--workdir"]), ("x", ["--y"])]
    assert flags_of(f"{block}and `charjax x --y`") == found


@any_page
def test_commands_have_the_flags_that_a_page_gives_them(page, parsers):
    for command, flags in flags_of(PAGES[page]):
        for flag in flags:
            if flag.startswith("--config."):
                field_type(Config, flag.removeprefix("--config."))
            else:
                assert flag in parsers[command]._option_string_actions, command


@any_page
def test_what_a_page_gives_to_type_is_valid_in_a_shell(page):
    inline = [code for code in inline_code(PAGES[page]) if re.match("charjax |python |--", code)]
    typed = "\n".join([*shell_lines(PAGES[page]), *(f"true {code}" for code in inline)])
    subprocess.run(["sh", "-n"], input=typed, text=True, check=True)


@any_page
def test_config_fields_that_a_page_names_are_there(page):
    for code in inline_code(PAGES[page]):
        for name in re.findall(rf"(?:^|--config\.)((?:{SECTIONS}){FILES}\.[a-z_]+)\b", code):
            field_type(Config, name)


@any_page
def test_names_of_the_library_and_files_that_a_page_names_are_there(page):
    code = "\n".join([*shell_lines(PAGES[page]), *inline_code(PAGES[page])])
    for name in re.findall(r"(?<![\w.-])charjax(?:\.[A-Za-z_]+)+\b", code):
        pkgutil.resolve_name(name)
    for name in re.findall(rf"(?<![\w./-])(?:{FOLDERS})/[\w./-]*\w/?(?![\w*<])", code):
        assert (ROOT / name).exists(), name


@any_page
def test_modules_that_a_page_runs_are_there(page):
    """Or the page says what an older result's command is called now, or that it is gone."""
    for module, after in re.findall(
        r"python -m ((?:benchmarks|tests)[a-z_.]+)([^(\n]*\(?[a-z]*)", PAGES[page]
    ):
        is_of_today = importlib.util.find_spec(module.rstrip(".")) is not None
        assert is_of_today or after.endswith(("(now", "(removed")), module


def anchors(text: str) -> set[str]:
    """The names by which links lead to the headings of a page."""
    titles = re.findall(r"^#+ (.*)", prose_of(text), re.M)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@any_page
def test_links_lead_to_files_and_headings(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose_of(PAGES[page])):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, heading = target.partition("#")
        file = (ROOT / page).parent / name if name else ROOT / page
        assert file.exists(), target
        assert not heading or heading in anchors(file.read_text("utf-8")), target
