-- Runs before the code. Times are timestamptz in UTC, money is integer minor units.
-- The busiest tables (channel_events, webhook_log, sync_log, core_events) carry no foreign keys: each would add a locked
-- look-up to every row of the hot path, and their rows are written by staybus alone.

-- Roles belong to the cluster, not to the database, so they may be there already and are left in place by the way down.
DO $$
DECLARE
    wanted text;
BEGIN
    FOREACH wanted IN ARRAY ARRAY['staybus_api', 'staybus_worker'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = wanted) THEN
            BEGIN
                EXECUTE format('CREATE ROLE %I NOLOGIN', wanted);
            EXCEPTION
                WHEN duplicate_object OR unique_violation THEN NULL; -- another database of this cluster was first
                WHEN insufficient_privilege THEN
                    RAISE EXCEPTION 'role % is missing and % may not create it', wanted, current_user
                        USING HINT = 'as a superuser: CREATE ROLE staybus_api NOLOGIN; CREATE ROLE staybus_worker NOLOGIN; '
                            || format('GRANT staybus_api, staybus_worker TO %I;', current_user);
            END;
        END IF;
        IF NOT pg_has_role(current_user, wanted, 'MEMBER') THEN
            EXECUTE format('GRANT %I TO %I', wanted, current_user);
        END IF;
    END LOOP;
END
$$;

-- ---------------------------------------------------------------- tenants and their connections

CREATE TABLE companies (
    id text PRIMARY KEY CHECK (id ~ '^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$'),
    name text NOT NULL,
    data_key bytea NOT NULL, -- wrapped by the key file; without it the company's sealed values cannot be read again
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE connections (
    id text PRIMARY KEY CHECK (id ~ '^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$'),
    company_id text NOT NULL REFERENCES companies (id),
    vendor text NOT NULL,
    name text NOT NULL,
    external_account_id text,
    config jsonb NOT NULL DEFAULT '{}',
    status text NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'paused', 'disabled')),
    last_sync_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX connections_company ON connections (company_id);

CREATE TABLE secrets (
    connection_id text NOT NULL REFERENCES connections (id) ON DELETE CASCADE,
    company_id text NOT NULL REFERENCES companies (id),
    name text NOT NULL,
    sealed bytea NOT NULL,
    previous bytea, -- accepted until previous_until, so that a rotation loses nothing
    previous_until timestamptz,
    expires_at timestamptz, -- of an access token
    rotated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (connection_id, name)
);

CREATE TABLE api_keys (
    id uuid PRIMARY KEY,
    company_id text REFERENCES companies (id), -- null: an operator of the whole installation
    name text NOT NULL,
    key_hash bytea NOT NULL UNIQUE, -- SHA-256; the keys are 256 random bits, so no slow hash is needed
    scopes text[] NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    last_used_at timestamptz,
    revoked_at timestamptz
);

-- ---------------------------------------------------------------- events

CREATE TABLE channel_events (
    id uuid PRIMARY KEY,
    seq bigint GENERATED ALWAYS AS IDENTITY, -- order of recording: the order of a lane
    company_id text NOT NULL,
    connection_id text,
    property_id text,
    parent_id uuid, -- of a delivery: the command it was routed from
    direction text NOT NULL CHECK (direction IN ('inbound', 'outbound')),
    event_type text NOT NULL,
    entity_type text,
    entity_external_id text,
    entity_internal_id text,
    idempotency_key text NOT NULL,
    payload jsonb NOT NULL,
    sealed bytea, -- the personal values of the payload, by path
    status text NOT NULL DEFAULT 'received' CHECK (status IN
        ('received', 'processing', 'retrying', 'done', 'failed', 'skipped', 'superseded', 'abandoned')),
    lane text,
    lane_policy text CHECK (lane_policy IN ('hold', 'supersede', 'independent')),
    attempts integer NOT NULL DEFAULT 0,
    max_attempts integer NOT NULL DEFAULT 3,
    starts integer NOT NULL DEFAULT 0, -- begun and never answered: what tells a poison from bad luck
    next_attempt_at timestamptz,
    lease_until timestamptz,
    worker text,
    last_error text,
    error_class text,
    received_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    published_at timestamptz,
    processed_at timestamptz,
    trace text,
    UNIQUE (company_id, direction, idempotency_key)
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_insert_scale_factor = 0.05,
        autovacuum_analyze_scale_factor = 0.05, autovacuum_vacuum_cost_limit = 2000);

CREATE UNIQUE INDEX channel_events_seq ON channel_events (seq); -- newest first; ids of services' own making do not tell
-- One partial index for each look of the relay: each stays as small as the open work is.
CREATE INDEX channel_events_unpublished ON channel_events (received_at) WHERE status = 'received' AND published_at IS NULL;
CREATE INDEX channel_events_stale ON channel_events (published_at) WHERE status = 'received' AND published_at IS NOT NULL;
CREATE INDEX channel_events_due ON channel_events (next_attempt_at) WHERE status = 'retrying';
CREATE INDEX channel_events_leased ON channel_events (lease_until) WHERE status = 'processing';
CREATE INDEX channel_events_lane ON channel_events (lane, seq)
    WHERE lane IS NOT NULL AND status IN ('received', 'processing', 'retrying', 'failed');
CREATE INDEX channel_events_failed ON channel_events (seq) WHERE status = 'failed';
CREATE INDEX channel_events_parent ON channel_events (parent_id) WHERE parent_id IS NOT NULL;

CREATE TABLE event_attempts (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    event_id uuid NOT NULL,
    company_id text NOT NULL,
    attempt integer NOT NULL,
    outcome text NOT NULL, -- done, retry, park, skip
    error_class text,
    error_code text,
    error text,
    worker text,
    started_at timestamptz,
    finished_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX event_attempts_event ON event_attempts (event_id);

CREATE TABLE dead_letters (
    id uuid PRIMARY KEY,
    event_id uuid, -- null: what the broker gave back could not be read as an event of ours
    company_id text,
    connection_id text,
    vendor text,
    queue text,
    operation text NOT NULL, -- the event type
    entity_type text,
    entity_external_id text,
    entity_internal_id text,
    error_class text NOT NULL,
    error_code text,
    error_message text NOT NULL,
    fingerprint text NOT NULL, -- same cause, same fingerprint: what operators group by
    attempts integer NOT NULL,
    first_attempt_at timestamptz,
    last_attempt_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    status text NOT NULL DEFAULT 'pending' CHECK (status IN ('pending', 'retrying', 'resolved', 'abandoned')),
    owner text NOT NULL CHECK (owner IN ('pipeline', 'tenant')),
    resolved_by text,
    resolved_at timestamptz,
    notes text,
    overlay jsonb, -- an operator's edit of the payload; the event's own payload stays as it came
    sealed bytea, -- the raw bytes of what could not be read
    routing jsonb, -- where the broker had it: queue, reason, count
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE UNIQUE INDEX dead_letters_one_open ON dead_letters (event_id) WHERE status IN ('pending', 'retrying');
CREATE INDEX dead_letters_open ON dead_letters (id) WHERE status IN ('pending', 'retrying');
CREATE INDEX dead_letters_event ON dead_letters (event_id);

CREATE TABLE webhook_log (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    received_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    platform text NOT NULL, -- the vendor in the path, known or not
    connection_id text,
    company_id text,
    method text NOT NULL,
    status integer NOT NULL, -- of our answer
    signature text NOT NULL, -- valid, invalid, missing, unchecked
    error text,
    bytes integer NOT NULL,
    body bytea, -- sealed, and only where no event row holds it
    event_ids uuid[] NOT NULL DEFAULT '{}',
    processed_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX webhook_log_received ON webhook_log USING brin (received_at);
CREATE INDEX webhook_log_refused ON webhook_log (id) WHERE status >= 400;

-- What staybus tells the core and whoever listens: written with its cause, published after the commit.
CREATE TABLE core_events (
    id uuid PRIMARY KEY,
    company_id text NOT NULL,
    connection_id text,
    event_type text NOT NULL,
    subject text NOT NULL,
    data jsonb NOT NULL,
    cause_id uuid NOT NULL,
    trace text,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    published_at timestamptz
);
CREATE INDEX core_events_unpublished ON core_events (created_at) WHERE published_at IS NULL;

CREATE TABLE outbox (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    company_id text NOT NULL,
    event_type text NOT NULL,
    subject text,
    connection_id text,
    payload jsonb NOT NULL,
    idempotency_key text, -- default: outbox:<id>
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    taken_at timestamptz,
    event_id uuid,
    error text -- why it was not taken
);
CREATE INDEX outbox_waiting ON outbox (created_at) WHERE taken_at IS NULL;

-- ---------------------------------------------------------------- the integration buffer (standard schema)

CREATE TABLE int_properties (
    id uuid PRIMARY KEY,
    company_id text NOT NULL,
    connection_id text NOT NULL REFERENCES connections (id),
    external_id text NOT NULL,
    name text NOT NULL,
    currency text,
    timezone text,
    country text,
    city text,
    address text,
    raw_data jsonb NOT NULL,
    source_version timestamptz NOT NULL,
    observed_at timestamptz NOT NULL,
    tie smallint NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (connection_id, external_id)
);

CREATE TABLE int_room_types (
    id uuid PRIMARY KEY,
    company_id text NOT NULL,
    connection_id text NOT NULL REFERENCES connections (id),
    external_id text NOT NULL,
    external_property_id text NOT NULL,
    name text NOT NULL,
    quantity integer NOT NULL,
    max_occupancy integer,
    raw_data jsonb NOT NULL,
    source_version timestamptz NOT NULL,
    observed_at timestamptz NOT NULL,
    tie smallint NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (connection_id, external_id)
);

CREATE TABLE int_guests (
    id uuid PRIMARY KEY,
    company_id text NOT NULL,
    connection_id text NOT NULL,
    external_id text NOT NULL, -- the vendor's profile id, or reservation:<id> where it has no profiles
    language text,
    country text,
    sealed bytea NOT NULL, -- first_name, last_name, email, phone
    source_version timestamptz NOT NULL,
    observed_at timestamptz NOT NULL,
    tie smallint NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (connection_id, external_id)
);

CREATE TABLE int_reservations (
    id uuid PRIMARY KEY,
    company_id text NOT NULL,
    connection_id text NOT NULL,
    external_id text NOT NULL,
    external_property_id text NOT NULL,
    external_room_type_id text NOT NULL,
    external_unit_id text,
    guest_id uuid,
    status text NOT NULL,
    check_in date NOT NULL,
    check_out date NOT NULL,
    adults integer NOT NULL,
    children integer NOT NULL,
    total_price bigint,
    currency text,
    source text,
    source_reference text,
    booked_at timestamptz,
    cancelled_at timestamptz,
    raw_data jsonb NOT NULL,
    sealed bytea, -- the personal values of raw_data, by path
    source_version timestamptz NOT NULL,
    observed_at timestamptz NOT NULL,
    tie smallint NOT NULL DEFAULT 0,
    source_event uuid NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (connection_id, external_id),
    CHECK (check_in < check_out)
);

CREATE TABLE int_availability (
    company_id text NOT NULL,
    connection_id text NOT NULL,
    external_property_id text NOT NULL,
    external_room_type_id text NOT NULL,
    day date NOT NULL,
    available integer,
    price bigint,
    currency text,
    min_stay integer,
    closed boolean,
    raw_data jsonb NOT NULL,
    source_version timestamptz NOT NULL,
    observed_at timestamptz NOT NULL,
    tie smallint NOT NULL DEFAULT 0,
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (connection_id, external_room_type_id, day)
);

CREATE TABLE int_mappings (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    company_id text NOT NULL,
    connection_id text NOT NULL,
    external_entity_type text NOT NULL,
    external_entity_id text NOT NULL,
    internal_entity_type text NOT NULL,
    internal_entity_id text NOT NULL,
    auto_sync boolean NOT NULL DEFAULT true,
    is_active boolean NOT NULL DEFAULT true,
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (connection_id, external_entity_type, external_entity_id),
    -- Also the way from an entity of the core to its connections.
    UNIQUE (company_id, internal_entity_type, internal_entity_id, connection_id)
);

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
CREATE UNIQUE INDEX sync_log_event ON sync_log (event_id); -- one line an event, kept up to date over retries

-- What we told a vendor a short while ago, so that its webhook about it is known as an echo.
CREATE TABLE own_writes (
    event_id uuid PRIMARY KEY,
    company_id text NOT NULL,
    connection_id text NOT NULL,
    external_id text, -- null until a create was answered
    marker text NOT NULL,
    expected jsonb NOT NULL, -- the standard fields that were written, none of them personal
    written_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at timestamptz NOT NULL
);
CREATE INDEX own_writes_external ON own_writes (connection_id, external_id);
CREATE INDEX own_writes_marker ON own_writes (connection_id, marker);

CREATE TABLE rate_budgets (
    connection_id text PRIMARY KEY,
    company_id text NOT NULL,
    remaining double precision NOT NULL,
    resets_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE TABLE audit_log (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    actor text NOT NULL,
    company_id text,
    action text NOT NULL,
    target text NOT NULL,
    details jsonb NOT NULL DEFAULT '{}'
);

-- ---------------------------------------------------------------- who may see and do what

DO $$
DECLARE
    tenant_table text;
BEGIN
    FOREACH tenant_table IN ARRAY ARRAY[
        'connections', 'secrets', 'api_keys', 'channel_events', 'event_attempts', 'dead_letters', 'webhook_log',
        'core_events', 'outbox', 'int_properties', 'int_room_types', 'int_guests', 'int_reservations',
        'int_availability', 'int_mappings', 'sync_log', 'own_writes', 'rate_budgets', 'audit_log'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', tenant_table);
        -- staybus.company_id is set for each transaction; '*' is an operator of the whole installation.
        EXECUTE format($f$
            CREATE POLICY of_company ON %I TO staybus_api
            USING (company_id = current_setting('staybus.company_id', true)
                   OR current_setting('staybus.company_id', true) = '*')$f$, tenant_table);
        EXECUTE format('CREATE POLICY of_worker ON %I TO staybus_worker USING (true)', tenant_table);
    END LOOP;
END
$$;

GRANT SELECT ON ALL TABLES IN SCHEMA public TO staybus_api;
GRANT UPDATE ON channel_events, dead_letters TO staybus_api; -- requeue and abandon
GRANT INSERT ON channel_events, audit_log, outbox TO staybus_api;
REVOKE SELECT ON secrets, companies, api_keys FROM staybus_api;

GRANT SELECT ON ALL TABLES IN SCHEMA public TO staybus_worker;
GRANT INSERT, UPDATE ON channel_events, dead_letters, core_events, outbox, int_properties, int_room_types, int_guests,
    int_reservations, int_availability, int_mappings, sync_log, own_writes, rate_budgets, secrets TO staybus_worker;
GRANT INSERT ON event_attempts, webhook_log, audit_log TO staybus_worker;
GRANT UPDATE (last_sync_at) ON connections TO staybus_worker;
GRANT UPDATE (last_used_at) ON api_keys TO staybus_worker;
GRANT DELETE ON own_writes TO staybus_worker;
