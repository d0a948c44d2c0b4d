"""One company's account at one vendor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Connection:
    """A row of `connections`, without its secrets.

    config      the settings that the vendor's manifest declares, strings and numbers as JSON
    currencies  external property id → ISO 4217 code, as known from `int_properties`
    """

    id: str
    company_id: str
    vendor: str
    name: str
    status: str = "active"
    external_account_id: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    currencies: Mapping[str, str] = field(default_factory=dict)

    def currency_of(self, property_external_id: str) -> str | None:
        """ISO 4217; the property's own, else the connection's `currency` setting, else not known."""
        return self.currencies.get(property_external_id) or self.config.get("currency")
