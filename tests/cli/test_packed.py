"""A packed text by the commands: the numbers of memory, damage, resumption, score and http."""

from __future__ import annotations

import functools
import http.server
import json
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from charjax.cli.main import main

TINY = (
    *("--config=quickstart", "--config.model.hidden=8", "--config.model.embed=4"),
    *("--config.data.batch_size=8", "--config.data.seq_len=16", "--config.sample.num_chars=1"),
    *("--config.optim.schedule=constant", "--config.optim.warmup=0.0", "--config.data.corpus="),
    *("--config.train.eval_every=5", "--config.train.steps_per_dispatch=5"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A text, its packed form, and a run of ten steps on each."""
    folder = tmp_path_factory.mktemp("packed")
    lines = (f"line {i}: {'abcdefgh'[i % 8] * (i % 5)} of the text\n" for i in range(1500))
    (folder / "a.txt").write_text("".join(lines))
    assert main(["pack", str(folder / "a.txt"), f"--out={folder / 'store'}"]) == 0
    for name in ("a.txt", "store"):
        assert train(folder / name, folder / f"run-{name}") == 0
    return folder


def train(path: Path | str, workdir: Path, steps: int = 10) -> int:
    flags = (f"--config.data.path={path}", f"--workdir={workdir}")
    return main(["train", *TINY, *flags, f"--config.train.max_steps={steps}"])


def losses(workdir: Path) -> list[tuple[float, float, float]]:
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [(r["train_loss"], r["val_loss"], r["grad_norm"]) for r in records]


def test_losses_are_those_of_the_text_in_memory_digit_for_digit(folder):
    assert len(losses(folder / "run-store")) == 2
    assert losses(folder / "run-store") == losses(folder / "run-a.txt")


def test_a_run_is_resumed_and_scored_on_the_packed_text(folder, tmp_path, capsys):
    copy = tmp_path / "run"
    shutil.copytree(folder / "run-store", copy)
    assert train(folder / "store", copy, steps=15) == 0
    assert losses(copy)[:2] == losses(folder / "run-store")
    for method in ("--window=0", "--window=7"):
        scores = []
        for name in ("run-store", "run-a.txt"):
            capsys.readouterr()
            assert main(["score", f"--workdir={folder / name}", "--part=val", method]) == 0
            scores.append(json.loads(capsys.readouterr().out))
        assert scores[0] == scores[1]


def test_the_text_in_memory_is_another_text_than_its_packed_form(folder, tmp_path, capsys):
    copy = tmp_path / "run"
    shutil.copytree(folder / "run-a.txt", copy)
    assert train(folder / "store", copy, steps=15) == 2
    assert "--allow=corpus" in capsys.readouterr().err


def test_training_stops_at_a_damaged_chunk_with_exit_code_3(folder, tmp_path, capsys):
    store = tmp_path / "store"
    shutil.copytree(folder / "store", store)
    chunk = store / "tokens/00000/c/0"
    data = bytearray(chunk.read_bytes())
    data[100] ^= 4
    chunk.write_bytes(data)
    capsys.readouterr()
    assert train(store, tmp_path / "run") == 3
    err = capsys.readouterr().err
    assert "tokens/00000: damaged" in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "run" / "checkpoints" / "10").exists()


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        (lambda store: None, 0, "its index is good"),
        (lambda store: pack_another(store), 3, "is not the text that this run was trained on"),
        (lambda store: (store / "store.json").write_bytes(b"{}"), 3, "store.json: damaged"),
        (shutil.rmtree, 0, "the text is not compared"),
    ],
    ids=["same", "another", "damaged", "gone"],
)
def test_verify_compares_the_packed_text_of_a_run(folder, tmp_path, capsys, change, code, said):
    store, workdir = tmp_path / "store", tmp_path / "run"
    shutil.copytree(folder / "store", store)
    shutil.copytree(folder / "run-store", workdir)
    assert train(store, workdir, steps=11) == 0
    change(store)
    capsys.readouterr()
    assert main(["verify", f"--workdir={workdir}"]) == code
    out, err = capsys.readouterr()
    assert set(json.loads(out).values()) == {"good"}
    assert said in err.splitlines()[-1]


def pack_another(store: Path) -> None:
    """Replaces a packed text by that of another text."""
    shutil.rmtree(store)
    text = store.with_suffix(".txt")
    text.write_text("another text\n" * 1000)
    assert main(["pack", str(text), f"--out={store}"]) == 0


class Ranges(http.server.SimpleHTTPRequestHandler):
    """Answers requests for ranges, as an object store does."""

    def do_GET(self) -> None:
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        path = Path(self.translate_path(self.path))
        if not wanted or not path.is_file():
            super().do_GET()
            return
        data = path.read_bytes()
        first = int(wanted[1]) if wanted[1] else len(data) - int(wanted[2])
        last = int(wanted[2]) if wanted[1] and wanted[2] else len(data) - 1
        part = data[first : last + 1]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def serve(folder) -> Iterator[Callable[..., str]]:
    """Serves the store over http; returns its address."""
    servers = []

    def start(handler: type) -> str:
        handler = functools.partial(handler, directory=str(folder / "store"))
        servers.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}/"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_the_same_store_is_read_over_http(folder, serve, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("no_proxy", "*")
    address = serve(Ranges)
    assert train(address, tmp_path / "run") == 0
    assert losses(tmp_path / "run") == losses(folder / "run-store")
    capsys.readouterr()
    assert main(["verify", address]) == 0
    assert json.loads(capsys.readouterr().out) == {"0": "good"}


def test_a_server_that_cannot_send_a_part_of_a_file_is_to_blame(serve, monkeypatch, capsys):
    class WholeFiles(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

    monkeypatch.setenv("no_proxy", "*")
    assert main(["verify", serve(WholeFiles)]) == 4
    assert "range" in capsys.readouterr().err


def test_train_without_a_config_says_what_a_packed_text_needs(folder, tmp_path, capsys):
    assert main(["train", str(folder / "store"), f"--workdir={tmp_path / 'run'}"]) == 2
    assert "--config.data.path=" in capsys.readouterr().err
