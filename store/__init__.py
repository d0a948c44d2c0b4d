"""All SQL, by aggregate: named statements in store/sql, and functions that take a connection (the caller owns the
transaction)."""
