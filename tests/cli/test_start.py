"""A command imports what it needs: quick starts, held by the modules that are loaded."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

from charjax.config import DataConfig
from tests.inference.test_load import CONFIG, save

PROGRAM = """
import contextlib, sys
from charjax.__main__ import main

def check(arguments, *absent):
    with contextlib.suppress(SystemExit):  # after --help
        assert main(arguments) == 0, arguments
    loaded = sorted({name.partition(".")[0] for name in sys.modules}.intersection(absent))
    assert not loaded, f"{arguments[0]} loads {loaded}"

workdir = "--workdir=" + sys.argv[1]
heavy = ("flax", "optax", "orbax", "matplotlib", "rich", "scipy")
check(["--help"], "jax", "numpy", "ml_collections", *heavy)
check(["verify", workdir], "jax", *heavy)
check(["info", workdir], "jax", *heavy)
check(["sample", workdir, "--num_chars=1"], *heavy)
"""


def test_commands_load_only_what_they_need(tmp_path):
    # A text that `verify` cannot read again, rather than one of this machine.
    save(tmp_path, config=replace(CONFIG, data=DataConfig(path=str(tmp_path / "none.txt"))))
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
