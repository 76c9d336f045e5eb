"""The command `hf-vse`.

`main.main` runs it. Each command is a module with `parse` and `run`; `command` holds what they share. No other room
imports this one.
"""
