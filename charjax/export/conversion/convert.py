"""Converts a model of another framework to a run's folder."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from charjax.checkpoint.checkpoints import Checkpoints
from charjax.checkpoint.files import UNFINISHED
from charjax.checkpoint.meta import CheckpointMeta, CorpusMeta, Platform, RunMeta, SourceMeta
from charjax.checkpoint.progress import Progress
from charjax.config import Config, DataConfig, ModelConfig, TrainConfig
from charjax.data.reading.rules import ReadingRules
from charjax.data.vocab import Vocab
from charjax.errors import HostError, InputError
from charjax.export.conversion.arrays import ConvertedModel, with_order
from charjax.export.conversion.keras import ONE_FILE, read_keras
from charjax.export.conversion.torch import read_torch, weight_files
from charjax.export.conversion.vocabulary import read_vocabulary
from charjax.model.network import parameter_count
from charjax.runtime.files import read_linked
from charjax.runtime.folder_lock import lock_file
from charjax.types import PyTree
from charjax.workdir import Workdir

SOURCES = {"torch": read_torch, "keras": read_keras}
_SUFFIXES = {"torch": (".safetensors", ".pt", ".pth"), "keras": (".keras", ".h5")}
# What a conversion that was killed has left at most, in the folder and in `checkpoints`.
_LEFT = {".lock", ".unsaved.tmp", ".unsaved", ".run.json.tmp", "run.json", "checkpoints"}
_logger = logging.getLogger(__name__)


def convert(file: Path, source: str, vocabulary: Path, out: Path) -> None:
    """Writes a run's folder whose only checkpoint, of step 0, has the weights of a file.

    Args:
      file: the weights; see `read_torch` and `read_keras`.
      source: a key of `SOURCES`.
      vocabulary: the file of the vocabulary; see `read_vocabulary`.
      out: the folder to write, which must be empty or not exist; or have what is left of a
        conversion that was killed.

    Raises:
      InputError: a file is missing or damaged, charjax has no such model, or `out` is in use.
      HostError: a file cannot be read or written.
    """
    workdir = Workdir(out)
    _check_new(workdir)
    for other, suffixes in _SUFFIXES.items():
        if other != source and file.suffix.lower() in suffixes:
            raise InputError(f"{file}: has the name of a file of {other}; give --from={other}")
    if _is_of_tensorflow(file):
        raise InputError(
            f"{file}: is of TensorFlow, no .keras or .weights.h5 file of Keras 3; {ONE_FILE}"
        )
    digest = hashlib.sha256()
    with _named_errors(file):
        for part in weight_files(file):
            digest.update(read_linked(part))
        model = SOURCES[source](file)
    with _named_errors(vocabulary, "--vocabulary="):
        found = read_vocabulary(vocabulary, model.vocab_size)
    config, params = model.config, with_order(model.params, found.order)
    meta = _meta(config, found.vocab, params, SourceMeta(source, str(file), digest.hexdigest()))
    _write(workdir, params, meta)
    _logger.info(
        "%s: %s, %s, vocabulary of %d, %s parameters; %s",
        out,
        config.summary,
        f"embedding of {config.embed}" if config.embed else "one-hot input",
        len(found.vocab),
        f"{parameter_count(params):,}",
        _activations(model),
    )


def _check_new(workdir: Workdir) -> None:
    """Raises InputError for a folder with more than a killed conversion leaves, and for a file."""
    out, names = workdir.path, set()
    if out.is_dir():
        names = {path.name for path in out.iterdir()}
    is_started = ".unsaved" in names or "run.json" not in names
    is_saved = any(UNFINISHED not in path.name for path in workdir.checkpoints.glob("*"))
    if (out.exists() and not out.is_dir()) or names - _LEFT or is_saved or not is_started:
        raise InputError(f"--out={out}: exists; name a new folder")


def _is_of_tensorflow(file: Path) -> bool:
    """Whether this is a SavedModel or a checkpoint: prefix of files, one of them, their folder."""
    is_part = re.search(r"\.index$|\.data-\d+-of-\d+$|^saved_model\.pb$", file.name)
    is_prefix = Path(f"{file}.index").exists() and not file.exists()
    is_folder = any((*file.glob("saved_model.pb"), *file.glob("*.index")))
    return bool(is_part) or is_prefix or is_folder


def _activations(model: ConvertedModel) -> str:
    """What a model's arrays do not show, and whether its file said it."""
    named = {"gru": "reset_after with sigmoid and tanh", "lstm": "sigmoid and tanh", "rnn": "tanh"}
    words = named[model.config.cell]
    if model.are_layers_checked:
        return f"its layers have {words}"
    return f"assumed, as the file does not say it: {words}, and nothing between the layers"


def _meta(model: ModelConfig, vocab: Vocab, params: PyTree, source: SourceMeta) -> RunMeta:
    """The run's metadata, with a placeholder for the text, which is unknown."""
    documents = "files" if vocab.boundary else "none"
    config = Config(
        data=DataConfig(unit=vocab.unit, unk=vocab.unk, documents=documents),
        model=model,
        train=TrainConfig(max_steps=1),
    )
    notice = f"converted from {source.kind}; the text that it was trained on is not known"
    return RunMeta(
        config=config,
        vocab=vocab,
        corpus=CorpusMeta(f"unknown text of {Path(source.path).name}", source.sha256, 0, notice),
        reading=ReadingRules.from_config(config.data),
        parameters=parameter_count(params),
        platform=Platform.current(),
        recurrence=None,
        source=source,
    )


def _write(workdir: Workdir, params: PyTree, meta: RunMeta) -> None:
    with workdir.claim():
        _check_new(workdir)  # again: meanwhile another process may have written it
        with _emptied_after_errors(workdir.path), Checkpoints(workdir.checkpoints) as checkpoints:
            workdir.start()
            workdir.write_run(meta.to_json())
            record = CheckpointMeta(meta, Progress(), workdir.log_sizes()).to_json()
            checkpoints.save(0, {"params": params}, record, val_loss=None)
            workdir.mark_saved()


@contextlib.contextmanager
def _emptied_after_errors(folder: Path) -> Iterator[None]:
    """A context after whose errors a locked folder is empty, so that a command can be repeated."""
    try:
        yield
    except BaseException:
        for entry in {*folder.iterdir()} - {lock_file(folder)}:
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def _named_errors(file: Path, flag: str = "") -> Iterator[None]:
    """A context manager that adds the file's name to the messages of errors."""
    try:
        yield
    except InputError as error:
        message = str(error)
        raise InputError(message if str(file) in message else f"{flag}{file}: {message}") from None
    except OSError as error:
        if isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError):
            raise InputError(f"{flag}{file}: {error.strerror}; name a file") from None
        raise HostError(f"{flag}{file}: {error.strerror or error}; give access to it") from error
