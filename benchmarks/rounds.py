"""What becomes of an earlier result of a benchmark that is run again."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

_SAME = ("machine", "python", "versions", "benchmark", "device", "small")


def added(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """One result with the rounds of both, under the date and command of the later: --add.

    A group that only one of them has keeps its rounds.

    Raises:
      ValueError: they are of different machines, versions, benchmarks, peers or work.
    """
    for name in _SAME:
        _same(name, before[name], now[name])
    groups = dict(before["groups"]) | dict(now["groups"])
    for name in before["groups"].keys() & now["groups"].keys():
        old, new = before["groups"][name], now["groups"][name]
        _same(f"{name}: what was measured", _work(old), _work(new))
        peers = {peer: _figure(old["peers"][peer], new["peers"][peer]) for peer in new["peers"]}
        groups[name] = new | {"peers": peers}
    return dict(now) | {"groups": groups}


def kept(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """The new result, and of the old one the groups that were not measured again.

    They stay only where machine and versions are the same.
    """
    if any(before.get(name) != now[name] for name in _SAME):
        return dict(now)
    return dict(now) | {"groups": dict(before["groups"]) | dict(now["groups"])}


def _same(name: str, before: Any, now: Any) -> None:
    if before != now:
        raise ValueError(f"{name} was {before} and is {now}")


def _work(group: Mapping[str, Any]) -> dict[str, Any]:
    """The group's settings, and the characters of each peer's unit of work."""
    if "peers" not in group:
        raise ValueError("this benchmark does not measure peers in rounds")
    settings = {name: value for name, value in group.items() if name not in ("peers", "skipped")}
    return settings | {peer: figure["chars"] for peer, figure in group["peers"].items()}


def _figure(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    both = {name: old[name] + new[name] for name in ("seconds", "cpu_seconds", "notes")}
    derived = {
        "chars_per_second": new["chars"] / statistics.median(both["seconds"]),
        "peak_bytes": max(old["peak_bytes"], new["peak_bytes"]),
    }
    return dict(new) | both | derived
