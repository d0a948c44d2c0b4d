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

-- Stored as it was written: taking a document apart and writing it out again is a tenth of the database's part of an event,
-- and nobody searches these by index.
ALTER TABLE channel_events ALTER COLUMN payload TYPE json;
ALTER TABLE int_reservations ALTER COLUMN raw_data TYPE json;

-- What the hot statements are given: one array of rows costs half of an array for each column, on both sides.
CREATE TYPE webhook_row AS (
    received_at timestamptz, platform text, connection_id text, company_id text, method text, status integer, signature text,
    error text, bytes integer, body bytea,
    first_fact integer, last_fact integer); -- which of the facts are this request's; none where last is less than first
CREATE TYPE fact_row AS (
    id uuid, company_id text, connection_id text, property_id text, event_type text, entity_type text, entity_external_id text,
    idempotency_key text, payload text, sealed bytea, trace text, max_attempts integer);
CREATE TYPE reservation_row AS (
    id uuid, company_id text, connection_id text, external_id text, external_property_id text, external_room_type_id text,
    external_unit_id text, guest_id uuid, status text, check_in date, check_out date, adults integer, children integer,
    total_price bigint, currency text, source text, source_reference text, booked_at timestamptz, cancelled_at timestamptz,
    raw_data text, sealed bytea, source_version timestamptz, observed_at timestamptz, tie smallint, source_event uuid,
    guest_sealed bytea, guest_language text, guest_country text, command uuid);
CREATE TYPE result_row AS (
    id uuid, company_id text, connection_id text, event_type text, subject text, data text, cause_id uuid, trace text);

-- ---------------------------------------------------------------- circuits, budgets, windows

ALTER TABLE rate_budgets RENAME COLUMN connection_id TO scope; -- a connection, or an account that connections share
ALTER TABLE rate_budgets
    ADD COLUMN told boolean NOT NULL DEFAULT false, -- `remaining` is what the vendor said, not what we assume
    ADD COLUMN under_way double precision NOT NULL DEFAULT 0; -- units of calls, of all processes, of which it has not spoken

CREATE TABLE circuits (
    connection_id text PRIMARY KEY REFERENCES connections (id) ON DELETE CASCADE,
    company_id text NOT NULL,
    failures integer NOT NULL, -- calls in a row that the vendor did not answer
    retry_at timestamptz NOT NULL, -- no call before it, once there are enough of them
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Who renews a connection's access token now. A lease and no lock: nothing of the database is held while the vendor is asked.
ALTER TABLE connections ADD COLUMN renewing_until timestamptz;

-- Deliveries beyond what one connection may have under way: whoever ends one takes the next from here, bookings first.
CREATE INDEX channel_events_deliveries ON channel_events (connection_id, lane_policy, seq)
    WHERE status = 'received' AND parent_id IS NOT NULL;

-- Whether a command of a lane may run. hold: it is the oldest, behind nothing that is open or failed. supersede: it is the
-- newest, while none of its lane is being sent.
CREATE FUNCTION lane_is_free(of_id uuid, of_lane text, of_policy text, of_seq bigint) RETURNS boolean
LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT CASE of_policy
        WHEN 'hold' THEN NOT EXISTS (
            SELECT FROM channel_events h WHERE h.lane = of_lane AND h.seq < of_seq
                AND h.status IN ('received', 'processing', 'retrying', 'failed'))
        WHEN 'supersede' THEN NOT EXISTS (
            SELECT FROM channel_events h WHERE h.lane = of_lane AND h.seq > of_seq
                AND h.status IN ('received', 'processing', 'retrying'))
            AND NOT EXISTS (
            SELECT FROM channel_events h WHERE h.lane = of_lane AND h.seq < of_seq AND h.status = 'processing')
        ELSE true END
$$;

-- The same for who means to run it: of those who ask about one lane the second waits until the first has ended its
-- transaction, and sees what it did. Each statement of a volatile function looks anew.
CREATE FUNCTION take_lane(of_id uuid, of_lane text, of_policy text, of_seq bigint) RETURNS boolean
LANGUAGE sql VOLATILE AS $$
    SELECT pg_advisory_xact_lock(hashtextextended(of_lane, 7203411963)) WHERE of_lane IS NOT NULL;
    SELECT lane_is_free(of_id, of_lane, of_policy, of_seq)
$$;

-- Commands about one entity that are not routed yet: their order holds whichever is woken first.
CREATE INDEX channel_events_commands ON channel_events (company_id, entity_internal_id, seq)
    WHERE direction = 'outbound' AND parent_id IS NULL AND status = 'received';

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

-- By the server's defaults a fifth of a table is dead before it is vacuumed: of ten million rows, two million.
ALTER TABLE webhook_log SET (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_insert_scale_factor = 0.05,
    autovacuum_analyze_scale_factor = 0.05, autovacuum_vacuum_cost_limit = 2000);
ALTER TABLE core_events SET (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_insert_scale_factor = 0.05,
    autovacuum_analyze_scale_factor = 0.05, autovacuum_vacuum_cost_limit = 2000);
ALTER TABLE event_attempts SET (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_insert_scale_factor = 0.05,
    autovacuum_analyze_scale_factor = 0.05);
ALTER TABLE sync_exchanges SET (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_insert_scale_factor = 0.05,
    autovacuum_analyze_scale_factor = 0.05);
ALTER TABLE own_writes SET (autovacuum_vacuum_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.05);

-- Room for a next version in the same page: a changed reservation then needs no new entries in its indexes.
ALTER TABLE int_reservations SET (fillfactor = 80);
ALTER TABLE int_guests SET (fillfactor = 90);
ALTER TABLE int_availability SET (fillfactor = 90);

-- ---------------------------------------------------------------- fairness between tenants

-- Which companies have rows that nobody has woken, and the oldest of each, however many another one has.
DROP INDEX channel_events_unpublished;
CREATE INDEX channel_events_unpublished ON channel_events (company_id, direction, received_at)
    WHERE status = 'received' AND published_at IS NULL;

-- ---------------------------------------------------------------- pulls

-- How far each connection was pulled, and who is at it. A connection that never was has no row.
CREATE TABLE pulls (
    connection_id text PRIMARY KEY REFERENCES connections (id) ON DELETE CASCADE,
    company_id text NOT NULL,
    covered_until timestamptz, -- everything that the vendor changed before was asked for
    started_at timestamptz,
    finished_at timestamptz, -- of the last one that came to its end
    not_before timestamptz, -- after a failure, or an empty rate budget
    spread double precision NOT NULL DEFAULT 1, -- of the interval, so that not all come at once
    worker text,
    lease_until timestamptz, -- whoever holds it is pulling; it runs out when he dies
    listed integer NOT NULL DEFAULT 0, -- by the last one that came to its end
    recorded integer NOT NULL DEFAULT 0,
    failures integer NOT NULL DEFAULT 0, -- in a row
    error_class text,
    last_error text
);

-- ---------------------------------------------------------------- who may do what

ALTER TABLE pulls ENABLE ROW LEVEL SECURITY;
CREATE POLICY of_company ON pulls TO staybus_api
    USING (company_id = current_setting('staybus.company_id', true) OR current_setting('staybus.company_id', true) = '*');
CREATE POLICY of_worker ON pulls TO staybus_worker USING (true);
GRANT SELECT ON pulls TO staybus_api;
GRANT SELECT, INSERT, UPDATE ON pulls TO staybus_worker;

GRANT SELECT, INSERT, UPDATE ON operator_jobs TO staybus_api;
GRANT SELECT, UPDATE ON operator_jobs TO staybus_worker;

ALTER TABLE sync_exchanges ENABLE ROW LEVEL SECURITY;
CREATE POLICY of_company ON sync_exchanges TO staybus_api
    USING (company_id = current_setting('staybus.company_id', true) OR current_setting('staybus.company_id', true) = '*');
CREATE POLICY of_worker ON sync_exchanges TO staybus_worker USING (true);
ALTER TABLE circuits ENABLE ROW LEVEL SECURITY;
CREATE POLICY of_company ON circuits TO staybus_api
    USING (company_id = current_setting('staybus.company_id', true) OR current_setting('staybus.company_id', true) = '*');
CREATE POLICY of_worker ON circuits TO staybus_worker USING (true);
GRANT SELECT ON circuits TO staybus_api;
GRANT SELECT, INSERT, UPDATE, DELETE ON circuits TO staybus_worker;
GRANT UPDATE (renewing_until) ON connections TO staybus_worker;
GRANT SELECT ON sync_log, sync_exchanges TO staybus_api;
GRANT SELECT ON sync_log TO staybus_worker;
GRANT SELECT, INSERT, UPDATE ON sync_exchanges TO staybus_worker;
GRANT SELECT, INSERT, UPDATE, DELETE ON core_batches TO staybus_worker;
GRANT DELETE ON channel_events, event_attempts, sync_exchanges, webhook_log, core_events, outbox, dead_letters TO staybus_worker;
