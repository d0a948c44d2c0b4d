"""staybus's own messages and value types. Imports nothing of ours."""
