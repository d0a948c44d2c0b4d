DROP TABLE audit_log, rate_budgets, own_writes, sync_log, int_mappings, int_availability, int_reservations, int_guests,
    int_room_types, int_properties, outbox, core_events, webhook_log, dead_letters, event_attempts, channel_events,
    api_keys, secrets, connections, companies;
