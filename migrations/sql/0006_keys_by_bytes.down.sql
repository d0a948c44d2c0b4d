ALTER TABLE channel_events
    ALTER COLUMN lane TYPE text COLLATE "default",
    ALTER COLUMN idempotency_key TYPE text COLLATE "default";
