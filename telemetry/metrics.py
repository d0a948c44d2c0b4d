"""The metrics of design §11. Labels are vendors, operations and closed words, never ids without bound."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

_SHORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 5)
_LONG = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 15, 60, 300, 1800, 7200)

WEBHOOKS = Counter("staybus_webhooks", "Webhook requests by what became of them", ["vendor", "result"])
WEBHOOK_ACK = Histogram("staybus_webhook_ack_seconds", "From the first byte to our answer", buckets=_SHORT)
SIGNATURE_FAILURES = Counter("staybus_signature_failures", "Webhooks refused for their signature", ["vendor"])
EVENT_LATENCY = Histogram(
    "staybus_event_latency_seconds", "From recorded to done", ["vendor", "direction"], buckets=_LONG
)
EVENTS = Counter("staybus_events", "Settled events", ["vendor", "direction", "outcome"])
ATTEMPTS = Counter("staybus_attempts", "Attempts that failed, by fault", ["vendor", "fault"])
VENDOR_REQUESTS = Histogram(
    "staybus_vendor_request_seconds", "Calls to vendors", ["vendor", "operation", "status"], buckets=_LONG
)
CIRCUIT = Gauge(
    "staybus_circuit_state",
    "1 while no call of the kind is tried because the vendor does not answer",
    ["vendor", "connection", "kind"],
)
RATE_BUDGET = Gauge("staybus_rate_budget_remaining", "Units left of a vendor's rate limit", ["vendor", "connection"])
DEAD_LETTERS = Gauge("staybus_dead_letters", "Open dead letters", ["vendor", "owner", "operation"])
DEAD_LETTER_OLDEST = Gauge("staybus_dead_letter_oldest_seconds", "Age of the oldest open dead letter")
UNPUBLISHED = Gauge("staybus_unpublished_events", "Recorded events that the broker has not confirmed yet")
QUEUE_DEPTH = Gauge("staybus_queue_depth", "Messages ready in a queue", ["queue"])
LANE_AGE = Gauge("staybus_lane_age_seconds", "Age of the oldest lane head that is not finished")
RELAYED = Counter("staybus_relayed", "Wake-ups that the scheduler published, by reason", ["reason"])
HELD_BACK = Counter(
    "staybus_held_back", "Facts left to the scheduler, because their company fills a queue that is late", ["vendor"]
)
CONSUMING = Gauge("staybus_consuming", "1 while this process consumes the queue", ["queue"])
BROKER_CONNECTED = Gauge("staybus_broker_connected", "1 while the connection stands", ["link"])
BROKER_BLOCKED = Gauge(
    "staybus_broker_blocked", "1 while the broker refuses publishes (memory or disk alarm)", ["link"]
)
SYNC_RUNS = Counter("staybus_sync_runs", "Pulls by what became of them", ["vendor", "result"])
SYNC_LAG = Gauge("staybus_sync_lag_seconds", "Since the connection that waits longest was pulled", ["vendor"])
DROPPED = Counter("staybus_dropped_rows", "Old rows that retention dropped, by table", ["table"])
DATABASE_FAULTS = Counter("staybus_database_faults", "Batches put off because the database was away")
