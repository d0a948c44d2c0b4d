-- Once a minute autovacuum had a processor for a third of a second, and longer under load, and what came in just then waited: at
-- a hundred events a second that is what the slowest hundredth is.
-- Half the sample of migration 0008 takes ANALYZE a third of the time, because it need not read each page of a table of some ten
-- thousand rows; and nobody looks for documents by what is in them. A small table is looked after when 20,000 rows of it have
-- changed, and not at each twentieth. VACUUM sleeps as often as Postgres means it to: with the
-- default limit 40,000 dead rows among a million take it a second, ten times less than they take to come.
-- A column that a later migration adds to one of these tables has its target of 10 there, or 0, and a new table that grows all of it.
DO $$
DECLARE
    growing text;
    kept record;
BEGIN
    FOREACH growing IN ARRAY ARRAY['channel_events', 'event_attempts', 'dead_letters', 'webhook_log', 'core_events',
        'sync_exchanges', 'own_writes', 'outbox', 'int_reservations', 'int_guests', 'int_mappings', 'int_availability',
        'audit_log']
    LOOP
        FOR kept IN SELECT attname AS name, atttypid = ANY (ARRAY['json', 'jsonb', 'bytea']::regtype[]) AS is_document
            FROM pg_attribute WHERE attrelid = growing::regclass AND attnum > 0 AND NOT attisdropped
        LOOP
            EXECUTE format('ALTER TABLE %I ALTER COLUMN %I SET STATISTICS %s', growing, kept.name,
                           CASE WHEN kept.is_document THEN 0 ELSE 10 END);
        END LOOP;
        EXECUTE format('ALTER TABLE %I SET (autovacuum_analyze_threshold = 20000, autovacuum_vacuum_threshold = 20000,'
                       ' autovacuum_vacuum_insert_threshold = 20000)', growing);
        EXECUTE format('ALTER TABLE %I RESET (autovacuum_vacuum_cost_limit)', growing);
    END LOOP;
END $$;
