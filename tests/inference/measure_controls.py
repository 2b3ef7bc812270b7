"""What each sampling control costs: `python -m tests.inference.measure_controls TEXT`.

Writes `controls_speed.json` beside this file and the table of docs/sampling.md. An untrained GRU of
512 units samples with and without a control in turn, round after round, in one process; a cost is
the median of the ratios of CPU time, so that what else runs on the machine matters little.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import statistics
import time
from pathlib import Path

import numpy as np

from charjax.config import DataConfig, ModelConfig
from charjax.data.corpus import load_corpus
from charjax.data.vocab import Vocab
from charjax.inference.controls import Controls
from charjax.inference.copying import copy_table
from charjax.inference.sampler import Sampler
from charjax.inference.sampling import Sampling
from charjax.inference.text_codec import decode_texts
from charjax.inference.text_end import TextEnd
from tests.environment import existing, provenance
from tests.inference.scripted import random_model

RESULTS = Path(__file__).with_name("controls_speed.json")
PAGE = Path(__file__).parents[2] / "docs" / "sampling.md"
ROUNDS = 11
CHARS = {1: 512, 64: 256}

_logger = logging.getLogger(__name__)


def main() -> None:
    """Measures, writes the results and the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", type=existing, metavar="TEXT")
    corpus = load_corpus(DataConfig(path=str(parser.parse_args().text)))
    vocab = Vocab.from_text(corpus.text, order="sorted", unit="codepoint", unk=False)
    config, params = random_model(len(vocab), hidden=512)
    sampler = Sampler(
        ModelConfig(cell=config.cell, hidden=512, embed=0), _small(params), masked=None
    )
    table = copy_table(corpus, vocab, 20)
    known = frozenset(corpus.text.split("\n"))
    cases = {
        "--max_copy": (Controls(max_copy=20), Sampling(), {"copies": table}),
        "--stop": (Controls(stop=("\n\n\n\n", "zzzzzz")), Sampling(), {}),
        "--until_lines": (Controls(until_lines=10**6), Sampling(), {}),
        "--min_p": (Controls(), Sampling(min_p=0.02), {}),
        "--repetition_penalty": (Controls(), Sampling(repetition_penalty=1.1), {}),
        "--forbid": (Controls(forbid="e"), Sampling(), {}),
        "--only": (Controls(only="abcdefgh \n"), Sampling(), {}),
        "--top_k": (Controls(), Sampling(top_k=10), {}),
        "--top_p": (Controls(), Sampling(top_p=0.9), {}),
        "--unique --new": (Controls(unique=True, new=True), Sampling(), {}),
        "--json": (Controls(), Sampling(), {"num_top": 0}),
    }

    def sample(size: int, controls: Controls, sampling: Sampling, options: dict) -> float:
        groups = sampler.run(
            np.array([0], np.int32),
            num_chars=CHARS[size],
            num_samples=size,
            sampling=controls.restrict(sampling, vocab),
            **options,
        )
        start = time.process_time()
        for _ in decode_texts(groups, lambda: TextEnd(vocab, CHARS[size], controls, known=known)):
            pass
        return time.process_time() - start

    results = {}
    for name, case in cases.items():
        results[name] = {}
        for size in CHARS:
            sample(size, *case)  # compiles
            sample(size, Controls(), Sampling(), {})
            ratios = []
            for _ in range(ROUNDS):
                plain = sample(size, Controls(), Sampling(), {})
                ratios.append(sample(size, *case) / plain)
            results[name][size] = round(statistics.median(ratios) - 1, 4)
        _logger.warning("%s %s", name, results[name])
        found = provenance("tests.inference.measure_controls", ["TEXT"]) | {"costs": results}
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    write_page()


def _small(params: dict) -> dict:
    """Weights of the size of trained ones, so that logits are ordinary numbers."""
    return {
        key: _small(value) if isinstance(value, dict) else value * 0.04
        for key, value in params.items()
    }


def write_page() -> None:
    """The table of docs/sampling.md, from the results."""
    found = json.loads(RESULTS.read_text())
    costs = found["costs"].items()
    rows = [f"| `{name}` | {one['1']:+.1%} | {one['64']:+.1%} |" for name, one in costs]
    source = f"(`{found['command']}`: {found['machine']}; {found['date']}.)"
    table = "\n".join(["| control | 1 text | 64 texts |", "|---|---|---|", *rows, "", source])
    page = PAGE.read_text("utf-8")
    pattern = r"(?s)(<!-- costs -->\n).*(\n<!-- end -->)"
    PAGE.write_text(re.sub(pattern, lambda m: m[1] + table + m[2], page), "utf-8")


if __name__ == "__main__":
    main()
