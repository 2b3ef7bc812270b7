"""The repository's folders: who may import whom, and that CI runs what README says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TESTS = sorted((ROOT / "tests").glob("**/*.py"))


@pytest.mark.parametrize("file", TESTS, ids=lambda p: p.relative_to(ROOT / "tests").as_posix())
def test_tests_import_nothing_of_benchmarks(file):
    source = file.read_text(encoding="utf-8")
    assert not re.search(r"^\s*(from|import) benchmarks\b", source, re.M)
