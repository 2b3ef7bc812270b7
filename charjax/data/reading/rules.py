"""How a text is read: the rules that a run saves, and by which it reads other texts too."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from charjax.conditions import check_reading
from charjax.config import DataConfig
from charjax.data.reading.decoding import is_utf8
from charjax.data.reading.documents import DocumentRules
from charjax.errors import InputError
from charjax.schema import parse


@dataclass(frozen=True, kw_only=True)
class ReadingRules:
    """How a text is read; saved with a run, so that it reads other texts in the same way.

    The fields are those of `charjax.config.DataConfig`, except that detected values, such as the
    delimiter of a CSV file, are filled in.
    """

    unit: str
    encoding: str
    newlines: str
    lowercase: bool
    start: str
    end: str
    documents: DocumentRules

    @property
    def is_utf8(self) -> bool:
        """Whether texts are UTF-8, unless a byte order mark says otherwise."""
        return self.unit == "codepoint" and is_utf8(self.encoding)

    @classmethod
    def from_config(cls, config: DataConfig) -> ReadingRules:
        """The rules that a config asks for; runs of older versions saved no others."""
        documents = DocumentRules(
            mode=config.documents,
            delimiter=config.delimiter,
            boundary=config.boundary and config.documents != "none",
            columns=config.columns,
            header=config.header,
            csv_delimiter=config.csv_delimiter,
        )
        names = {field.name for field in dataclasses.fields(cls)} - {"documents"}
        return cls(**{name: getattr(config, name) for name in names}, documents=documents)

    def with_options(self, config: DataConfig, options: Mapping[str, Any]) -> ReadingRules:
        """The rules for a file that differs from the run's own text, by flags.

        Args:
          config: that of the run.
          options: fields of `DataConfig` and their values, such as {"encoding": "latin-1"}.
            Options of one `documents` mode, such as `columns`, select that mode.

        Raises:
          InputError: there is no such field, or a value does not fit.
        """
        mode = config.documents
        if "delimiter" in options:
            mode = "delimiter"
        elif options.keys() & {"columns", "header", "csv_delimiter"}:
            mode = "rows"
        values = {"documents": mode} | dict(options)
        if values["documents"] == config.documents:
            values = {"csv_delimiter": self.documents.csv_delimiter} | values
        else:  # the run's options of another mode do not apply
            config = replace(config, delimiter="", columns=(), header=False, csv_delimiter="")
        changed = parse(DataConfig, dataclasses.asdict(config) | values, "--")
        if "encoding" in options and changed.unit == "byte":
            raise InputError("--encoding: has no effect: a token of this model is a byte")
        check_reading(changed, options)
        if changed.unit != config.unit:
            raise InputError(f"--unit: a token of this model is a {config.unit}")
        rules = ReadingRules.from_config(changed)
        return replace(rules, documents=replace(rules.documents, boundary=self.documents.boundary))

    def to_json(self) -> dict[str, Any]:
        """The rules as JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Any) -> ReadingRules:
        """The rules that `to_json` wrote.

        Raises:
          InputError: a field is unknown or missing, or has the wrong type.
        """
        return parse(cls, values, "reading")
