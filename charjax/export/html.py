"""Export as one HTML file: a page, the int8 weights, and inference in plain JavaScript.

The file opens from disk and makes no request. `model.js` is the model. `write.html` and `write.js`
are the page, which uses any model that has the interface described in `write.js`; `local.js`
connects the two.
"""

from __future__ import annotations

import json

from charjax.config import to_dict
from charjax.export.page import Page, bytes_element
from charjax.export.quantized import quantize_model
from charjax.export.weights import vocabulary_json
from charjax.inference.load import TrainedModel
from charjax.runtime.safetensors import Arrays, safetensors_file

_PAGE = Page("write.html", ("parts.js", "model.js", "write.js", "local.js"))


def html_file(trained: TrainedModel) -> bytes:
    """The page with the model in it.

    Raises:
      InputError: a parameter is not finite.
    """
    return _PAGE.html(bytes_element("weights", _weights(trained)))


def _weights(trained: TrainedModel) -> bytes:
    """The safetensors: `NAME` (int8) and `NAME.scales` per kernel, `NAME` (float32) per bias."""
    model = quantize_model(trained)
    arrays: Arrays = dict(model.biases)
    for name, kernel in model.kernels.items():
        arrays |= {name: kernel.integers, f"{name}.scales": kernel.scales}
    metadata = {
        "config": json.dumps(to_dict(model.config)),
        "vocabulary": vocabulary_json(trained.vocab),
        "about": json.dumps(_about(trained)),
    }
    return safetensors_file(arrays, metadata)


def _about(trained: TrainedModel) -> dict[str, object]:
    """The page's title and description of the model, and how it normalizes a prompt."""
    model, reading = trained.config.model, trained.run.reading
    loss = ""
    if trained.val_loss is not None:
        loss = f", {trained.val_loss:.3f} nats per character before its weights were quantized"
    return {
        "title": f"Write with {trained.run.corpus.name}",
        "description": f"{model.cell.upper()}, {model.layers} x {model.hidden} units, "
        f"{trained.training}{loss}",
        "lowercase": reading.lowercase,
        "newlines": reading.newlines,
    }
