"""Benchmarks, grouped by the page of docs/ that they fill; `results/` has what they measured."""
