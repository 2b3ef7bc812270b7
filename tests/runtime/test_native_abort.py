"""The output of Python goes on where it went, while that of native code goes to a file."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import os, sys
from pathlib import Path
from charjax.runtime.native_abort import AbortHandler
sys.stdout.reconfigure(errors="backslashreplace")
AbortHandler("stopped", 4, native_log=Path("log"))
print("\\u65e5")
os.write(1, b"native")
os.abort()
"""


def test_an_abort_is_one_line_and_text_that_the_terminal_lacks_is_escaped(tmp_path):
    environment = os.environ | {
        "PYTHONIOENCODING": "latin-1",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (4, b"\\u65e5\n")
    assert done.stderr == b"charjax: stopped\n"
    assert (tmp_path / "log").read_bytes() == b"native"
