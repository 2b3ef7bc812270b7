"""More rounds of a benchmark that has been run before: the flag --add."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

_SAME = ("machine", "python", "versions", "benchmark", "device", "small")


def added(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """One result with the rounds of both, under the date and command of the later.

    A group that only one of them has keeps its rounds.

    Raises:
      ValueError: they are of different machines, versions, benchmarks or peers.
    """
    for name in _SAME:
        if before[name] != now[name]:
            raise ValueError(f"{name} was {before[name]} and is {now[name]}: not the same rounds")
    groups = dict(before["groups"]) | dict(now["groups"])
    for name in before["groups"].keys() & now["groups"].keys():
        old, new = (result["groups"][name]["peers"] for result in (before, now))
        if old.keys() != new.keys():
            raise ValueError(f"{name}: peers were {list(old)} and are {list(new)}")
        groups[name] |= {"peers": {peer: _figure(old[peer], new[peer]) for peer in new}}
    return dict(now) | {"groups": groups}


def _figure(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    both = {name: old[name] + new[name] for name in ("seconds", "cpu_seconds", "notes")}
    derived = {
        "chars_per_second": new["chars"] / statistics.median(both["seconds"]),
        "peak_bytes": max(old["peak_bytes"], new["peak_bytes"]),
    }
    return dict(new) | both | derived
