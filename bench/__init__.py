"""Measures staybus on the local stack: `make bench`. See docs/performance.md for how to read it."""
