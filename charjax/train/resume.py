"""Checks that a resumed run is the one that was saved in its workdir."""

from __future__ import annotations

import difflib
import hashlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from charjax.checkpoint.meta import CheckpointMeta, RunMeta
from charjax.config import Config, DataConfig, ModelConfig, differences, to_dict
from charjax.data.packed.tokens import StoreTokens, TokenIds
from charjax.data.vocab import Vocab
from charjax.errors import InputError
from charjax.inference.scoring.evaluate import max_eval_chars
from charjax.model.recurrence.api import resolve
from charjax.model.recurrence.resolution import Resolution
from charjax.runtime.display import code_points, counted
from charjax.schema import leaves

_logger = logging.getLogger(__name__)

# Fields that may change when a run is resumed: how long, how often and on what hardware.
_MAY_CHANGE = (
    "train.",
    "sample.",
    "parallel.",
    "model.recurrence",
    "model.remat",
    "data.path",
    "data.offline",
    "data.eval_chars",
)
# Fields among these that must stay: what the loss is, and which weights the run started from.
_MUST_STAY = ("train.scheduled", "train.softmax_temperature", "train.init")
_CHUNK = 1 << 20  # tokens hashed at a time


def check_allowed(names: Sequence[str]) -> None:
    """Checks the names given to `--allow`.

    Raises:
      InputError: no field, section or part of a run has this name; or they are one string.
    """
    if isinstance(names, str):  # a sequence, too, of its letters
        raise InputError(f"allow={names!r}: is one string; give a list of names")
    fields = [f"config.{name}" for name, _ in leaves(to_dict(Config()))]
    sections = {name.rpartition(".")[0] for name in fields} - {"config"}
    known = [*fields, *sorted(sections), "corpus", "vocabulary"]
    for name in names:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1)
            hint = nearest[0] if nearest else "config.FIELD, corpus or vocabulary"
            raise InputError(f"--allow={name}: no such field or section; name {hint}")


def check_same_run(
    workdir: Path, saved: RunMeta, now: RunMeta, *, allow: Sequence[str], fits: bool
) -> list[str]:
    """Refuses to continue a run with another model, optimizer, seed or text.

    Args:
      workdir: the run's folder, for the message.
      saved: the run as it was saved.
      now: the run as it is now requested.
      allow: the names given to `--allow`, of what may differ.
      fits: whether the saved arrays have the shapes that the run now needs. If not, nothing can
        be allowed.

    Returns:
      Messages about what differs and is allowed to differ.

    Raises:
      InputError: anything else differs; the message lists all differences, old and new values.
    """
    if saved.is_converted:
        raise InputError(
            f"{workdir}: holds a converted model, not a run; train on with --init_from={workdir} "
            "in another --workdir"
        )
    changes = dict(_changes(saved, now))
    # The parameters that schedule-free learning trains are a mean of two, weighted by b1.
    if now.config.optim.name == "schedule_free" and "config.optim.b1" in changes:
        fits = False
    refused = [name for name in changes if not (fits and _is_allowed(name, allow))]
    if refused:
        remedy = (
            f"change it back, go on with --allow={','.join(refused)}, or choose another --workdir"
            if fits
            else "the saved arrays do not fit; change it back, or choose another --workdir"
        )
        what = "; ".join(changes[name] for name in refused)
        raise InputError(f"{workdir}: holds another run: {what}; {remedy}")
    return list(changes.values())


def resolve_recurrence(model: ModelConfig, batch: int, saved: RunMeta | None) -> Resolution:
    """The implementation of a run's recurrence.

    Under `model.recurrence=fast` a resumed run keeps the implementation that it was saved with,
    or warns that it cannot.

    Args:
      model: the model config of the run.
      batch: sequences that one device computes at once.
      saved: the run as it was saved; None for a new run.

    Raises:
      InputError: the implementation that the config names does not support this model here.
    """
    if not (saved and saved.recurrence and saved.config.model.recurrence == "fast"):
        return resolve(model, batch)
    before = saved.recurrence.implementation
    resolution = resolve(model, batch, saved=before)
    if model.recurrence == "fast" and resolution.implementation != before:
        _logger.warning(
            f"recurrence: this run was saved with {before} and goes on with "
            f"{resolution.implementation}, which rounds differently ({resolution.reason})"
        )
    return resolution


def _is_allowed(name: str, allow: Sequence[str]) -> bool:
    return any(name == allowed or name.startswith(f"{allowed}.") for allowed in allow)


def _changes(saved: RunMeta, now: RunMeta) -> Iterator[tuple[str, str]]:
    """(name for `--allow`, message) for every change that makes it another run."""
    for name, (old, new) in differences(saved.config, now.config).items():
        if name.startswith(_MUST_STAY) or not name.startswith(_MAY_CHANGE):
            yield f"config.{name}", f"config.{name} was {old!r}, now {new!r}"
    before, after = saved.corpus, now.corpus
    if before.sha256 != after.sha256:
        yield (
            "corpus",
            f"it was trained on another text: {before.name}, {counted(before.chars, 'character')}, "
            f"SHA-256 {before.sha256[:12]}; now {after.name}, {counted(after.chars, 'character')}, "
            f"{after.sha256[:12]}",
        )
    if saved.vocab != now.vocab:
        yield "vocabulary", _vocabulary_change(saved.vocab, now.vocab)


def _vocabulary_change(old: Vocab, new: Vocab) -> str:
    before, after = set(old.characters), set(new.characters)
    lost, gained = before - after, after - before
    what = [f"lost {code_points(sorted(lost))}"] if lost else []
    what += [f"gained {code_points(sorted(gained))}"] if gained else []
    return (
        f"the vocabulary had {counted(len(old.characters), 'character')}, now "
        f"{len(new.characters)} ({'; '.join(what) or 'the same in another order or meaning'})"
    )


def val_text_digest(ids: TokenIds, config: DataConfig) -> str:
    """SHA-256 of the validation tokens, and of how many of them an evaluation reads."""
    if isinstance(ids, StoreTokens):
        digest = hashlib.sha256(ids.identity.encode())
    else:
        digest = hashlib.sha256()
        for begin in range(0, len(ids), _CHUNK):
            digest.update(ids[begin : begin + _CHUNK].astype(np.int32).data)
    digest.update(f" {min(max_eval_chars(config), ids.size)}".encode())
    return digest.hexdigest()


def update_val_text(saved: CheckpointMeta, now: RunMeta, ids: TokenIds) -> bool:
    """Notes which text a run validates on, and forgets the best loss on another one.

    Args:
      saved: the run as it was saved; its progress is updated.
      now: the run as it is now requested.
      ids: the tokens of its validation split.

    Returns:
      Whether the validation text is the same as before.
    """
    validation, before = saved.progress.validation, saved.run
    digest = val_text_digest(ids, now.config.data)
    # Older versions did not save the digest, and evaluated the whole split.
    is_whole = ids.size <= max_eval_chars(now.config.data)
    was_same = before.config.data.split == now.config.data.split and is_whole
    is_same = validation.val_text == digest if validation.val_text else was_same
    if is_same and before.corpus.sha256 == now.corpus.sha256:
        validation.val_text = digest
        return True
    saved.progress.start_val_record(digest)
    return False
