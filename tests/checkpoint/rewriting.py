"""Changes what the files of a checkpoint say, as if charjax had written it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tensorstore

from charjax.checkpoint.record import _digest


def rewrite_record(change: Callable[[dict[str, Any]], Any], checkpoint: Path) -> Any:
    """Changes the values of a record, and its digest with them; returns what `change` does."""
    file = checkpoint / "meta" / "record.json"
    values = json.loads(file.read_bytes())
    del values["sha256"]
    changed = change(values)
    file.write_text(json.dumps(values | {"sha256": _digest(values)}))
    return changed


def open_arrays(checkpoint: Path) -> tensorstore.KvStore:
    """The files of a checkpoint's arrays; "params/kernel/.zarray" describes one."""
    spec = {"driver": "ocdbt", "base": f"file://{checkpoint}/state/"}
    return tensorstore.KvStore.open(spec).result()
