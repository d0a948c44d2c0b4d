"""staybus beside what a Python user would take in its place: `make bench-peers`. See docs/performance.md."""
