"""The metadata that a run saves with its arrays: what identifies the run, and its progress."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from charjax import schema
from charjax.checkpoint.progress import Progress
from charjax.checkpoint.record import Record
from charjax.conditions import from_saved
from charjax.config import Config, to_dict
from charjax.data.reading.rules import ReadingRules
from charjax.data.vocab import Vocab
from charjax.errors import CheckpointError, InputError
from charjax.model.recurrence.resolution import Resolution
from charjax.runtime.versions import version_of
from charjax.workdir import LOGS

_PACKAGES = ("charjax", "jax", "flax", "optax", "orbax-checkpoint", "numpy")


@dataclass(frozen=True)
class CorpusMeta:
    """Which text a run was trained on; see `charjax.data.corpus.Corpus`."""

    name: str
    sha256: str
    chars: int
    notice: str


@dataclass(frozen=True)
class Platform:
    """Where a run was trained: versions of packages, kind of device, number of devices."""

    versions: Mapping[str, str]
    device: str
    devices: int

    @classmethod
    def current(cls) -> Platform:
        """The platform of this process."""
        import jax  # here, so that metadata can be read without importing jax

        return cls(
            versions={name: version_of(name) for name in _PACKAGES},
            device=jax.devices()[0].device_kind,
            devices=jax.device_count(),
        )


@dataclass(frozen=True)
class SourceMeta:
    """The model that the first weights of a run come from, by `init_from` or by conversion.

    Attributes:
      kind: "charjax", "torch" or "keras".
      path: the path as the user gave it.
      sha256: digest of the converted file or of its shards, or of all weights of a charjax model.
      step: the step of a charjax checkpoint; 0 for a converted file.
      vocabulary: `Vocab.to_json` of a charjax model; None for a converted file.
    """

    kind: str
    path: str
    sha256: str
    step: int = 0
    vocabulary: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class RunMeta:
    """What identifies a run: the content of `run.json`, and a part of every checkpoint's metadata.

    Attributes:
      config: as the user gave it, except that `model.dtype=auto` is resolved.
      vocab: the vocabulary of the corpus.
      corpus: the name and digest of the text.
      reading: how the text was read.
      parameters: number of trained parameters.
      platform: the machine and the versions of packages.
      recurrence: which implementation computes the recurrence; None in a run saved before this
        was recorded.
      source: the model that the first weights come from; None if they were drawn at random.
    """

    config: Config
    vocab: Vocab
    corpus: CorpusMeta
    reading: ReadingRules
    parameters: int
    platform: Platform
    recurrence: Resolution | None
    source: SourceMeta | None = None

    @property
    def resolved_config(self) -> Config:
        """The config, with the resolved implementation as its `model.recurrence`."""
        if self.recurrence is None:
            return self.config
        model = replace(self.config.model, recurrence=self.recurrence.implementation)
        return replace(self.config, model=model)

    @property
    def is_converted(self) -> bool:
        """Whether its weights come from a file of torch or Keras, which does not name its text."""
        return self.source is not None and self.source.kind != "charjax"

    @property
    def base_model(self) -> SourceMeta | None:
        """The charjax model that it was fine-tuned from; None if it was not."""
        return None if self.is_converted else self.source

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values; no `source` if it is None, as in older versions."""
        source = {"source": dataclasses.asdict(self.source)} if self.source else {}
        return source | {
            "config": to_dict(self.config),
            "vocabulary": self.vocab.to_json(),
            "corpus": dataclasses.asdict(self.corpus),
            "reading": self.reading.to_json(),
            "parameters": self.parameters,
            **dataclasses.asdict(self.platform),
            "recurrence": self.recurrence and self.recurrence._asdict(),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> RunMeta:
        """The metadata that `to_json` wrote.

        Raises:
          InputError: a field is missing or has another type, or this version of charjax cannot read
            the config or the vocabulary.
        """
        names = (*_RunJson._fields, *(field.name for field in dataclasses.fields(Platform)))
        known = {name: values[name] for name in names if name in values}
        fields, platform = schema.parse_pair(_RunJson, Platform, known, "run")
        config = from_saved(fields.config)
        if fields.reading is None:
            reading = ReadingRules.from_config(config.data)
        else:
            reading = ReadingRules.from_json(fields.reading)
        return cls(
            config=config,
            vocab=Vocab.from_json(fields.vocabulary),
            corpus=fields.corpus,
            reading=reading,
            parameters=fields.parameters,
            platform=platform,
            recurrence=fields.recurrence,
            source=fields.source,
        )


class _RunJson(NamedTuple):
    """The JSON of a `RunMeta` without its `platform`, for `schema.parse_pair`."""

    config: Mapping[str, Any]
    vocabulary: Mapping[str, Any]
    corpus: CorpusMeta
    parameters: int
    reading: Mapping[str, Any] | None = None
    recurrence: Resolution | None = None
    source: SourceMeta | None = None


@dataclass(frozen=True)
class CheckpointMeta:
    """The metadata of a checkpoint.

    Attributes:
      run: what identifies the run.
      progress: how far the run has come.
      log_sizes: bytes of each log by file name; a resumed run truncates its logs to these.
    """

    run: RunMeta
    progress: Progress
    log_sizes: Mapping[str, int]

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values; those of `run` are merged into the top level."""
        others = {"progress": self.progress.to_json(), "logs": dict(self.log_sizes)}
        return self.run.to_json() | others

    @classmethod
    def of(cls, record: Record, directory: Path) -> CheckpointMeta:
        """The metadata that `to_json` wrote into a record.

        Args:
          record: that of a checkpoint.
          directory: the folder of the checkpoints, for the message.

        Raises:
          CheckpointError: this version cannot read them.
        """
        try:
            run = RunMeta.from_json(record.meta)
            progress = Progress.from_json(record.meta.get("progress"))
            log_sizes = schema.parse(Mapping[str, int], record.meta.get("logs"), "logs")
            if log_sizes.keys() != set(LOGS) or min(log_sizes.values()) < 0:
                raise InputError(f"logs: must have the sizes of {' and '.join(LOGS)}")
        except InputError as error:
            raise CheckpointError(
                f"{directory / str(record.step)}: this version of charjax cannot read the run's "
                f"metadata ({error}); use the version that wrote them, or start again in another "
                "--workdir"
            ) from None
        return cls(run, progress, log_sizes)
