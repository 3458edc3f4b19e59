"""The `volnet` command: a file a subcommand, put together in `main`."""
