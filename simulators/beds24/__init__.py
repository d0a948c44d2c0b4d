"""Beds24 API V2 as a real HTTP server: state, faults, webhooks, and a control API under `/_sim`."""

from simulators.beds24.app import Beds24, create_app
from simulators.beds24.faults import Call, Fault, FaultKind
from simulators.beds24.state import DEFAULT_SEED, Account, PropertySeed, RoomSeed
from simulators.beds24.webhooks import Target, WebhookSender

__all__ = [
    "DEFAULT_SEED",
    "Account",
    "Beds24",
    "Call",
    "Fault",
    "FaultKind",
    "PropertySeed",
    "RoomSeed",
    "Target",
    "WebhookSender",
    "create_app",
]
