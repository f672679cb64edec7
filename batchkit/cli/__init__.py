"""The command: argv and the environment in, an exit code out."""
