"""A packed text gives the losses of memory digit for digit, on 8 devices and in two processes.

python -m pytest -n0 -m slow tests/cli/test_packed_on_many_devices.py
"""

from __future__ import annotations

import http.server
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from charjax.cli.main import main
from tests.environment import with_devices

from .test_packed import TINY, Ranges, losses

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning"),
]

ROOT = Path(__file__).parents[2]
MODES = [
    (documents, batching)
    for documents in ("none", "lines")
    for batching in ("stream", "windows", "sliding")
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A text, and its packed forms with and without documents."""
    folder = tmp_path_factory.mktemp("packed")
    lines = (f"line {i}: {'abcdefgh'[i % 8] * (i % 5)} of the text\n" for i in range(6000))
    (folder / "a.txt").write_text("".join(lines))
    for documents in ("none", "lines"):
        out = folder / documents
        assert (
            main(["pack", str(folder / "a.txt"), f"--out={out}", f"--documents={documents}"]) == 0
        )
    return folder


def flags(path: Path | str, workdir: Path, documents: str, batching: str) -> list[str]:
    fields = {"path": path, "documents": documents, "batching": batching}
    steps = ("--config.train.max_steps=10", "--config.train.log_every=5", f"--workdir={workdir}")
    return [*TINY, *steps, *(f"--config.data.{name}={value}" for name, value in fields.items())]


def run_in(processes: int, devices: int, *arguments: str) -> None:
    """Runs the command in one process or several, with so many devices each."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    command = [sys.executable, str(ROOT / "launch.py"), *arguments]
    together = [f"--coordinator=127.0.0.1:{port}", f"--num_processes={processes}"]
    running = [
        subprocess.Popen(
            [*command, *([*together, f"--process_id={number}"] if processes > 1 else [])],
            env=with_devices(devices) | {"no_proxy": "*"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(processes)
    ]
    try:
        said = [process.communicate(timeout=240)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0] * processes, said


@pytest.mark.parametrize(("documents", "batching"), MODES)
@pytest.mark.parametrize(("processes", "devices"), [(1, 8), (2, 2)])
def test_losses_are_those_of_memory(folder, tmp_path, processes, devices, documents, batching):
    for name in ("a.txt", documents):
        run_in(processes, devices, *flags(folder / name, tmp_path / name, documents, batching))
    assert len(losses(tmp_path / documents)) == 2
    assert losses(tmp_path / documents) == losses(tmp_path / "a.txt")


@pytest.fixture
def served(folder) -> Iterator[tuple[str, Callable[[], Counter[str]]]]:
    """The address of the store without documents, and how often each part of it was sent."""
    sent: Counter[str] = Counter()

    class Counting(Ranges):
        def do_GET(self) -> None:  # noqa: N802
            sent[f"{self.path} {self.headers.get('Range')}"] += 1
            super().do_GET()

        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(folder / "none"))  # type: ignore[arg-type]

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Counting)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/", lambda: Counter(sent)
    server.shutdown()
    server.server_close()


def test_two_processes_do_not_read_the_same_rows(served, tmp_path):
    address, sent = served
    # Rows of a stream, and parts of the validation text, are in different chunks but at the edges:
    # between the rows of two processes, and between training and validation text.
    options = ["--config.data.split=(0.5,0.5,0.0)", "--config.data.batch_size=4"]
    run_in(2, 2, *flags(address, tmp_path / "run", "none", "stream"), *options)
    chunks = {part: n for part, n in sent().items() if "/c/" in part and "bytes=-" not in part}
    assert len(chunks) >= 8
    assert sum(n > 1 for n in chunks.values()) <= 3, chunks
