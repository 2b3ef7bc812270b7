"""Sampling: charjax, an eager torch loop, and a plain jitted scan over a Flax cell.

python -m benchmarks.performance.sample
"""

from __future__ import annotations

from typing import Any

from benchmarks.common import Peer, count, measure_group, parser
from benchmarks.performance.goals import BF16, F32, INT8
from benchmarks.workload import Shape, make_shape

OURS = (F32, BF16, INT8)
STREAMS = (1, 64)


def peers(shape: Shape, streams: int, chars: int) -> list[Peer]:
    """The sampler and the two loops that people write."""
    where: dict[str, Any] = {"shape": shape, "streams": streams, "chars": chars}
    ours = "benchmarks.peers.with_charjax:sampler"
    return [
        *(Peer(name, ours, where | {"dtype": name.removeprefix("charjax ")}) for name in OURS),
        Peer("torch eager", "benchmarks.peers.with_torch:sample", where),
        Peer("plain scan", "benchmarks.peers.with_flax:sample", where),
    ]


def main() -> None:
    """Writes `results/sample_<device>.json`."""
    flags = parser(__doc__)
    flags.add_argument("--cells", nargs="+", default=["gru", "lstm"], choices=("gru", "lstm"))
    flags.add_argument("--chars", type=count, help="per text and call; default 1024, if small 64")
    args = flags.parse_args()
    for cell in args.cells:
        shape = make_shape(small=args.small, cell=cell)
        for streams in STREAMS:
            found = peers(shape, streams, args.chars or (64 if args.small else 1024))
            group, fields = f"{cell} {streams}", {"streams": streams, "shape": shape}
            measure_group("sample", group, found, args, OURS, **fields)


if __name__ == "__main__":
    main()
