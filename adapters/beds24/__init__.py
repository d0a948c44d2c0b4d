"""Beds24: API V2 and booking webhooks (docs/vendors/beds24.md)."""

from .client import Beds24

adapter = Beds24()

__all__ = ["adapter"]
