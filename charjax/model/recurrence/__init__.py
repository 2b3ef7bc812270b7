"""The recurrence: one layer over a sequence, one operation with several implementations."""
