"""Proofs, as commands, that charjax loses nothing and is wrong about nothing in silence.

`python -m benchmarks.reliability kill --n=200 --json` does to real runs what machines and
people do to them, and counts what came of it. docs/reliability.md says what is promised.
"""
