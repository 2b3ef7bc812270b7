"""Training steps, sampling and whole runs beside other frameworks: docs/performance.md."""
