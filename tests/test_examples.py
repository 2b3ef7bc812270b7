"""The examples do what they say."""

from __future__ import annotations

import math
import runpy
from pathlib import Path

import numpy as np

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_the_custom_training_loop_learns(capsys):
    loop = EXAMPLES / "custom_loop.py"
    lines = loop.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 60
    assert not any("charjax." in line for line in lines if line.startswith(("from", "import")))
    loss = runpy.run_path(str(loop))["main"](60)
    assert loss < 0.8 * math.log(100), "a uniform guess among about a hundred characters"
    assert "step 50" in capsys.readouterr().out


def test_the_exported_generator_is_used_in_at_most_30_lines():
    lines = (EXAMPLES / "generate_exported.py").read_text(encoding="utf-8").splitlines()
    code = [line for line in lines[lines.index("import json") :] if line.strip()]
    assert len(code) <= 30


def test_the_training_loop_of_readme_runs(tmp_path):
    readme = (EXAMPLES.parent / "README.md").read_text(encoding="utf-8")
    loop = readme.split("```python\n")[1].split("```")[0]
    (tmp_path / "text.txt").write_text("to be or not to be, " * 50, encoding="utf-8")
    small = f"data=DataConfig(path={str(tmp_path / 'text.txt')!r}, batch_size=2, seq_len=4)"
    small += ", model=ModelConfig(hidden=4, embed=4), train=TrainConfig(max_steps=2)"
    assert "Config(train=TrainConfig(max_steps=100))" in loop
    # Around `small`, since a path in it may have the digits.
    parts = loop.split("train=TrainConfig(max_steps=100)")
    loop = small.join(part.replace("100", "2") for part in parts)
    names: dict = {}
    exec("from charjax import DataConfig, ModelConfig\n" + loop, names)
    assert int(names["state"].step) == 2
    assert np.isfinite(names["metrics"].loss)
