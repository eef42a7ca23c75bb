"""Configurations that come with the package; `--config=NAME[:ARG]` finds them by file name."""
