"""Runs on several devices and processes: docs/scaling.md."""
