"""The command `hf-vse`.

`main.main` runs it; each command is a module with `parse` and `run`, and `command` holds what they share. No other room
imports this one.
"""
