"""Export as one HTML file: a page, the int8 weights, and inference in plain JavaScript.

The file opens from disk and makes no request. `model.js` is the model. `page.html`, `page.css` and
`page.js` are the page, which uses any model that has the interface described in `page.js`;
`local.js` connects the two.
"""

from __future__ import annotations

import base64
import json

from charjax.config import to_dict
from charjax.export.files import template
from charjax.export.quantized import quantize_model
from charjax.export.weights import Arrays, safetensors
from charjax.inference.load import TrainedModel

# The Content-Security-Policy: the browser loads nothing from outside the file.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; "
    "base-uri 'none'; form-action 'none'"
)


def html_file(trained: TrainedModel) -> bytes:
    """The page with the model in it.

    Raises:
      InputError: a parameter is not finite, or the package safetensors is not installed.
    """
    weights = base64.b64encode(_weights(trained)).decode()
    scripts = [f'<script type="application/octet-stream" id="weights">\n{weights}\n</script>']
    for name in ("model.js", "page.js", "local.js"):
        scripts.append(f"<script>\n{template(name)}</script>")
    return page(scripts, policy=_POLICY).encode()


def page(scripts: list[str], *, policy: str) -> str:
    """The HTML of the page.

    Args:
      scripts: script elements; one of them calls `startPage` of `page.js` with a model.
      policy: the Content-Security-Policy.
    """
    style, elements = template("page.css"), "\n".join(scripts)
    return template("page.html", policy=policy, style=style, scripts=elements)


def _weights(trained: TrainedModel) -> bytes:
    """The safetensors: `NAME` (int8) and `NAME.scales` per kernel, `NAME` (float32) per bias."""
    model = quantize_model(trained)
    arrays: Arrays = dict(model.biases)
    for name, kernel in model.kernels.items():
        arrays |= {name: kernel.integers, f"{name}.scales": kernel.scales}
    facts = {
        "config": to_dict(model.config),
        "vocabulary": trained.vocab.to_json() | {"start": trained.vocab.start},
        "about": _about(trained),
    }
    return safetensors(arrays, {name: json.dumps(value) for name, value in facts.items()})


def _about(trained: TrainedModel) -> dict[str, object]:
    """The page's title and description of the model, and how it normalizes a prompt."""
    model, reading = trained.config.model, trained.reading
    corpus = trained.meta["corpus"]["name"]
    loss = f", {trained.val_loss:.3f} nats per character" if trained.val_loss else ""
    return {
        "title": f"Write with {corpus}",
        "description": f"{model.cell.upper()}, {model.layers} x {model.hidden} units, trained on "
        f"{corpus} for {trained.step:,} steps{loss}",
        "lowercase": reading.lowercase,
        "newlines": reading.newlines,
    }
