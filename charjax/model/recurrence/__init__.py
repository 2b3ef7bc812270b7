"""The recurrence of one layer over a sequence: one operation, several implementations."""
