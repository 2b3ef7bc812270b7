"""A shortened run of configs/shakespeare_gru.py, and a plain Flax loop of the same model.

python -m benchmarks.performance.end_to_end
python -m benchmarks.performance.end_to_end --steps=4500 --rounds=1     the whole of it
"""

from __future__ import annotations

import tempfile

from benchmarks.common import Peer, check, count, figure_of, finish, measure, parser, show
from benchmarks.performance.goals import BARE, TRAINING

LAUNCH, PLAIN = "launch.py", "plain flax loop"
LAUNCH_F32 = "launch.py, float32"  # --config.model.dtype=float32
OURS = (LAUNCH, LAUNCH_F32, TRAINING)


def peers(steps: int, compiled: str, *, small: bool) -> list[Peer]:
    """Two loops and a bare step, each with its own compilation cache.

    Args:
      steps: of a run.
      compiled: the folder that holds the caches.
      small: a tiny model, to try it out.
    """
    tasks = {LAUNCH: "launch", LAUNCH_F32: "launch_float32", PLAIN: "plain", BARE: "bare"}
    return [
        Peer(
            name,
            f"benchmarks.peers.whole_run:{task}",
            {"steps": steps, "small": small},
            env={
                "JAX_COMPILATION_CACHE_DIR": f"{compiled}/{task}",
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
            },
        )
        for name, task in tasks.items()
    ]


def main() -> None:
    """Writes `results/end_to_end_<device>.json`."""
    flags = parser(__doc__)
    flags.add_argument("--steps", type=count, help="of the run's 4500; default 500, if small 20")
    args = flags.parse_args()
    steps = args.steps or (20 if args.small else 500)
    with tempfile.TemporaryDirectory() as compiled:
        found = peers(steps, compiled, small=args.small)
        measured = measure(found, args)
    if LAUNCH in measured["peers"]:  # the training speed that it logs, beside the bare step's
        notes = measured["peers"][LAUNCH]["notes"]
        rounds = [{"seconds": 1 / note["training_chars_per_second"]} for note in notes]
        measured["peers"][TRAINING] = figure_of(rounds, chars=1)
    show(f"configs/shakespeare_gru.py, {steps} steps", measured, OURS)
    finish("end_to_end", args, {"shakespeare": measured | {"steps": steps}})
    check(measured, (*OURS, BARE))


if __name__ == "__main__":
    main()
