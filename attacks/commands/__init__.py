"""The subcommands of `attack` that have modules of their own, and their common options."""
