-- ANALYZE reads 300 rows for each unit of the largest target among a table's columns, and works through every column of them:
-- of events, half a second of one processor each minute while many come. Our statements go by index whatever it finds
-- (store/pool.py), and a fifth of the sample is enough for what people look up.
DO $$
DECLARE
    growing text;
    kept name;
BEGIN
    FOREACH growing IN ARRAY ARRAY['channel_events', 'event_attempts', 'dead_letters', 'webhook_log', 'core_events',
        'sync_exchanges', 'own_writes', 'outbox', 'int_reservations', 'int_guests', 'int_mappings', 'int_availability',
        'audit_log']
    LOOP
        FOR kept IN SELECT attname FROM pg_attribute
            WHERE attrelid = growing::regclass AND attnum > 0 AND NOT attisdropped
        LOOP
            EXECUTE format('ALTER TABLE %I ALTER COLUMN %I SET STATISTICS 20', growing, kept);
        END LOOP;
    END LOOP;
END $$;
