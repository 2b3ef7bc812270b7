"""Packs text of any size into a store, in constant memory; see `charjax.data.packed.store`.

A shard is done when its record is in the store. So a process that is killed goes on with the
shards that have none, and several processes can each pack some of the shards.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import tensorstore as ts

from charjax.data.packed.files import HOST_ERRORS, few_retries, open_files, write_file
from charjax.data.packed.index import (
    FORMAT,
    INDEX,
    PLAN,
    Index,
    Shard,
    ShardRecord,
    ShardText,
    is_plan,
    json_bytes,
    record_name,
)
from charjax.data.packed.plan import Plan
from charjax.data.packed.shard_writer import ShardWriter
from charjax.data.packed.store import TextStore, has_plan
from charjax.data.reading.decoding import FLAG_PREFIX
from charjax.data.reading.documents import missing_delimiter
from charjax.data.reading.reader import Findings
from charjax.errors import HostError, InputError, StoreError, first_line
from charjax.runtime.display import ProgressFn, no_progress
from charjax.runtime.files import as_os_errors
from charjax.runtime.locks import lock
from charjax.runtime.paths import is_address

_SAME = ("reading", "field", "inputs")  # what a plan and a store of the same text have in common
_LOCKS = "process-*-of-*.lock"  # of the processes that pack


def pack(
    plan: Plan, out: str, *, process: tuple[int, int] = (0, 1), progress: ProgressFn = no_progress
) -> Index | None:
    """Packs files into a store, or goes on where an earlier call was stopped.

    Args:
      plan: from `make_plan`.
      out: the store: a local folder, or an address such as gs://bucket/folder.
      process: (p, n): pack the shards p, p + n, p + 2 n ... of n processes.
      progress: called with the bytes of the inputs that were packed, and of all of them.

    Returns:
      The index of the complete store; None if other processes have shards left to pack.

    Raises:
      InputError: a file is missing or malformed, the text is empty, or the store holds another.
      HostError: a file cannot be read or written.
    """
    with _as_charjax_errors(out):
        is_alone = process == (0, 1) and not is_address(out)
        if not (is_alone and _is_without_shard(Path(out))):
            index = _check_same(open_files(out, few_retries()), out, plan)
            if index is not None:
                return index
        store = open_files(out)
        write_file(store, PLAN, _plan_bytes(plan))
        with _locked(out, process):
            _pack_shards(store, plan, process, progress)
        return _write_index(store, out, plan)


@contextlib.contextmanager
def _as_charjax_errors(out: str) -> Iterator[None]:
    """Turns errors of TensorStore and of the file system into those of charjax; they name `out`."""
    try:
        with as_os_errors():
            yield
    except NotImplementedError as error:
        raise InputError(
            f"--out={out}: cannot be written to ({error}); choose a folder, or an address such as "
            "gs://bucket/folder"
        ) from error
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(f"--out={out}: not a folder; choose another --out") from error
    except (OSError, ValueError) as error:
        if isinstance(error, ValueError) and not str(error).startswith(HOST_ERRORS):
            raise
        reason = getattr(error, "strerror", None) or first_line(error)
        raise HostError(
            f"--out={out}: cannot be written ({reason[:300]}); check rights, space and the "
            "network, then start the same command again"
        ) from error


def _pack_shards(
    store: ts.KvStore, plan: Plan, process: tuple[int, int], progress: ProgressFn
) -> None:
    sizes = [sum(segment.size for segment in shard) for shard in plan.shards]
    first, step = process
    done, findings = 0, Findings()
    try:
        for number in range(first, len(plan.shards), step):
            if store.read(record_name(number)).result().state == "missing":
                findings.add(ShardWriter(store, number, plan).write())
            done += sizes[number]
            progress(done, sum(sizes[first::step]))
    finally:
        findings.log(FLAG_PREFIX)


def _is_without_shard(folder: Path) -> bool:
    """Whether an earlier pack has ended before its first shard, as at a file that is refused.

    Then other options than those of its plan may be taken.
    """
    if (folder / INDEX).exists() or any(folder.glob("shards/*")) or not has_plan(folder):
        return False
    for path in folder.glob(_LOCKS):
        with open(path, "ab") as file:
            try:
                lock(file.fileno())
            except BlockingIOError:  # it is still at work
                return False
    return True


@contextlib.contextmanager
def _locked(out: str, process: tuple[int, int]) -> Iterator[None]:
    """Locks the part of this process in a local store.

    Raises:
      HostError: another process has it, or a part of another number of processes.
    """
    if is_address(out):
        yield
        return
    suffix = f"-of-{process[1]}.lock"
    paths = [Path(out) / f"process-{process[0]}{suffix}"]
    paths += (path for path in Path(out).glob(_LOCKS) if not path.name.endswith(suffix))
    with contextlib.ExitStack() as opened:
        for path in paths:
            try:
                lock(opened.enter_context(open(path, "ab")).fileno())
            except BlockingIOError:
                raise HostError(
                    f"{path}: locked: another process packs this part; wait for it, or give each "
                    "its --process_id, and all the same --num_processes"
                ) from None
        yield
        for path in paths:
            with contextlib.suppress(PermissionError):  # Windows deletes no file that is open
                path.unlink(missing_ok=True)


def _plan_bytes(plan: Plan) -> bytes:
    """The content of `plan.json`."""
    values = {"reading": plan.reading.to_json(), "field": plan.field}
    return json_bytes(values | {"format": FORMAT, "inputs": plan.inputs, "shards": plan.shards})


def _check_same(store: ts.KvStore, out: str, plan: Plan) -> Index | None:
    """Refuses a store of another text; returns the index of one that is complete.

    Raises:
      InputError: the store holds another text, or the folder other files.
      StoreError: its index is damaged.
    """
    wanted = json.loads(_plan_bytes(plan))
    # In this order: meanwhile other processes may write the plan, or the index, and then no plan.
    files = () if is_address(out) else tuple(Path(out).glob("*"))
    planned = store.read(PLAN).result()
    if store.read(INDEX).result().state != "missing":
        index = TextStore(out).index
        same = all(wanted[name] == json.loads(json_bytes(index._asdict()))[name] for name in _SAME)
    else:
        index, is_new = None, planned.state == "missing"
        # TensorStore first writes a plan to a file beside it.
        has_others = any(not (p.match(_LOCKS) or p.name.startswith(PLAN)) for p in files)
        if (is_new and has_others) or not (is_new or is_plan(planned.value)):
            raise InputError(f"--out={out}: holds other files; choose another --out")
        same = is_new or planned.value == _plan_bytes(plan)
    if not same:
        raise InputError(
            f"--out={out}: holds a text packed from other files or with other options; choose "
            "another --out, or delete it"
        )
    return index


def _write_index(store: ts.KvStore, out: str, plan: Plan) -> Index | None:
    """Writes `store.json` if every shard is done.

    Raises:
      InputError: the text is empty, or no file has the delimiter of documents.
      StoreError: a record is damaged.
    """
    texts: list[ShardText] = []
    findings = Findings()
    shards: list[Shard] = []
    for name in map(record_name, range(len(plan.shards))):
        found = store.read(name).result()
        if found.state == "missing":
            return None
        try:
            text, digests = ShardRecord.from_bytes(found.value)
        except InputError as error:
            raise StoreError(
                f"--out={out}: {name}: damaged ({error}); delete this file, then start the same "
                "command again"
            ) from error
        texts.append(text)
        findings.add(Findings([*text.notices], [*digests.with_bom]))
        digest = hashlib.sha256(found.value).hexdigest()
        shards.append(Shard(text.tokens, text.documents, text.chars, digest))
    chars = sum(shard.chars for shard in shards)
    if not chars:
        raise InputError(f"--out={out}: the text is empty; delete {out}, and pack one that is not")
    documents = plan.reading.documents
    if documents.mode == "delimiter" and not any(text.has_delimiter for text in texts):
        missing = missing_delimiter(documents.delimiter, FLAG_PREFIX, "any of the files")
        raise InputError(f"{missing}, delete {out}, and pack again")
    identity = {"reading": plan.reading.to_json(), "shards": [shard.record for shard in shards]}
    index = Index(
        reading=plan.reading.to_json(),
        characters="".join(dict.fromkeys(c for text in texts for c in text.alphabet)),
        chars=chars,
        notices=findings.all_notices(),
        field=plan.field,
        inputs=plan.inputs,
        shards=tuple(shards),
        sha256=hashlib.sha256(json_bytes(identity)).hexdigest(),
    )
    write_file(store, INDEX, index.to_bytes())
    store.write(PLAN, None).result()  # deletes it
    return index
