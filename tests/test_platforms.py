"""Training, resuming, sampling and scoring as on a system with neither fcntl nor POSIX signals."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# What Windows lacks is taken away after the libraries are imported, which may use it here.
PROGRAM = r"""
import fcntl, importlib, os, signal, sys, types
from pathlib import Path

import flax.linen, jax, matplotlib.pyplot, optax, orbax.checkpoint

held = fcntl.flock

def locking(descriptor, mode, size):
    assert (mode, size) == (2, 1) and os.lseek(descriptor, 0, os.SEEK_CUR) == 2**30
    try:
        held(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise PermissionError(13, "Permission denied") from None

sys.modules["msvcrt"] = types.SimpleNamespace(LK_NBLCK=2, locking=locking)
sys.modules["fcntl"] = sys.modules["pwd"] = None
for name in ("pread", "pwrite", "sysconf", "getuid", "O_NOFOLLOW", "O_DIRECTORY"):
    delattr(os, name)
for name in ("SIGHUP", "SIGUSR1", "SIGXCPU"):
    delattr(signal, name)
os.environ["CC"] = "no-such-compiler"

from charjax.cli.main import main
from charjax.errors import HostError
from charjax.model.recurrence.c import build
from charjax.runtime import dtypes, files
from charjax.workdir import Workdir

dtypes._CPU_INFO = Path("/no/such/file")
build.load.cache_clear()
files._readers_block = lambda: True

workdir, config = sys.argv[1:]

def charjax(command, *arguments, exit_code=0):
    assert main([command, f"--workdir={workdir}", *arguments]) == exit_code, (command, arguments)

def train(steps, **options):
    charjax("train", f"--config={config}", f"--config.train.max_steps={steps}", **options)

train(10)
with Workdir(Path(workdir)).lock():
    train(20, exit_code=4)
    charjax("info")
train(20)
charjax("sample", "--num_chars=8", "--prompt=\u00e4")
charjax("score", f"--file={workdir}/text \\ \u00e4.txt")
charjax("verify")
"""

CONFIG = """
from charjax.config import *

def get_config():
    return to_config_dict(Config(
        data=DataConfig(path={path!r}, batch_size=4, seq_len=8),
        model=ModelConfig(cell="gru", hidden=8),
        train=TrainConfig(max_steps=10, eval_every=0, log_every=10, steps_per_dispatch=1),
        sample=SampleConfig(num_chars=4, temperatures=(0.5,)),
    ))
"""


@pytest.fixture
def ended(tmp_path) -> subprocess.CompletedProcess[str]:
    workdir = tmp_path / "a run with ümlauts"
    workdir.mkdir()
    text = workdir / "text \\ ä.txt"
    text.write_text("Käse und Brot, 3 € alle Tage.\n" * 200, encoding="utf-8")
    config = tmp_path / "my cönfig.py"
    config.write_text(CONFIG.format(path=str(text)), encoding="utf-8")
    environment = os.environ | {
        "PYTHONIOENCODING": "cp1252",
        "PYTHONPATH": str(ROOT),
        "PYTHONWARNDEFAULTENCODING": "1",
        "PYTHONWARNINGS": "default::EncodingWarning",
    }
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, str(workdir), str(config)],
        capture_output=True, encoding="cp1252", env=environment, timeout=300, check=False,
    )  # fmt: skip


def test_a_run_needs_neither_fcntl_nor_posix_signals_nor_a_compiler(ended):
    assert ended.returncode == 0, ended.stderr
    assert "recurrence: xla (c refuses: no C compiler" in ended.stdout
    assert "resuming" in ended.stdout
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith("charjax: ")]
    assert "in use by process" in line
    assert "step 20" in ended.stdout
    # Of a file that would be opened in the encoding of the system.
    warnings = [line for line in ended.stderr.splitlines() if "EncodingWarning" in line]
    assert [line for line in warnings if line.startswith(f"{ROOT}{os.sep}charjax")] == []
