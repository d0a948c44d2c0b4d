-- What sixty days of work leave behind, for the events $1 to $2 of :total, the last of them finished a minute before :ends.
-- Of twenty events one is a command and one its delivery, the others are facts, about :reservations reservations in turn. Of
-- a thousand one failed and waits as a dead letter, and one was given up. Ids and keys begin with their time, as ours do.

-- name: helpers
CREATE FUNCTION past_at(n bigint) RETURNS timestamptz LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $f$
    SELECT to_timestamp(:ends - 60 - 5184000 * (1 - n::float8 / :total))
$f$;
CREATE FUNCTION past_id(n bigint) RETURNS uuid LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $f$
    SELECT (lpad(to_hex((extract(epoch FROM past_at(n)) * 1000)::bigint), 12, '0') || '7' || substr(md5(n::text), 1, 3)
            || '8' || substr(md5(n::text), 4, 15))::uuid
$f$;
CREATE FUNCTION past_company(r bigint) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $f$
    SELECT 'company-' || r % 20
$f$;
CREATE FUNCTION past_connection(r bigint) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $f$
    SELECT 'beds24-' || r % 20 || '-' || r / 20 % 5
$f$;

CREATE TEMP TABLE past (n bigint, r bigint, at timestamptz, id uuid, subject uuid, company text, connection text, trace text);

-- name: companies
INSERT INTO companies (id, name, data_key) SELECT past_company(r), 'Company ' || r, $1 FROM generate_series(0, 19) r

-- name: connections
INSERT INTO connections (id, company_id, vendor, name, config)
SELECT past_connection(r), past_company(r), 'beds24', 'Connection', '{"currency": "EUR"}' FROM generate_series(0, 99) r

-- name: int_reservations
INSERT INTO int_reservations (id, company_id, connection_id, external_id, external_property_id, external_room_type_id, guest_id,
    status, check_in, check_out, adults, children, total_price, currency, source, booked_at, raw_data, sealed, source_version,
    observed_at, source_event)
SELECT past_id(r), past_company(r), past_connection(r), (10000000 + r)::text, '345754', '713992', md5('guest' || r)::uuid,
       'confirmed', '2027-05-01', '2027-05-06', 2, 1, 123450, 'EUR', 'booking', past_at(0),
       replace(:raw, '10999999', (10000000 + r)::text)::json, decode(repeat(md5(r::text), 20), 'hex'), past_at(0),
       past_at(0), past_id(r)
FROM generate_series(0, :reservations - 1) r

-- name: int_guests
INSERT INTO int_guests (id, company_id, connection_id, external_id, sealed, source_version, observed_at)
SELECT md5('guest' || r)::uuid, past_company(r), past_connection(r), 'reservation:' || (10000000 + r),
       decode(repeat(md5(r::text), 10), 'hex'), past_at(0), past_at(0)
FROM generate_series(0, :reservations - 1) r

-- name: int_mappings
INSERT INTO int_mappings (company_id, connection_id, external_entity_type, external_entity_id, internal_entity_type,
    internal_entity_id)
SELECT past_company(r), past_connection(r), 'reservation', (10000000 + r)::text, 'reservation', past_id(r)::text
FROM generate_series(0, :reservations - 1) r

-- name: past
-- What the other statements share, once for each event.
INSERT INTO past (n, r, at, id, subject, company, connection, trace)
SELECT n, r, past_at(n), past_id(n), past_id(r), past_company(r),
       past_connection(r), '00-' || md5(n::text) || '-00f067aa0ba902b7-01'
FROM generate_series($1::bigint, $2::bigint) n, LATERAL (SELECT n / 5 % :reservations AS r) about

-- name: channel_events
INSERT INTO channel_events (id, company_id, connection_id, property_id, parent_id, direction, event_type, entity_type,
    entity_external_id, entity_internal_id, idempotency_key, payload, sealed, status, lane, lane_policy, attempts, received_at,
    published_at, started_at, processed_at, trace)
SELECT id, company, CASE WHEN n % 20 <> 0 THEN connection END,
       CASE WHEN n % 20 > 1 THEN '345754' END, CASE WHEN n % 20 = 1 THEN past_id(n - 1) END,
       CASE WHEN n % 20 > 1 THEN 'inbound' ELSE 'outbound' END,
       CASE WHEN n % 20 > 1 THEN 'beds24.booking.modified' ELSE 'pms.booking.update' END, 'reservation',
       CASE WHEN n % 20 > 0 THEN (10000000 + r)::text END, CASE WHEN n % 20 <= 1 THEN subject::text END,
       CASE WHEN n % 20 > 1 THEN connection || ':beds24-' || to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"-') || md5(n::text)
            ELSE id::text END,
       CASE WHEN n % 20 > 1 THEN replace(:payload, '10999999', (10000000 + r)::text)::json
            ELSE json_build_object('reservationId', subject, 'notes', repeat('A remark of the guest. ', 40)) END,
       CASE WHEN n % 20 > 1 THEN decode(repeat(md5(n::text), 20), 'hex') END,
       CASE WHEN n % 1000 = 7 THEN 'failed' WHEN n % 1000 = 8 THEN 'abandoned' WHEN n % 20 = 9 THEN 'skipped' ELSE 'done' END,
       CASE WHEN n % 20 = 1 THEN 'reservation:' || subject || '@' || connection END,
       CASE WHEN n % 20 = 1 THEN 'hold' END, 1, at, at, at, at + interval '1 second', trace
FROM past

-- name: webhook_log
INSERT INTO webhook_log (received_at, platform, connection_id, company_id, method, status, signature, bytes, event_ids,
    processed_at)
SELECT at, 'beds24', connection, company, 'POST', 202, 'valid', 1200, ARRAY[id], at
FROM past WHERE n % 20 > 1

-- name: core_events
INSERT INTO core_events (id, company_id, connection_id, event_type, subject, data, cause_id, trace, created_at)
SELECT id, company, connection, 'core.reservation.upserted', subject::text,
       replace(:result, '10999999', (10000000 + r)::text)::json, id, trace, at
FROM past WHERE n % 20 > 1 AND n % 20 <> 9

-- name: event_attempts
INSERT INTO event_attempts (event_id, company_id, attempt, outcome, error_class, error, worker, started_at, finished_at)
SELECT id, company, 1, 'retry', 'transient', 'HTTP 503', 'inbound@host:1-abc', at, at
FROM past WHERE n % 20 = 1 OR n % 100 = 7

-- name: sync_exchanges
INSERT INTO sync_exchanges (event_id, company_id, request, response, at)
SELECT id, company, replace(:result, '10999999', (10000000 + r)::text)::jsonb, '{"success": true}', at
FROM past WHERE n % 20 = 1

-- name: dead_letters
INSERT INTO dead_letters (id, event_id, company_id, connection_id, vendor, operation, entity_type, entity_external_id,
    error_class, error_message, fingerprint, attempts, first_attempt_at, last_attempt_at, status, owner, resolved_by, resolved_at,
    created_at)
SELECT id, id, company, connection, 'beds24', 'beds24.booking.modified', 'reservation',
       (10000000 + r)::text, 'invalid', 'booking.departure: must be after arrival', substr(md5((n % 7000)::text), 1, 12), 3,
       at, at, CASE WHEN n % 1000 = 7 THEN 'pending' ELSE 'abandoned' END, 'tenant',
       CASE WHEN n % 1000 = 8 THEN 'cli:operator' END, CASE WHEN n % 1000 = 8 THEN at END, at
FROM past WHERE n % 1000 IN (7, 8)

-- name: own_writes
INSERT INTO own_writes (event_id, company_id, connection_id, external_id, marker, expected, written_at, expires_at)
SELECT id, company, connection, (10000000 + r)::text, 'staybus:' || id,
       '{"status": "confirmed"}', at, at + interval '1 day'
FROM past WHERE n % 20 = 1 AND at > to_timestamp(:ends) - interval '1 day'

-- name: command_results
-- Last, and after a vacuum: as in a long life, these small rows fill the holes that the larger ones leave in their pages.
INSERT INTO core_events (id, company_id, connection_id, event_type, subject, data, cause_id, created_at)
SELECT past_id(n), past_company(r), past_connection(r), 'core.command.succeeded', past_id(r)::text,
       json_build_object('command', 'pms.booking.update', 'connectionId', past_connection(r), 'deliveryId', past_id(n)),
       past_id(n), past_at(n)
FROM generate_series(1, :total, 20) n, LATERAL (SELECT n / 5 % :reservations AS r) about

-- name: waiting
-- Facts that came a moment ago and wait for their worker, each about a reservation of its own.
INSERT INTO channel_events (id, company_id, connection_id, property_id, direction, event_type, entity_type, entity_external_id,
    idempotency_key, payload, sealed, max_attempts, published_at, trace)
SELECT id, company, connection, '345754', 'inbound', 'beds24.booking.modified', 'reservation', (10000000 + n)::text,
       connection || ':beds24-' || n || '-' || md5(n::text), replace(:payload, '10999999', (10000000 + n)::text)::json, :sealed[1 + r % 20], 3,
       clock_timestamp(), trace
FROM past
RETURNING id, company_id, trace
