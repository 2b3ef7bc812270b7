"""The repository's folders, and that CI runs what README and pyproject.toml promise."""

from __future__ import annotations

import functools
import pkgutil
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROSE = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("charjax/**/*.py")])
TESTS = sorted((ROOT / "tests").glob("**/*.py"))


def read(*parts: str) -> str:
    return ROOT.joinpath(*parts).read_text(encoding="utf-8")


@pytest.mark.parametrize("file", TESTS, ids=lambda p: p.relative_to(ROOT / "tests").as_posix())
def test_tests_import_nothing_of_benchmarks(file):
    source = file.read_text(encoding="utf-8")
    assert not re.search(r"^\s*(from|import) benchmarks\b", source, re.M)


def test_the_workflow_runs_the_whole_check_on_every_python_that_is_promised():
    workflow = read(".github", "workflows", "ci.yml")
    project = tomllib.loads(read("pyproject.toml"))["project"]
    versions = re.findall(r"Python :: (3\.\d+)", "\n".join(project["classifiers"]))
    (matrix,) = re.findall(r"python: \[(.*)\]", workflow)
    assert re.findall(r"3\.\d+", matrix) == versions
    assert project["requires-python"] == f">={versions[0]}"
    assert "- run: .ci/run\n" in workflow


@pytest.mark.parametrize("name", ["ci.yml", "publish.yml"])
def test_the_workflow_pins_actions_and_has_no_more_rights_than_it_needs(name):
    workflow = read(".github", "workflows", name)
    uses = re.findall(r"uses: (.*)", workflow)
    assert uses
    assert all(re.fullmatch(r"[\w/-]+@[0-9a-f]{40} # v[\d.]+", action) for action in uses)
    assert re.search(r"^permissions:(\n  contents: read| \{\})$", workflow, re.M)
    assert "secrets." not in workflow
    assert workflow.count("persist-credentials: false") == workflow.count("actions/checkout@")


def test_contributing_names_every_file_of_slow_tests():
    table = read("CONTRIBUTING.md").partition("\nSlow tests")[2].partition("\n\nOther checks")[0]
    listed = [ROOT / path for path in re.findall(r"`((?:tests|benchmarks)\b[\w/.]*)`", table)]
    for file in [*TESTS, *(ROOT / "benchmarks").glob("test_*.py")]:
        if re.search(r"\bmark\.slow\b", file.read_text(encoding="utf-8")):
            assert {file, *file.parents}.intersection(listed), file


def test_readme_has_one_test_command():
    commands = re.findall(r"^python3? -m venv .* -m pytest$", read("README.md"), re.M)
    assert len(commands) == 1


@functools.cache
def is_there(name: str) -> bool:
    try:
        pkgutil.resolve_name(name)
    except (AttributeError, ModuleNotFoundError):
        return False
    return True


@pytest.mark.parametrize("file", PROSE, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_the_dotted_names_in_pages_and_docstrings_exist(file):
    names = re.findall(r"`(charjax(?:\.\w+)+)", file.read_text(encoding="utf-8"))
    assert [name for name in names if not is_there(name)] == []
