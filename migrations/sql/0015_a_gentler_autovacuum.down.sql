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
        EXECUTE format('ALTER TABLE %I RESET (autovacuum_analyze_threshold, autovacuum_vacuum_threshold,'
                       ' autovacuum_vacuum_insert_threshold)', growing);
    END LOOP;
END $$;
ALTER TABLE channel_events SET (autovacuum_vacuum_cost_limit = 2000);
ALTER TABLE webhook_log SET (autovacuum_vacuum_cost_limit = 2000);
ALTER TABLE core_events SET (autovacuum_vacuum_cost_limit = 2000);
