"""The command line `staybus`: one module a noun. Nothing heavy is imported before a command needs it."""

from .app import main

__all__ = ["main"]
