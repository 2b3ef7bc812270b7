"""Measures `charjax serve` with a GRU of 512 units: `python -m tests.serve.measure [STEP...]`.

Writes benchmarks/results/serve.json, and the table of docs/serve.md from it; with `page` as the
step, only the table. The client runs on the same machine. Texts are compared with `Sampler`'s.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import statistics
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from charjax.checkpoint.checkpoints import Checkpoints
from charjax.config import Config, TrainConfig, to_dict
from charjax.data.vocab import Vocab
from charjax.inference.load import load_trained
from charjax.inference.options import Sampling
from charjax.inference.sampling.sampler import Sampler
from charjax.inference.texts.end import TextEnd, decode_texts
from charjax.workdir import Workdir
from tests.environment import provenance, replaced_between
from tests.inference.scripted import random_model
from tests.inference.test_load import META
from tests.serve.process import Served, serve

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "serve.json"
PAGE = ROOT / "docs" / "serve.md"
START, END = "<!-- begin: python -m tests.serve.measure page -->\n", "<!-- end -->"
CHARACTERS = "\n !$&',-.3:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
CHARS = 1000  # of each text of the throughput
CONCURRENT = 100
ROWS, QUEUE = 64, 64  # texts that are written, and that wait


class Answer(NamedTuple):
    """Attributes: status; text of choice 0; seconds to the first character and to the end."""

    status: int
    text: str
    first_s: float
    total_s: float


async def complete(url: str, *, close_after: int = 0, on_event=lambda: None, **body) -> Answer:
    """One request on a connection; `close_after` that many events the client leaves."""
    host, port = url.removeprefix("http://").split(":")
    start, first = time.perf_counter(), 0.0
    reader, writer = await asyncio.open_connection(host, int(port))
    content = json.dumps(body).encode()
    writer.write(
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(content), content)
    )
    status = int((await reader.readline()).split()[1])
    received, events, pieces = bytearray(), 0, []
    try:
        while line := await reader.readline():
            if not line.startswith(b"data: {"):
                received += line
                continue
            events += 1
            on_event()
            pieces.append(json.loads(line[6:])["choices"][0]["text"])
            first = first or time.perf_counter() - start
            if events == close_after:
                break
    finally:
        writer.close()
    if not body.get("stream") and status == 200:
        pieces = [json.loads(received.partition(b"\r\n\r\n")[2])["choices"][0]["text"]]
    return Answer(status, "".join(pieces), first, time.perf_counter() - start)


def make_run(folder: Path) -> None:
    """A run of a GRU of 512 units with random weights, of usual size for such a model."""
    vocab = Vocab(tuple(CHARACTERS), "codepoint", False)
    model, params = random_model(len(vocab), hidden=512)
    params = jax.tree.map(lambda leaf: np.asarray(leaf) * 0.1, params)
    config = Config(model=model, train=TrainConfig(max_steps=1))
    meta = META | {"config": to_dict(config), "vocabulary": vocab.to_json()}
    with Checkpoints(Workdir(folder).checkpoints, keep=1) as saved:
        saved.save(1, {"params": params}, meta, val_loss=None)


class Bench:
    """The server, and a sampler of the same model in this process."""

    def __init__(self, served: Served, folder: Path) -> None:
        self.process, self.url = served
        self.trained = load_trained(folder, which="best")
        self.sampler = Sampler(self.trained.config.model, self.trained.params, masked=None)

    def sample(self, prompt: str, num_chars: int, num_samples: int, **options) -> list[str]:
        """The texts of `charjax sample`."""
        groups = self.sampler.run(
            self.trained.vocab.encode_prompt(prompt),
            num_chars=num_chars,
            num_samples=num_samples,
            sampling=Sampling(**options),
        )
        start = partial(TextEnd, self.trained.vocab, num_chars)
        return [text.text for text in decode_texts(groups, start)]

    def first_character(self) -> dict:
        """Milliseconds from the request to the first character, one request after another."""

        async def ask() -> list[float]:
            body = {"prompt": "ROMEO:", "max_tokens": 40, "stream": True}
            return [(await complete(self.url, **body, seed=i)).first_s for i in range(220)][20:]

        times = sorted(1000 * seconds for seconds in asyncio.run(ask()))
        return {"median_ms": statistics.median(times), "p95_ms": times[int(0.95 * len(times))]}

    def equality(self) -> dict:
        """Different requests at the same time, every fifth of which leaves in mid-stream."""
        bodies = [
            {
                "prompt": CHARACTERS[14 : 14 + i % 7],
                "seed": i,
                "max_tokens": 50 + 13 * (i % 40),
                "temperature": (0, 0.5, 0.8, 1.0, 1.3)[i % 5],
                "stream": i % 2 == 0 or i % 5 == 3,
            }
            for i in range(CONCURRENT)
        ]

        async def ask() -> list[Answer]:
            closes = [3 * (i % 5 == 3) for i in range(CONCURRENT)]
            asked = zip(bodies, closes, strict=True)
            return await asyncio.gather(
                *(complete(self.url, close_after=close, **body) for body, close in asked)
            )

        answers, equal, left = asyncio.run(ask()), 0, 0
        for i, (body, answer) in enumerate(zip(bodies, answers, strict=True)):
            sampling = {"seed": body["seed"], "temperature": float(body["temperature"])}
            (want,) = self.sample(body["prompt"], body["max_tokens"], 1, **sampling)
            if i % 5 == 3:
                assert want.startswith(answer.text)
                left += 1
            else:
                assert answer.text == want, (body, answer.text, want)
                equal += 1
        return {"finished_and_equal": equal, "left": left}

    def throughput(self) -> dict:
        """Characters a second of concurrent requests, and of one call of the sampler, in turn."""
        served, alone = [], []
        for _ in range(7):
            start = time.perf_counter()
            texts = self.sample("ROMEO:", CHARS, CONCURRENT, seed=1)
            alone.append(CONCURRENT * CHARS / (time.perf_counter() - start))

            async def ask() -> list[Answer]:
                body = {"prompt": "ROMEO:", "max_tokens": CHARS, "n": 1}
                asked = (complete(self.url, **body, seed=i) for i in range(CONCURRENT))
                return await asyncio.gather(*asked)

            start = time.perf_counter()
            answers = asyncio.run(ask())
            served.append(CONCURRENT * CHARS / (time.perf_counter() - start))
            assert all(len(answer.text) == CHARS for answer in answers)
            assert len(texts) == CONCURRENT
        ratios = [a / b for a, b in zip(served, alone, strict=True)]
        return {
            "served_chars_s": statistics.median(served),
            "sampler_chars_s": statistics.median(alone),
            "ratio": statistics.median(ratios),
            "ratios": [round(ratio, 3) for ratio in ratios],
        }

    def refusals(self) -> dict:
        """1,000 requests beyond the queue: how many are refused, and in which form."""

        async def ask() -> tuple[int, float]:
            body = {"prompt": "a", "max_tokens": 100_000, "stream": True}
            taken = [
                asyncio.ensure_future(complete(self.url, close_after=200, **body, seed=i))
                for i in range(ROWS + QUEUE)
            ]
            await asyncio.sleep(1)
            start = time.perf_counter()
            refused = 0
            for _ in range(10):
                more = (complete(self.url, **body, seed=0) for _ in range(100))
                refused += sum(answer.status == 429 for answer in await asyncio.gather(*more))
            seconds = time.perf_counter() - start
            for task in taken:
                task.cancel()
            await asyncio.gather(*taken, return_exceptions=True)
            return refused, seconds

        refused, seconds = asyncio.run(ask())
        return {"refused": refused, "of": 1000, "seconds": seconds}

    def memory(self) -> dict:
        """Growth of the server's resident memory from request 1,000 to request 10,000."""

        async def ask(count: int) -> None:
            for _ in range(count // 50):
                asked = (
                    complete(self.url, prompt="ab", max_tokens=16, seed=i, stream=i % 2 == 0)
                    for i in range(50)
                )
                await asyncio.gather(*asked)

        asyncio.run(ask(1000))
        before = self._rss_mb()
        asyncio.run(ask(9000))
        return {"after_1000_mb": before, "growth_mb": self._rss_mb() - before}

    def _rss_mb(self) -> float:
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text("utf-8").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    def shutdown(self) -> dict:
        """Streams that finish after SIGTERM, and the seconds to the end of the process."""

        async def ask() -> tuple[list[Answer], float]:
            body: dict = {"prompt": "a", "max_tokens": 1000, "stream": True}
            started: set[int] = set()
            await asyncio.sleep(3)  # until the texts of earlier steps are given up
            asked = [
                asyncio.ensure_future(
                    complete(self.url, **body, seed=i, on_event=lambda i=i: started.add(i))
                )
                for i in range(20)
            ]
            while len(started) < len(asked) and not any(task.done() for task in asked):
                await asyncio.sleep(0.01)
            start = time.perf_counter()
            self.process.send_signal(signal.SIGTERM)
            answers = await asyncio.gather(*asked)
            await asyncio.to_thread(self.process.wait, 30)
            return answers, time.perf_counter() - start

        answers, seconds = asyncio.run(ask())
        finished = sum(len(answer.text) == 1000 for answer in answers)
        return {"finished": finished, "of": len(answers), "seconds": seconds}


STEPS = ("first_character", "equality", "throughput", "memory", "refusals", "shutdown")


def measure(steps: Sequence[str]) -> None:
    """Adds the results of these steps to the file, each as soon as it is there."""
    results = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
    results |= provenance("tests.serve.measure", steps)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "gru512"
        make_run(folder)
        with serve(f"--workdir={folder}", f"--max_queue={QUEUE}", timeout=30) as served:
            bench = Bench(served, folder)
            for step in steps:
                results[step] = getattr(bench, step)()
                print(step, json.dumps(results[step]), flush=True)
                RESULTS.write_text(json.dumps(results, indent=2) + "\n", "utf-8")


def write_page(results: dict) -> None:
    """The table in docs/serve.md."""
    first, speed = results["first_character"], results["throughput"]
    rows = [
        (
            "first character of a warm server",
            f"{first['median_ms']:.0f} ms median, {first['p95_ms']:.0f} ms at the 95th percentile",
        ),
        (
            f"{CONCURRENT} requests at a time, {CHARS:,} characters each",
            f"{speed['served_chars_s']:,.0f} characters/s, {speed['ratio']:.2f} of "
            "`charjax sample` with as many samples",
        ),
        (
            f"{CONCURRENT} different requests, {results['equality']['left']} of which leave",
            f"{results['equality']['finished_and_equal']} finished texts, all equal to "
            "`charjax sample`'s",
        ),
        ("1,000 requests beyond the queue", f"{results['refusals']['refused']:,} refused (429)"),
        (
            "resident memory, from request 1,000 to 10,000",
            f"{results['memory']['growth_mb']:+.1f} MB",
        ),
        (
            "SIGTERM during 20 streams",
            f"{results['shutdown']['finished']} finish, {results['shutdown']['seconds']:.1f} s",
        ),
    ]
    table = "".join(f"| {about} | {result} |\n" for about, result in rows)
    table = f"| GRU 1 x 512 | |\n|---|---|\n{table}"
    table += f"\n(`{results['command']}`: {results['machine']}; {results['date']}.)\n"
    PAGE.write_text(replaced_between(PAGE.read_text("utf-8"), START, table, END), "utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("steps", nargs="*", metavar="STEP", help=f"page, or of {', '.join(STEPS)}")
    steps = parser.parse_args().steps or list(STEPS)
    if steps != ["page"]:
        if unknown := {*steps} - {*STEPS}:
            parser.error(f"{min(unknown)}: no such step")
        measure(steps)
    write_page(json.loads(RESULTS.read_text("utf-8")))
