"""Settings: environment variables `STAYBUS_…`, else a TOML file named by STAYBUS_CONFIG. Vendor secrets are never here."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import AliasChoices, Field, ValidationError, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

SCHEMES = {"database_url": ("postgresql", "postgres"), "amqp_url": ("amqp", "amqps")}


class SettingsError(Exception):
    """Which setting does not fit, and what would."""


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="STAYBUS_", extra="ignore", populate_by_name=True)

    database_url: str = Field(
        validation_alias=AliasChoices("STAYBUS_DATABASE_URL", "DATABASE_URL", "database_url"), repr=False
    )
    amqp_url: str = Field(validation_alias=AliasChoices("STAYBUS_AMQP_URL", "RABBITMQ_URL", "amqp_url"), repr=False)
    amqp_ca_file: str | None = None
    key_file: Path = Path(".staybus/key")
    host: str = "127.0.0.1"
    ingress_port: int = 8080
    inbound_port: int = 9101  # health and metrics of each process
    outbound_port: int = 9102
    scheduler_port: int = 9103
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    grace: float = Field(default=25.0, ge=0)  # seconds to finish what is in hand at a stop
    prefetch: int = Field(default=100, ge=1, le=2000)  # messages; each brings up to 200 events
    vendor_timeout: float = Field(default=30.0, gt=0)  # seconds for one call
    pull_interval: float = Field(default=300.0, ge=0)  # seconds between two pulls of a connection; 0: none
    pull_overlap: float = Field(default=600.0, ge=0)  # seconds before the last one's begin from which the next one asks
    retention_days: int = 30  # finished events, logs and results
    dead_letter_retention_days: int = 30  # from when a dead letter was closed

    @field_validator("database_url", "amqp_url")
    @classmethod
    def _is_url(cls, url: str, info: ValidationInfo) -> str:
        """What is read amiss would be called by the wrong part of it, which may be the password."""
        schemes = SCHEMES[str(info.field_name)]
        if not _fits(url, schemes):
            raise PydanticCustomError(
                "no_url",
                f"the form is {schemes[0]}://user:password@host:port/name; in a password / is %2F, # %23, ? %3F, @ %40",
            )
        return url

    @field_validator("retention_days", "dead_letter_retention_days")
    @classmethod
    def _at_least_a_day(cls, days: int) -> int:
        if days < 1:
            raise PydanticCustomError(
                "too_short", "at least 1: a vendor's resend within 24 hours is known by the row of its first"
            )
        return days

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the base class's signature
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the same
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        file = os.environ.get("STAYBUS_CONFIG")
        toml = (TomlConfigSettingsSource(settings_cls, toml_file=file),) if file else ()
        return (init_settings, env_settings, *toml)


def _fits(url: str, schemes: tuple[str, ...]) -> bool:
    try:
        parts = urlsplit(url)
        hosts = parts.netloc.rpartition("@")[2].split(",")
        _ = [urlsplit(f"//{host}").port for host in hosts]  # which a bare / in the password would cut in two
    except ValueError:
        return False
    in_its_place = parts.netloc.count("@") == url.count("@") < 2
    # The client of the database asks several of them in turn, the broker's reads one.
    few = len(hosts) == 1 or (schemes == SCHEMES["database_url"] and all(hosts))
    return parts.scheme in schemes and url[len(parts.scheme) :].startswith("://") and in_its_place and few


def load() -> Settings:
    """raises SettingsError"""
    try:
        return Settings()
    except ValidationError as error:
        faults = [
            f"STAYBUS_{str(fault['loc'][0]).upper().removeprefix('STAYBUS_')}: {fault['msg']}"
            for fault in error.errors()
        ]
        raise SettingsError("; ".join(faults)) from error
