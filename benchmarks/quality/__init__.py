"""Losses on tiny Shakespeare: docs/quality.md."""
