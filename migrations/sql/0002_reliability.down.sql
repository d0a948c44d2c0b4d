-- ---------------------------------------------------------------- pulls

DROP TABLE pulls;

-- ---------------------------------------------------------------- fairness between tenants

DROP INDEX channel_events_unpublished;
CREATE INDEX channel_events_unpublished ON channel_events (received_at) WHERE status = 'received' AND published_at IS NULL;

-- ---------------------------------------------------------------- growth: retention, vacuum

ALTER TABLE int_availability RESET (fillfactor);
ALTER TABLE int_guests RESET (fillfactor);
ALTER TABLE int_reservations RESET (fillfactor);
ALTER TABLE own_writes RESET (autovacuum_vacuum_scale_factor, autovacuum_analyze_scale_factor);
ALTER TABLE sync_exchanges RESET (autovacuum_vacuum_scale_factor, autovacuum_vacuum_insert_scale_factor,
    autovacuum_analyze_scale_factor);
ALTER TABLE event_attempts RESET (autovacuum_vacuum_scale_factor, autovacuum_vacuum_insert_scale_factor,
    autovacuum_analyze_scale_factor);
ALTER TABLE core_events RESET (autovacuum_vacuum_scale_factor, autovacuum_vacuum_insert_scale_factor,
    autovacuum_analyze_scale_factor, autovacuum_vacuum_cost_limit);
ALTER TABLE webhook_log RESET (autovacuum_vacuum_scale_factor, autovacuum_vacuum_insert_scale_factor,
    autovacuum_analyze_scale_factor, autovacuum_vacuum_cost_limit);
DROP INDEX dead_letters_closed;
DROP INDEX own_writes_expiry;
DROP INDEX outbox_taken;

-- ---------------------------------------------------------------- operators: overlays, jobs, lanes

DROP TABLE operator_jobs;
ALTER TABLE channel_events DROP COLUMN overlay_id, DROP COLUMN replay_of, DROP COLUMN job_id;
DROP INDEX channel_events_lane_sent;
ALTER TABLE dead_letters
    DROP COLUMN overlay_sealed, DROP COLUMN overlay_paths, DROP COLUMN edited_by, DROP COLUMN edited_at;

-- ---------------------------------------------------------------- circuits, budgets, windows

DROP INDEX channel_events_commands, channel_events_deliveries;
DROP FUNCTION take_lane;
DROP FUNCTION lane_is_free;
ALTER TABLE connections DROP COLUMN renewing_until;
DROP TABLE circuits;
ALTER TABLE rate_budgets DROP COLUMN told, DROP COLUMN under_way;
ALTER TABLE rate_budgets RENAME COLUMN scope TO connection_id;

-- ---------------------------------------------------------------- hot path

DROP TYPE webhook_row, fact_row, reservation_row, result_row;
ALTER TABLE int_reservations ALTER COLUMN raw_data TYPE jsonb USING raw_data::jsonb;
ALTER TABLE channel_events ALTER COLUMN payload TYPE jsonb USING payload::jsonb;
ALTER TABLE core_events ALTER COLUMN data TYPE jsonb;
ALTER TABLE core_events ADD COLUMN published_at timestamptz;
UPDATE core_events SET published_at = clock_timestamp()
WHERE NOT EXISTS (SELECT FROM core_batches b WHERE core_events.id = ANY (b.event_ids));
CREATE INDEX core_events_unpublished ON core_events (created_at) WHERE published_at IS NULL;
DROP TABLE core_batches;

ALTER VIEW sync_log RENAME TO sync_log_view;
CREATE TABLE sync_log (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    company_id text NOT NULL,
    connection_id text,
    event_id uuid NOT NULL,
    direction text NOT NULL,
    entity_type text,
    entity_external_id text,
    entity_internal_id text,
    action text NOT NULL,
    state text NOT NULL CHECK (state IN ('triggered', 'running', 'retrying', 'success', 'failed')),
    triggered_at timestamptz NOT NULL,
    started_at timestamptz,
    finished_at timestamptz,
    retry_count integer NOT NULL DEFAULT 0,
    max_retries integer NOT NULL DEFAULT 0,
    deadletter_at timestamptz,
    error text,
    request jsonb,
    response jsonb
);
CREATE UNIQUE INDEX sync_log_event ON sync_log (event_id);
INSERT INTO sync_log (company_id, connection_id, event_id, direction, entity_type, entity_external_id, entity_internal_id,
    action, state, triggered_at, started_at, finished_at, retry_count, max_retries, deadletter_at, error, request, response)
SELECT company_id, connection_id, event_id, direction, entity_type, entity_external_id, entity_internal_id, action, state,
       triggered_at, started_at, finished_at, retry_count, max_retries, deadletter_at, error, request, response
FROM sync_log_view WHERE started_at IS NOT NULL ORDER BY id;
DROP VIEW sync_log_view;
DROP TABLE sync_exchanges;
ALTER TABLE channel_events DROP COLUMN started_at;
ALTER TABLE sync_log ENABLE ROW LEVEL SECURITY;
CREATE POLICY of_company ON sync_log TO staybus_api
    USING (company_id = current_setting('staybus.company_id', true) OR current_setting('staybus.company_id', true) = '*');
CREATE POLICY of_worker ON sync_log TO staybus_worker USING (true);
GRANT SELECT ON sync_log TO staybus_api;
GRANT SELECT, INSERT, UPDATE ON sync_log TO staybus_worker;
