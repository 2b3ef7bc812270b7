"""The `charjax` command: commands, flags and exit codes; no logic."""
