"""Export as a repository of the Hugging Face hub."""

from __future__ import annotations

import hashlib
import json
import math
import re
from typing import Any

import jax.numpy as jnp
import numpy as np

from charjax.export.weights import named_weights, vocabulary_json
from charjax.inference.hub import FORMAT, HubConfig
from charjax.inference.load import TrainedModel
from charjax.model.network import parameter_count
from charjax.runtime.display import counted
from charjax.runtime.safetensors import safetensors_file

# What ends a paragraph of Markdown, or marks up a part of it.
_MARKUP = re.compile(r"[\\`*_\[\]<>&~$|#]")
_PAIR = re.compile(r"\\ud[89ab]..\\ud[c-f]..")  # the escapes of a pair of surrogates


def hub_files(trained: TrainedModel) -> dict[str, bytes]:
    """`README.md`, `config.json`, `model.safetensors`, `vocabulary.json`."""
    arrays = {name: _compact(array) for name, array in named_weights(trained.params).items()}
    files = {
        "model.safetensors": safetensors_file(arrays, {"format": "charjax"}),
        "vocabulary.json": vocabulary_json(trained.vocab).encode(),
    }
    files["config.json"] = json.dumps(_config(trained, files), indent=2).encode()
    is_rounded = all(array.dtype != np.float32 for array in arrays.values())
    return files | {"README.md": _card(trained, is_rounded=is_rounded).encode()}


def _compact(array: Any) -> np.ndarray:
    """The array in bfloat16 if that holds its values exactly, else in float32."""
    full: np.ndarray = np.asarray(array, np.float32)
    half = full.astype(jnp.dtype("bfloat16"))
    return half if np.array_equal(half.astype(np.float32), full) else full


def _config(trained: TrainedModel, files: dict[str, bytes]) -> dict[str, Any]:
    run = trained.run.to_json()
    del run["vocabulary"]  # which has its own file
    config = HubConfig(
        format=FORMAT,
        run=run,
        step=trained.step,
        val_loss=trained.val_loss,
        elapsed_s=trained.elapsed_s,
        sha256={name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
    )
    return {"model_type": "charjax", "architectures": ["CharRNN"], **config._asdict()}


def _card(trained: TrainedModel, *, is_rounded: bool) -> str:
    """The model card; at its top the metadata that the hub reads.

    Args:
      trained: the model.
      is_rounded: whether its weights were rounded to bfloat16, which its loss does not know.
    """
    before = " before its weights were rounded to bfloat16" if is_rounded else ""
    model, corpus, loss = trained.config.model, trained.run.corpus, trained.val_loss
    name = f"{model.cell}-{model.layers}x{model.hidden}-{corpus.name}"
    measured = "It was not evaluated on held-out text."
    if loss is not None:
        measured = (
            f"On held-out text of the same corpus its loss {'was' if is_rounded else 'is'} "
            f"{loss:.4f} nats ({loss / math.log(2):.4f} bits) per character{before}."
        )
    return _CARD.format(
        name=_markdown(name),
        result=_result(trained, name, before),
        tag=model.cell,
        cell=model.cell.upper(),
        layers=model.layers,
        hidden=model.hidden,
        parameters=parameter_count(trained.params),
        data=_training(trained),
        notice=f"\n\nNotice: {_markdown(corpus.notice)}" if corpus.notice else "",
        measured=measured,
        symbols=len(trained.vocab.characters),
        unit={"byte": "bytes", "codepoint": "characters"}[trained.vocab.unit],
    )


def _training(trained: TrainedModel) -> str:
    """What the card says about the training."""
    corpus, base = trained.run.corpus, trained.run.base_model
    if trained.run.is_converted:
        return "Not trained by charjax."  # and the notice says where it is from
    data = (
        f"Trained for {counted(trained.step, 'step')} on {_markdown(corpus.name)}, "
        f"{counted(corpus.chars, 'character')}, SHA-256 `{corpus.sha256}`."
    )
    if base:
        data += (
            f"\nIts first weights are those of {_markdown(base.path)}, step {base.step:,}, "
            f"SHA-256 `{base.sha256}`."
        )
    return data


def _markdown(text: str) -> str:
    """The text as Markdown that shows it, in one line."""
    return _MARKUP.sub(r"\\\g<0>", " ".join(text.split()))


def _result(trained: TrainedModel, name: str, before: str) -> str:
    """The line of the metadata with the loss, if there is one; its value is JSON and YAML."""
    if trained.val_loss is None:
        return ""
    metric = {
        "type": "bits_per_character",
        "name": f"bits per character, validation{before}",
        "value": round(trained.val_loss / math.log(2), 4),
    }
    result = {
        "task": {"type": "text-generation", "name": "character-level language modelling"},
        "dataset": {"type": "text", "name": trained.run.corpus.name},
        "metrics": [metric],
    }
    escaped = json.dumps([{"name": name, "results": [result]}])
    # YAML reads the two escapes that JSON has for a character beyond U+FFFF as two characters.
    index = _PAIR.sub(lambda pair: json.loads(f'"{pair[0]}"'), escaped)
    return f"\nmodel-index: {index}"


_CARD = """\
---
library_name: "charjax"
pipeline_tag: "text-generation"
tags: ["charjax", "jax", "character-level", "rnn", "{tag}"]{result}
---

# {name}

A character-level recurrent language model from charjax: {cell}, {layers} x {hidden}, {parameters:,}
parameters.

## Data and loss

{data}
{measured}{notice}

## Use

```sh
pip install charjax
charjax sample --workdir=FOLDER --num_chars=500     # FOLDER: where this file is
charjax score --workdir=FOLDER --file=TEXT
charjax train --config=CONFIG --init_from=FOLDER --config.data.path=TEXT   # fine-tune
```

- `model.safetensors`: the weights by name
- `config.json`: the architecture, how it was trained, and the digests of the files
- `vocabulary.json`: `symbols`, of which id i is character i
- `model.onnx`, if present: the same model for onnxruntime, with config and vocabulary as metadata

## Limits

It continues text in the style of its training text. What it writes is not factual, and it may
repeat passages of that text. It knows {symbols} {unit}; others are refused, or read as [UNK] if it
has that token. Its only memory is its recurrent state, which fades over some hundred characters.
"""
