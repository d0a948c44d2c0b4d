"""The HTTP edge: verify, record, answer. Thin: nothing here interprets a vendor's data beyond its identity."""
