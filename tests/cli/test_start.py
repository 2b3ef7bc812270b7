"""A command imports what it needs: quick starts, held by the modules that are loaded."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.inference.test_load import save

PROGRAM = """
import sys
from charjax.cli.main import main

def check(arguments, *absent):
    assert main(arguments) == 0, arguments
    loaded = sorted({name.partition(".")[0] for name in sys.modules}.intersection(absent))
    assert not loaded, f"{arguments[0]} loads {loaded}"

workdir = "--workdir=" + sys.argv[1]
heavy = ("flax", "optax", "orbax", "matplotlib", "rich", "scipy")
check(["verify", workdir], "jax", *heavy)
check(["info", workdir], "jax", *heavy)
check(["sample", workdir, "--num_chars=1"], *heavy)
"""


def test_commands_load_only_what_they_need(tmp_path):
    save(tmp_path)
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    # `verify` would compare the text that the run names with one of that name on this machine.
    nowhere = dict.fromkeys(("CHARJAX_DATA_DIR", "XDG_CACHE_HOME"), str(tmp_path / "nowhere"))
    environment = os.environ | nowhere
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert ended.returncode == 0, ended.stderr
