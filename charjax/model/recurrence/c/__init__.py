"""The recurrence in C, compiled for this processor."""
