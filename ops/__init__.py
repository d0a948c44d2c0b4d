"""Everything that puts the parts together: settings, wiring, command line, local stack, demo."""
