"""Fault injection: real runs are killed, stopped, damaged and starved, and then checked.

`python -m tests.faults FAULT` runs one of them in full; `test_faults.py` runs short forms in the
normal suite and the full ones under `python -m pytest -m slow tests/faults`. docs/reliability.md
lists what charjax promises, and its table is made from the results.
"""
