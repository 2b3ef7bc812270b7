"""Unmodified clients of the protocol against `charjax serve`; each skips where it is not installed.

`pip install openai 'lm_eval[api]' schemathesis`, then
`python -m pytest -n0 -m slow tests/serve/test_clients.py`; CLIENTS=DIR takes the programs of
another environment's folder.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from charjax.cli.main import main
from tests.serve.process import serve

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text("utf-8")[:6000]


def program(name):
    path = shutil.which(name, path=os.environ.get("CLIENTS") or os.environ["PATH"])
    return path or pytest.skip(f"{name} is not installed")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run of bytes, 256 of which it knows."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "text.txt").write_bytes(TEXT.encode() + bytes(range(256)))
    assert not main(
        [
            *("train", "--config=" + str(ROOT / "configs" / "quickstart.py")),
            *(f"--workdir={folder / 'run'}", f"--config.data.path={folder / 'text.txt'}"),
            *("--config.data.unit=byte", "--config.train.max_steps=20"),
            *("--config.model.hidden=32", "--config.train.eval_every=10"),
        ]
    )
    return folder / "run"


OPENAI = """
import json, sys
from openai import NotFoundError, OpenAI

client = OpenAI(base_url=sys.argv[1] + "/v1", api_key="none")
name = client.models.list().data[0].id
options = {"model": name, "prompt": "The ", "max_tokens": 40, "seed": 7, "temperature": 0.8}
whole = client.completions.create(**options, n=2, logprobs=5, echo=True)
texts = [choice.text for choice in whole.choices]
assert all(text.startswith("The ") for text in texts)
logprobs = whole.choices[0].logprobs
assert logprobs.token_logprobs[0] is None and len(logprobs.token_logprobs) == 44
assert all(len(top) in (5, 6) for top in logprobs.top_logprobs[1:])
assert whole.usage.completion_tokens == 80
pieces = [part.choices[0].text for part in client.completions.create(**options, stream=True)]
assert len(pieces) > 1 and "The " + "".join(pieces) == texts[0]
try:
    client.completions.create(**options | {"model": "gpt"})
except NotFoundError as error:
    assert error.code == "model_not_found"
print(json.dumps(texts))
"""


def test_the_openai_client_completes_streams_and_gets_logprobs(workdir, capsysbinary):
    python = program("python")
    if subprocess.run([python, "-c", "import openai"], capture_output=True).returncode:
        pytest.skip("openai is not installed")
    with serve(f"--workdir={workdir}") as served:
        ended = subprocess.run(
            [python, "-c", OPENAI, served.url], capture_output=True, text=True, check=False
        )
    assert ended.returncode == 0, ended.stderr
    capsysbinary.readouterr()
    arguments = ["--prompt=The ", "--num_chars=40", "--num_samples=2", "--separator=|=====|"]
    assert not main(["sample", f"--workdir={workdir}", "--seed=7", *arguments])
    assert json.loads(ended.stdout) == capsysbinary.readouterr().out.decode().split("|=====|")


def test_lm_eval_scores_a_text_as_charjax_does(workdir, tmp_path, capsys):
    lm_eval = program("lm_eval")
    shutil.copy(ROOT / "examples" / "lm_eval" / "charjax_text.yaml", tmp_path)
    (tmp_path / "text.txt").write_text(TEXT, "utf-8")
    with serve(f"--workdir={workdir}") as served:
        model = f"base_url={served.url}/v1/completions,model=run,max_length=100000"
        ended = subprocess.run(
            [
                *(lm_eval, "--model", "local-completions", "--model_args", model),
                *("--tasks", "charjax_text", "--include_path", ".", "--output_path", "out"),
            ],
            cwd=tmp_path,
            env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")},
            capture_output=True,
            text=True,
            check=False,
        )
    assert ended.returncode == 0, ended.stderr
    (file,) = tmp_path.glob("out/**/results_*.json")
    result = json.loads(file.read_text("utf-8"))["results"]["charjax_text"]
    nats = result["bits_per_byte,none"] * len(TEXT.encode()) * math.log(2)
    # The score of a file leaves its first character out: the start token takes that place.
    start = "\n"
    (tmp_path / "text.txt").write_text(start + TEXT, "utf-8")
    capsys.readouterr()
    assert not main(["score", f"--workdir={workdir}", f"--file={tmp_path / 'text.txt'}"])
    scored = json.loads(capsys.readouterr().out)
    assert scored["chars"] == len(TEXT.encode())
    assert nats == pytest.approx(scored["nats_per_char"] * scored["chars"], rel=1e-4)


def test_schemathesis_finds_no_fault_in_two_thousand_requests(workdir, tmp_path):
    """A schema cannot say what depends on the model or on two fields: that is refused, too."""
    schemathesis = program("schemathesis")
    with serve(f"--workdir={workdir}", "--max_tokens=50", "--max_prompt=300") as served:
        ended = subprocess.run(
            [
                *(schemathesis, "run", served.url + "/openapi.json", "--max-examples=400"),
                *("--exclude-checks=positive_data_acceptance", "--no-color", "--seed=1"),
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
    print(ended.stdout)
    assert ended.returncode == 0, ended.stdout[-5000:]
    (count,) = [line.split()[0] for line in ended.stdout.splitlines() if "generated" in line]
    assert int(count.replace(",", "")) >= 2000
