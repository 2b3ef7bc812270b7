"""The page of `charjax look`: a text, the model's predictions, and what its units track."""

from __future__ import annotations

import base64
import logging
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from charjax.data.vocab import Vocab
from charjax.export.page import Page, json_element
from charjax.inference.inspection.inspect import Inspection
from charjax.inference.inspection.units import Separation
from charjax.runtime.paths import without_folders

_PAGE = Page("look.html", ("parts.js", "look.js"))
_MAX_ACTIVATIONS = 13_000_000  # bytes in the page; base64 adds a third

_logger = logging.getLogger(__name__)


def look_page(inspection: Inspection) -> bytes:
    """The page; it opens from disk and makes no request.

    It has the activations of all units, in 8 bits, if they fit into 13 MB; else those of the units
    that separate a feature, and of as many of the first ones as fit.
    """
    trained, ids, predictions = inspection.trained, inspection.ids, inspection.predictions
    model = trained.config.model
    units = _kept_units(inspection)
    facts = {
        "title": f"{without_folders(trained.run.corpus.name)}: what the model sees",
        "description": f"{model.cell.upper()}, {model.layers} x {model.hidden} units, step "
        f"{trained.step:,}. {ids.size:,} characters, {predictions.nats.mean():.3f} nats each.",
        "method": _method(ids.size),
        "units": len(inspection.activations),
        "pieces": _pieces(trained.vocab, ids),
        "names": _names(trained.vocab),
        "ids": ids.tolist(),
        "separations": [_separation(separation) for separation in inspection.separations],
        "millinats": _rounded(1e3 * predictions.nats),
        "ranks": predictions.ranks.tolist(),
        "topIds": predictions.top_ids.tolist(),
        "topMillionths": _rounded(1e6 * np.exp(-predictions.top_nats)),
        "activations": {unit: _quantized(inspection.activations[unit]) for unit in units},
    }
    return _PAGE.html(json_element("look", facts))


def _names(vocab: Vocab) -> list[str]:
    """Every token: its character, which the page names if it is blank, or what it is."""
    is_byte = vocab.unit == "byte"
    names = [f"byte 0x{ord(c):02X}" if is_byte and c > "\x7f" else c for c in vocab.characters]
    return vocab.by_id(names, boundary="document end", unk="[UNK]")


def _kept_units(inspection: Inspection) -> list[int]:
    """The units whose activations the page holds."""
    total, chars = inspection.activations.shape
    best = [unit.number for s in inspection.separations for unit in s.units]
    most = max(_MAX_ACTIVATIONS // chars, len(best))
    if total > most:
        _logger.info("the page holds the activations of %d of the %d units", most, total)
    return sorted(list(dict.fromkeys([*best, *range(total)]))[:most])


def _method(chars: int) -> str:
    half = chars // 2
    return (
        f"Units were chosen on the first {half:,} characters; the figures are of the other "
        f"{chars - half:,}. AUC: the probability that the unit is more active at a character "
        "with the feature than at one without (0.5: no relation). Spearman: the rank correlation "
        "with the number (0: none)."
    )


def _pieces(vocab: Vocab, ids: Int[np.ndarray, " chars"]) -> list[str]:
    """The text that each token adds; all bytes of a character but the last add none."""
    decoder = vocab.decoder()
    pieces = [decoder.decode(ids[i : i + 1]) for i in range(ids.size)]
    return ["\n" if i == vocab.boundary_id else p for i, p in zip(ids, pieces, strict=True)]


def _separation(separation: Separation) -> dict[str, Any]:
    return {
        "name": separation.feature.name,
        "description": separation.feature.description,
        "statistic": separation.statistic,
        "units": [unit._asdict() for unit in separation.units],
    }


def _rounded(values: np.ndarray) -> Any:
    """The values as lists of integers."""
    return np.round(values).astype(int).tolist()


def _quantized(activations: Float[np.ndarray, " chars"]) -> str:
    return base64.b64encode(np.round(127 * activations).astype(np.int8).tobytes()).decode()
