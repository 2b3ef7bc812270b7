"""The `charjax` command: subcommands, flags and exit codes; no logic."""
