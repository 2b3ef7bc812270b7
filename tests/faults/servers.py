"""Misbehaving servers on loopback: no bad file is kept, no download takes a minute.

The downloads use the default time-outs and run concurrently.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from charjax.data.sources.download import fetch
from charjax.data.sources.transfer import RemoteFile
from charjax.errors import HostError
from tests.data.loopback import BODY, MISBEHAVIOURS, Call, Server

_SECONDS = 60


def check_servers(n: int, folder: Path, report: Callable[[str], None]) -> dict[str, Any]:
    """Downloads from the first n servers (the slowest are last); returns the page's figures."""
    chosen = dict(list(MISBEHAVIOURS.items())[:n])
    with ThreadPoolExecutor(max_workers=len(chosen)) as pool:
        calls = {k: pool.submit(_ask, k, behave, folder) for k, behave in chosen.items()}
        cases = {name: call.result() for name, call in calls.items()}
    for name, (seconds, message, _) in cases.items():
        report(f"{name}: {seconds:.1f} s: {message}")
    slowest = max(seconds for seconds, _, _ in cases.values())
    kept = [name for name, (_, _, files) in cases.items() if files]
    accepted = [name for name, (_, message, _) in cases.items() if not message]
    return {
        "servers": {name: round(seconds, 2) for name, (seconds, _, _) in cases.items()},
        "refused_in_one_line": len(cases) - len(accepted),
        "bad_files_kept": len(kept),
        "slowest_s": round(slowest, 1),
        "over_60_s": sum(seconds > _SECONDS for seconds, _, _ in cases.values()),
        "problems": kept + accepted,
        "passed": not kept and not accepted and slowest <= _SECONDS,
    }


def _ask(name: str, behave: Callable[[Call], object], folder: Path) -> tuple[float, str, list[str]]:
    """(seconds, the one-line error or "", files left behind)."""
    server, target = Server(behave), folder / name / "corpus.txt"
    started, message = time.monotonic(), ""
    try:
        fetch(
            RemoteFile(
                url=f"{server.url}/corpus.txt",
                sha256=hashlib.sha256(BODY).hexdigest(),
                max_bytes=len(BODY),
            ),
            target,
        )
    except HostError as error:
        message = str(error)
    seconds = time.monotonic() - started
    server.close()
    if "\n" in message:
        message = ""
    return seconds, message, [p.name for p in target.parent.glob("*")]
