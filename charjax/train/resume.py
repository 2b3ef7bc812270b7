"""What names a run, so that a folder is never continued as another run by mistake."""

from __future__ import annotations

import difflib
import importlib.metadata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from charjax.config import Config, differences, from_config_dict, to_dict
from charjax.data.dataset import Dataset
from charjax.errors import InputError
from charjax.schema import leaves

# What may change between a run and its resumption: how long and how often, not what.
_MUST_STAY = ("train.scheduled",)
_MAY_CHANGE = (
    "train.",
    "sample.",
    "parallel.",
    "model.recurrence",
    "model.remat",
    "data.path",
    "data.offline",
)

_LISTED = 8  # symbols that a message names
_PACKAGES = ("charjax", "jax", "flax", "optax", "orbax-checkpoint", "numpy")


def describe(config: Config, text: Dataset, parameters: int) -> dict[str, Any]:
    """The run as JSON values, for `run.json` and for every checkpoint."""
    corpus = text.corpus
    return {
        "config": to_dict(config),
        "vocabulary": text.vocab.to_json(),
        "corpus": {
            "name": corpus.name,
            "sha256": corpus.sha256,
            "chars": len(corpus.text),
            "notice": corpus.notice,
        },
        "parameters": parameters,
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
    }


def check_allowed(names: Sequence[str]) -> None:
    """Raises InputError for a name in `--allow` that nothing has which could change."""
    fields = {name for name, _ in leaves(to_dict(Config()))}
    known = {"corpus", "vocabulary", *(f"config.{name}" for name in fields)}
    sections = {name.rpartition(".")[0] for name in known} - {"", "config"}
    for name in names:
        if name not in known | sections:
            nearest = difflib.get_close_matches(name, sorted(known | sections), n=1)
            hint = f"did you mean {nearest[0]}?" if nearest else "name config.FIELD or corpus"
            raise InputError(f"--allow={name}: nothing of this name can change; {hint}")


def check_same_run(
    folder: Path,
    saved: Mapping[str, Any],
    config: Config,
    text: Dataset,
    *,
    allow: Sequence[str],
) -> list[str]:
    """Refuses to go on with another model, optimizer, seed or text than before.

    Args:
      folder: the run's, for the message.
      saved: what `describe` said when the run was saved.
      config: the run now.
      text: its text now.
      allow: what may differ, as `--allow` names it.

    Returns:
      What differs and may, in words.

    Raises:
      InputError: something else differs; it names all of that, before and now.
    """
    changes = dict(_changes(saved, config, text))
    refused = [name for name in changes if not _is_allowed(name, allow)]
    if refused:
        raise InputError(
            f"{folder}: holds another run: {'; '.join(changes[name] for name in refused)}; change "
            f"it back, go on with --allow={','.join(refused)}, or choose another --workdir"
        )
    return list(changes.values())


def _is_allowed(name: str, allow: Sequence[str]) -> bool:
    return any(name == allowed or name.startswith(f"{allowed}.") for allowed in allow)


def _changes(saved: Mapping[str, Any], config: Config, text: Dataset) -> Iterator[tuple[str, str]]:
    """What names the run and has changed: (as `--allow` calls it, in words)."""
    for name, (old, new) in differences(from_config_dict(saved["config"]), config).items():
        if name.startswith(_MUST_STAY) or not name.startswith(_MAY_CHANGE):
            yield f"config.{name}", f"config.{name} was {old!r}, now {new!r}"
    before, now = saved["corpus"], text.corpus
    if before["sha256"] != now.sha256:
        yield (
            "corpus",
            f"it was trained on another text: {before['name']}, {before['chars']:,} characters, "
            f"SHA-256 {before['sha256'][:12]}; now {now.name}, {len(now.text):,} characters, "
            f"{now.sha256[:12]}",
        )
    if saved["vocabulary"] != text.vocab.to_json():
        yield "vocabulary", _vocabulary_change(saved["vocabulary"], text.vocab.to_json())


def _vocabulary_change(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    lost, added = (
        _listed(Counter(a["symbols"]) - Counter(b["symbols"])) for a, b in ((old, new), (new, old))
    )
    words = "; ".join(
        f"{what} {symbols}" for what, symbols in (("lost", lost), ("gained", added)) if symbols
    )
    sizes = f"{len(old['symbols'])} symbols, now {len(new['symbols'])}"
    return f"the vocabulary had {sizes} ({words or 'the same in another order or meaning'})"


def _listed(symbols: Counter[str]) -> str:
    listed = ", ".join(f"U+{ord(symbol):04X}" for symbol in sorted(symbols)[:_LISTED])
    return listed + (f" and {len(symbols) - _LISTED} more" if len(symbols) > _LISTED else "")
