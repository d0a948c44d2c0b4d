"""What the line on stderr says of an error.

Classes are named and not imported, because importing them costs what a quick command does not need: a class that was
never loaded was never raised. A test holds the names to the real classes.
"""

from __future__ import annotations

# Their texts were written for operators and hold neither secrets nor guest data.
SAY_IT_THEMSELVES = frozenset(
    {
        "ops.cli.output.Refused",
        "ops.settings.SettingsError",
        "ops.fleet.NotReadyError",
        "ops.stack.errors.StackError",
        "store.seal.SealError",
        "topology.apply.TopologyError",
        "adapters.registry.RegistryError",
        "adapters.registry.UnknownVendorError",
        "adapters.errors.AdapterError",
        "schemas.commands.InvalidCommandError",
    }
)
MEANINGS = {
    "asyncpg.exceptions.UndefinedTableError": "the database has no staybus tables, or older ones: run `staybus db upgrade`",
    "asyncpg.exceptions.UndefinedColumnError": "the database has older tables than this staybus: run `staybus db upgrade`",
    "asyncpg.exceptions.UndefinedFunctionError": "the database has older functions than this staybus: run `staybus db upgrade`",
    "asyncpg.exceptions.InvalidCatalogNameError": "there is no such database: create it, or correct STAYBUS_DATABASE_URL",
    "asyncpg.exceptions.InvalidAuthorizationSpecificationError": (
        "the database refuses this user or password: correct STAYBUS_DATABASE_URL"
    ),
    # Its own text quotes the value: "invalid input syntax …: <the value>".
    "asyncpg.exceptions.DataError": (
        "the database cannot keep one of the values: text must be UTF-8 without NUL characters, a number within 64 bits"
    ),
}
_POSTGRES = "asyncpg.exceptions._base.PostgresError"


def describe(error: BaseException) -> str:
    """One line where the error's own text is one; never a value that came from outside."""
    kinds = [f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__]
    if SAY_IT_THEMSELVES.intersection(kinds):
        return str(error)
    for kind in kinds:
        if kind in MEANINGS:
            return MEANINGS[kind]
    name = type(error).__name__
    if _POSTGRES in kinds:
        return f"the database refuses it: {name}: {getattr(error, 'message', '')}"
    if (
        original := getattr(error, "orig", None)
    ) is not None:  # SQLAlchemy's wrapping; its own text repeats all the SQL
        return f"the database refuses it: {str(original).partition(chr(10))[0]}"
    if isinstance(error, OSError):
        return str(error) or name
    return f"unexpected {name}; STAYBUS_DEBUG=1 shows where. Please report it"
