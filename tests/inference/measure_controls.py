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

import jax

from charjax.config import DataConfig
from charjax.data.corpus import load_corpus
from charjax.inference.texts.sampler import TextSampler
from tests.environment import existing, provenance
from tests.inference.scripted import random_model, text_sampler, trained_on

RESULTS = Path(__file__).with_name("controls_speed.json")
PAGE = Path(__file__).parents[2] / "docs" / "sampling.md"
ROUNDS = 11
CHARS = {1: 512, 64: 256}

_logger = logging.getLogger(__name__)


CASES = {
    "--max_copy": {"max_copy": 20},
    "--stop": {"stop": ("\n\n\n\n", "zzzzzz")},
    "--until_lines": {"until_lines": 10**6},
    "--min_p": {"min_p": 0.02},
    "--repetition_penalty": {"repetition_penalty": 1.1},
    "--forbid": {"forbid": "e"},
    "--only": {"only": "abcdefgh \n"},
    "--top_k": {"top_k": 10},
    "--top_p": {"top_p": 0.9},
    "--unique --new": {"unique": True, "new": True},
    "--json": {},
}


def main() -> None:
    """Measures, writes the results and the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", type=existing, metavar="TEXT")
    data = DataConfig(path=str(parser.parse_args().text))
    config, params = random_model(len(load_corpus(data).characters), hidden=512)
    # Of the size of trained weights, so that logits are ordinary numbers.
    model = trained_on((config, jax.tree.map(lambda leaf: 0.04 * leaf, params)), data)
    plain = text_sampler(model)
    results = {}
    for name, options in CASES.items():
        sampler, num_top = text_sampler(model, **options), 0 if name == "--json" else None
        results[name] = {}
        for size in CHARS:
            cpu_seconds(sampler, size, num_top)  # compiles
            cpu_seconds(plain, size)
            ratios = [
                cpu_seconds(sampler, size, num_top) / cpu_seconds(plain, size)
                for _ in range(ROUNDS)
            ]
            results[name][size] = round(statistics.median(ratios) - 1, 4)
        _logger.warning("%s %s", name, results[name])
        found = provenance("tests.inference.measure_controls", ["TEXT"]) | {"costs": results}
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    write_page()


def cpu_seconds(sampler: TextSampler, size: int, num_top: int | None = None) -> float:
    """To write so many texts."""
    prompt = sampler.encode("", "error")
    start = time.process_time()
    for _ in sampler.texts(prompt, num_chars=CHARS[size], num_samples=size, num_top=num_top):
        pass
    return time.process_time() - start


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
