-- ---------------------------------------------------------------- hot path

-- The row tells all that the sync log says, so a second row for each event would only have to be kept equal to it.
ALTER TABLE channel_events ADD COLUMN started_at timestamptz; -- of the last attempt

CREATE TABLE sync_exchanges (
    event_id uuid PRIMARY KEY,
    company_id text NOT NULL,
    request jsonb, -- what we told the vendor, without its personal part
    response jsonb,
    at timestamptz NOT NULL DEFAULT clock_timestamp()
);
INSERT INTO sync_exchanges (event_id, company_id, request, response, at)
SELECT event_id, company_id, request, response, COALESCE(finished_at, triggered_at) FROM sync_log
WHERE request IS NOT NULL OR response IS NOT NULL;
UPDATE channel_events e SET started_at = l.started_at FROM sync_log l WHERE l.event_id = e.id;
DROP TABLE sync_log;
CREATE VIEW sync_log WITH (security_invoker = true) AS
SELECT e.seq AS id, e.company_id, e.connection_id, e.id AS event_id, e.direction, e.entity_type, e.entity_external_id,
       e.entity_internal_id, split_part(e.event_type, '.', -1) AS action,
       CASE
           WHEN e.status = 'processing' THEN 'running'
           WHEN e.status = 'retrying' OR e.status = 'received' AND e.attempts > 0 THEN 'retrying'
           WHEN e.status = 'received' THEN 'triggered'
           WHEN e.status IN ('failed', 'abandoned') THEN 'failed'
           ELSE 'success' END AS state,
       e.received_at AS triggered_at, e.started_at, e.processed_at AS finished_at,
       GREATEST(e.attempts - 1, 0) AS retry_count, GREATEST(e.max_attempts - 1, 0) AS max_retries,
       CASE WHEN e.status IN ('failed', 'abandoned') THEN e.processed_at END AS deadletter_at, e.last_error AS error,
       x.request, x.response
FROM channel_events e LEFT JOIN sync_exchanges x ON x.event_id = e.id
WHERE e.direction = 'inbound' OR e.parent_id IS NOT NULL; -- a command that was only routed has its deliveries here

-- Which results nobody has confirmed is one small row a settled batch, gone when they are told, in place of an update of
-- each result.
CREATE TABLE core_batches (
    id uuid PRIMARY KEY,
    event_ids uuid[] NOT NULL, -- of core_events, in the order in which they happened
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX core_batches_waiting ON core_batches (created_at);
INSERT INTO core_batches (id, event_ids)
SELECT gen_random_uuid(), array_agg(id ORDER BY created_at) FROM core_events WHERE published_at IS NULL HAVING count(*) > 0;
ALTER TABLE core_events DROP COLUMN published_at; -- with its index
ALTER TABLE core_events ALTER COLUMN data TYPE json; -- written once and sent as it stands

-- ---------------------------------------------------------------- circuits, budgets, windows

-- ---------------------------------------------------------------- operators: overlays, jobs, lanes

ALTER TABLE dead_letters
    ADD COLUMN overlay_sealed bytea, -- the personal values of `overlay`, by path; both together are the edit
    ADD COLUMN overlay_paths text[], -- what the edit changes
    ADD COLUMN edited_by text,
    ADD COLUMN edited_at timestamptz;

-- Null on almost every row: hot rows pay one bit each, and the partial index holds operators' work only.
ALTER TABLE channel_events
    ADD COLUMN overlay_id uuid, -- the dead letter whose edit is laid over the payload when the event runs
    ADD COLUMN replay_of uuid, -- the ended event that this one runs again
    ADD COLUMN job_id uuid; -- the operators' job that let it run (again)
CREATE INDEX channel_events_job ON channel_events (job_id) WHERE job_id IS NOT NULL;
-- What was sent after a delivery about the same thing: whether a replay would put an older state back.
CREATE INDEX channel_events_lane_sent ON channel_events (lane, seq) WHERE lane IS NOT NULL AND status = 'done';

CREATE TABLE operator_jobs (
    id uuid PRIMARY KEY,
    company_id text, -- null: of the whole installation
    kind text NOT NULL CHECK (kind IN ('requeue', 'abandon', 'replay')),
    filter jsonb NOT NULL, -- which ones, and up to where: what comes later is not its work
    most bigint, -- at most so many
    rate double precision CHECK (rate > 0), -- at most so many a second
    canary integer CHECK (canary > 0), -- so many go first, and decide
    canary_share double precision NOT NULL DEFAULT 1 CHECK (canary_share > 0 AND canary_share <= 1),
    requested_by text NOT NULL,
    note text,
    status text NOT NULL DEFAULT 'waiting'
        CHECK (status IN ('waiting', 'canary', 'running', 'done', 'cancelled', 'failed')),
    total bigint NOT NULL, -- as counted when it was asked for
    done bigint NOT NULL DEFAULT 0,
    failed bigint NOT NULL DEFAULT 0, -- could not be done: they run already, or nothing could be read from them
    cursor text, -- the last one that was looked at; moves in the transaction that changes them
    next_at timestamptz NOT NULL DEFAULT clock_timestamp(), -- the rate, over restarts and several schedulers
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    started_at timestamptz,
    finished_at timestamptz,
    last_error text
);
CREATE INDEX operator_jobs_due ON operator_jobs (next_at) WHERE status IN ('waiting', 'canary', 'running');
ALTER TABLE operator_jobs ENABLE ROW LEVEL SECURITY;
CREATE POLICY of_company ON operator_jobs TO staybus_api
    USING (company_id = current_setting('staybus.company_id', true)
           OR current_setting('staybus.company_id', true) = '*');
CREATE POLICY of_worker ON operator_jobs TO staybus_worker USING (true);

-- ---------------------------------------------------------------- growth: retention, vacuum

-- The ways of retention through tables whose ids are not in the order of time.
CREATE INDEX outbox_taken ON outbox (taken_at, id) WHERE taken_at IS NOT NULL;
CREATE INDEX own_writes_expiry ON own_writes (expires_at, event_id);
CREATE INDEX dead_letters_closed ON dead_letters (resolved_at, id) WHERE status IN ('resolved', 'abandoned');

-- ---------------------------------------------------------------- pulls

-- ---------------------------------------------------------------- who may do what

GRANT SELECT, INSERT, UPDATE ON operator_jobs TO staybus_api;
GRANT SELECT, UPDATE ON operator_jobs TO staybus_worker;

ALTER TABLE sync_exchanges ENABLE ROW LEVEL SECURITY;
CREATE POLICY of_company ON sync_exchanges TO staybus_api
    USING (company_id = current_setting('staybus.company_id', true) OR current_setting('staybus.company_id', true) = '*');
CREATE POLICY of_worker ON sync_exchanges TO staybus_worker USING (true);
GRANT SELECT ON sync_log, sync_exchanges TO staybus_api;
GRANT SELECT ON sync_log TO staybus_worker;
GRANT SELECT, INSERT, UPDATE ON sync_exchanges TO staybus_worker;
GRANT SELECT, INSERT, UPDATE, DELETE ON core_batches TO staybus_worker;
GRANT DELETE ON channel_events, event_attempts, sync_exchanges, webhook_log, core_events, outbox, dead_letters TO staybus_worker;
