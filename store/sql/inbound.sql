-- name: load
-- The rows that a message names, with what we wrote to the same entity a short while ago (for echoes): what, when, and when the
-- core had told us to.
SELECT e.id, e.company_id, e.connection_id, e.event_type, e.entity_type, e.entity_external_id,
       e.payload::text AS payload, e.sealed, e.status, e.attempts, e.max_attempts, e.starts, e.received_at, e.trace,
       e.error_class,
       (SELECT jsonb_agg(jsonb_build_object('expected', w.expected, 'written_at', w.written_at, 'said_at', (
                   SELECT c.received_at FROM channel_events d JOIN channel_events c ON c.id = d.parent_id
                   WHERE d.id = w.event_id)))::text
        FROM own_writes w
        WHERE w.connection_id = e.connection_id AND w.external_id = e.entity_external_id AND w.expires_at > now()
       ) AS own_writes,
       CASE WHEN e.overlay_id IS NOT NULL THEN (
           SELECT jsonb_build_object('readable', d.overlay, 'sealed', encode(d.overlay_sealed, 'base64'))::text
           FROM dead_letters d WHERE d.id = e.overlay_id) END AS overlay
FROM channel_events e
-- IS TRUE, so that rows are looked up by id: planned while there was little, a plain condition has all of a direction read by index.
WHERE e.id = ANY ($1::uuid[]) AND (e.direction = 'inbound') IS TRUE

-- name: start_alone
-- Counts a start before the event runs, so that one that kills its worker is found by itself; the last one as `begin_alone` does.
-- What is leased has its starts counted by its lease, and what is not due does not start: its neighbours may come back often.
-- What the same token ($3) has counted is not counted once more.
UPDATE channel_events e
SET starts = CASE WHEN before.counted THEN before.starts WHEN before.starts + 1 < $2 THEN before.starts + 1 ELSE $2 + 1 END,
    lease_token = CASE WHEN before.starts > $2 THEN before.lease_token ELSE $3 END
FROM (SELECT id, starts, lease_token, lease_token IS NOT DISTINCT FROM $3 AS counted FROM channel_events
      WHERE id = $1 AND direction = 'inbound' AND status IN ('received', 'retrying')
        AND (next_attempt_at IS NULL OR next_attempt_at <= clock_timestamp()) FOR UPDATE) before
WHERE e.id = before.id
RETURNING CASE WHEN before.counted THEN LEAST(before.starts - 1, $2) ELSE before.starts END

-- name: lease
-- Facts about which the vendor must be asked first: meanwhile their rows say who does it, and not a message in the broker.
-- What the same token ($5) has taken already is not counted once more, nor what is at its last start ($6), see `claim`. What was
-- counted by `start_alone` ($4 = 0) has been read, and may have its last start, of being asked for, before it still.
UPDATE channel_events e SET status = 'processing', worker = $2, lease_token = $5, next_attempt_at = NULL,
    starts = CASE WHEN e.status = 'processing' OR e.starts >= $6 AND $4 > 0 THEN e.starts ELSE LEAST(e.starts + $4, $6) END,
    lease_until = clock_timestamp() + make_interval(secs => $3), published_at = COALESCE(e.published_at, clock_timestamp())
WHERE e.id = ANY ($1::uuid[])
  AND (e.status IN ('received', 'retrying') AND (e.next_attempt_at IS NULL OR e.next_attempt_at <= clock_timestamp())
    OR e.status = 'processing' AND e.lease_token = $5)
RETURNING e.id, e.starts

-- name: begin_alone
-- IS TRUE, here and below: by id, as `load`. What is leased may be much, where a vendor is slow.
UPDATE channel_events SET starts = $3 + 1 WHERE id = $1 AND (status = 'processing') IS TRUE AND worker = $2

-- name: prolong
UPDATE channel_events SET lease_until = clock_timestamp() + make_interval(secs => $3)
WHERE id = ANY ($1::uuid[]) AND (status = 'processing') IS TRUE AND worker = $2

-- name: release
-- Stale at once, for the next look of the relay. Not null: who announced them a moment ago would mark them once more.
UPDATE channel_events SET status = 'received', starts = GREATEST(starts - 1, 0), lease_until = NULL,
    published_at = '2000-01-01Z'
WHERE id = ANY ($1::uuid[]) AND (status = 'processing') IS TRUE AND worker = $2

-- name: lock_open
-- Decides between two workers that performed the same event: the second finds it settled.
SELECT id FROM channel_events
WHERE id = ANY ($1::uuid[]) AND status IN ('received', 'processing', 'retrying')
ORDER BY id
FOR UPDATE

-- name: lock_held
-- As `lock_open`; of what was leased ($2, null of what was not) only what is leased still, see `finish`.
SELECT e.id, g.lease_token FROM channel_events e
JOIN unnest($1::uuid[], $2::uuid[]) AS g (id, lease_token) ON g.id = e.id
WHERE (e.status IN ('received', 'processing', 'retrying')) IS TRUE
  AND (g.lease_token IS NULL OR e.status = 'processing' AND e.lease_token = g.lease_token)
ORDER BY e.id
FOR UPDATE OF e

-- name: stored_states
-- As the core was told them, or had said them itself, and when it was told last.
SELECT r.connection_id, r.external_id, r.told_at, r.external_property_id, r.external_room_type_id, r.external_unit_id, r.status,
       r.check_in, r.check_out, r.adults, r.children, r.total_price, r.currency, r.source, r.source_reference, r.booked_at,
       r.cancelled_at
FROM unnest($1::text[], $2::text[]) AS g (connection_id, external_id)
JOIN int_reservations r ON r.connection_id = g.connection_id AND r.external_id = g.external_id
ORDER BY r.connection_id, r.external_id
FOR UPDATE OF r

-- name: apply_states
-- States of reservations, the events that brought them ($3: since when they were worked at; null: the caller ends them), and
-- what others hear of them ($4: its type, $5: id of the batch). All of it or nothing: an event that is not open any more ends
-- the statement.
-- The fence: only a greater (source_version, asked, observed_at) replaces what is stored; asked, said by the vendor's API, is a
-- tie of 100 and more (schemas.entities.Version).
-- Known personal data is not overwritten by a state that brings none.
WITH given AS (
    SELECT * FROM unnest($1::state_row[])
), guest AS (
    INSERT INTO int_guests AS stored (id, company_id, connection_id, external_id, language, country, sealed,
                                      source_version, observed_at, tie)
    SELECT guest_id, company_id, connection_id, 'reservation:' || external_id, guest_language, guest_country,
           guest_sealed, source_version, observed_at, tie
    FROM given
    WHERE guest_sealed IS NOT NULL
    ORDER BY connection_id, external_id
    ON CONFLICT (connection_id, external_id) DO UPDATE
    SET sealed = EXCLUDED.sealed, language = COALESCE(EXCLUDED.language, stored.language),
        country = COALESCE(EXCLUDED.country, stored.country), source_version = EXCLUDED.source_version,
        observed_at = EXCLUDED.observed_at, tie = EXCLUDED.tie, updated_at = now()
    WHERE (stored.source_version, stored.tie >= 100, stored.observed_at)
        < (EXCLUDED.source_version, EXCLUDED.tie >= 100, EXCLUDED.observed_at)
), applied AS (
    INSERT INTO int_reservations AS stored (
        id, company_id, connection_id, external_id, external_property_id, external_room_type_id, external_unit_id,
        guest_id, status, check_in, check_out, adults, children, total_price, currency, source, source_reference,
        booked_at, cancelled_at, raw_data, sealed, source_version, observed_at, tie, source_event, told_at)
    SELECT id, company_id, connection_id, external_id, external_property_id, external_room_type_id, external_unit_id,
           guest_id, status, check_in, check_out, adults, children, total_price, currency, source, source_reference,
           booked_at, cancelled_at, raw_data::json, sealed, source_version, observed_at, tie, source_event,
           CASE WHEN told IS NOT NULL THEN clock_timestamp() END
    FROM given
    ORDER BY connection_id, external_id
    ON CONFLICT (connection_id, external_id) DO UPDATE
    SET external_property_id = EXCLUDED.external_property_id,
        external_room_type_id = EXCLUDED.external_room_type_id, external_unit_id = EXCLUDED.external_unit_id,
        guest_id = COALESCE(EXCLUDED.guest_id, stored.guest_id), status = EXCLUDED.status,
        check_in = EXCLUDED.check_in, check_out = EXCLUDED.check_out, adults = EXCLUDED.adults,
        children = EXCLUDED.children, total_price = EXCLUDED.total_price, currency = EXCLUDED.currency,
        source = EXCLUDED.source, source_reference = EXCLUDED.source_reference, booked_at = EXCLUDED.booked_at,
        cancelled_at = EXCLUDED.cancelled_at, raw_data = EXCLUDED.raw_data,
        sealed = COALESCE(EXCLUDED.sealed, stored.sealed), source_version = EXCLUDED.source_version,
        observed_at = EXCLUDED.observed_at, tie = EXCLUDED.tie, source_event = EXCLUDED.source_event, updated_at = now(),
        told_at = CASE WHEN EXCLUDED.told_at IS NULL THEN stored.told_at ELSE clock_timestamp() END
    WHERE (stored.source_version, stored.tie >= 100, stored.observed_at)
        < (EXCLUDED.source_version, EXCLUDED.tie >= 100, EXCLUDED.observed_at)
    RETURNING stored.id, stored.company_id, stored.connection_id, stored.external_id, stored.guest_id, stored.source_event,
              xmax = 0 AS created
), ours AS MATERIALIZED (
    -- What the core created itself has the core's name from the first moment on, though the answer may still be on its way.
    -- A copy of its booking, our mark in it too, is another one and gets a name of its own.
    -- Looked for once: seldom is there any, and row by row the batch would be read as often as it has rows.
    SELECT DISTINCT ON (g.connection_id, d.entity_internal_id) g.connection_id, g.external_id, d.entity_internal_id AS name
    FROM given g JOIN channel_events d ON d.id = g.command AND d.connection_id = g.connection_id
        AND d.entity_type = 'reservation'
    WHERE g.command IS NOT NULL AND NOT EXISTS (
        SELECT FROM int_mappings m WHERE m.company_id = g.company_id AND m.internal_entity_type = 'reservation'
            AND m.internal_entity_id = d.entity_internal_id AND m.connection_id = g.connection_id)
    AND NOT EXISTS (
        SELECT FROM int_mappings m WHERE m.connection_id = g.connection_id AND m.external_entity_type = 'reservation'
            AND m.external_entity_id = g.external_id)
    ORDER BY g.connection_id, d.entity_internal_id, g.external_id
), named AS (
    SELECT a.company_id, a.connection_id, a.external_id, a.guest_id, a.source_event, a.created,
           COALESCE((SELECT m.internal_entity_id FROM int_mappings m
                     WHERE m.connection_id = a.connection_id AND m.external_entity_type = 'reservation'
                       AND m.external_entity_id = a.external_id),
                    (SELECT o.name FROM ours o WHERE o.connection_id = a.connection_id AND o.external_id = a.external_id),
                    a.id::text) AS internal_id
    FROM applied a
), mapped AS (
    INSERT INTO int_mappings (company_id, connection_id, external_entity_type, external_entity_id,
                              internal_entity_type, internal_entity_id)
    SELECT company_id, connection_id, 'reservation', external_id, 'reservation', internal_id
    FROM named WHERE created
    ORDER BY connection_id, external_id
    ON CONFLICT DO NOTHING
), given_again AS MATERIALIZED (
    -- What was given beside what was applied: by place, $2 has the keys. A join would compare the batch with itself.
    SELECT n.*, ($1::state_row[])[array_position($2::text[], n.connection_id || E'\n' || n.external_id)] AS state
    FROM named n
), result AS MATERIALIZED (
    SELECT (state).result AS id, company_id, connection_id, external_id, internal_id, created, source_event,
           (state).trace AS trace,
           '{"reservationId":' || to_json(internal_id) || ',"created":' || to_json(created)
               || ',"guestId":' || COALESCE(to_json(guest_id)::text, 'null') || ',' || substr((state).told, 2) AS data
    FROM given_again
), kept AS (
    INSERT INTO core_events (id, company_id, connection_id, event_type, subject, data, cause_id, trace)
    SELECT id, company_id, connection_id, $4, internal_id, data::json, source_event, trace
    FROM result WHERE id IS NOT NULL
), batch AS (
    INSERT INTO core_batches (id, event_ids)
    SELECT $5, array_agg(id) FROM result WHERE id IS NOT NULL HAVING count(*) > 0
), done AS (
    UPDATE channel_events e
    SET status = 'done', attempts = 1, starts = 0, started_at = $3, processed_at = clock_timestamp(),
        next_attempt_at = NULL, error_class = NULL, last_error = NULL, lease_until = NULL,
        published_at = COALESCE(e.published_at, clock_timestamp())
    WHERE $3::timestamptz IS NOT NULL AND e.id = ANY (ARRAY(SELECT source_event FROM applied))
      AND e.status IN ('received', 'processing', 'retrying')
    RETURNING e.id
)
SELECT connection_id, external_id, internal_id, created, id, data FROM result
WHERE $3 IS NULL OR (SELECT count(*) FROM done) = (SELECT count(*) FROM applied) OR settled_elsewhere()

-- name: overtaken
-- Of these answers of the vendor's API, those of the modification time of what a webhook told, and stored, since they were
-- asked for: it may be the later change.
SELECT g.event_id FROM unnest($1::uuid[], $2::text[], $3::text[], $4::timestamptz[], $5::timestamptz[])
    AS g (event_id, connection_id, external_id, source_version, observed_at)
JOIN int_reservations r ON r.connection_id = g.connection_id AND r.external_id = g.external_id
    AND r.source_version = g.source_version AND r.tie < 100 AND r.updated_at >= g.observed_at
WHERE r.source_event <> g.event_id
ORDER BY r.connection_id, r.external_id
FOR UPDATE OF r

-- name: same_moment
-- Of these states that did not pass the fence, those with the modification time of the stored one, which came by another
-- event: the vendor's clock does not tell which of the two is its present state.
SELECT g.event_id FROM unnest($1::uuid[], $2::text[], $3::text[], $4::timestamptz[])
    AS g (event_id, connection_id, external_id, source_version)
JOIN int_reservations r ON r.connection_id = g.connection_id AND r.external_id = g.external_id
    AND r.source_version = g.source_version
WHERE r.source_event <> g.event_id

-- name: upsert_availability
WITH given AS (
    SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::date[], $6::int[], $7::bigint[],
                         $8::text[], $9::int[], $10::boolean[], $11::text[], $12::timestamptz[], $13::timestamptz[],
                         $14::smallint[])
        AS g (company_id, connection_id, external_property_id, external_room_type_id, day, available, price, currency,
              min_stay, closed, raw_data, source_version, observed_at, tie)
)
INSERT INTO int_availability AS stored (company_id, connection_id, external_property_id, external_room_type_id, day,
    available, price, currency, min_stay, closed, raw_data, source_version, observed_at, tie)
SELECT company_id, connection_id, external_property_id, external_room_type_id, day, available, price, currency,
       min_stay, closed, raw_data::jsonb, source_version, observed_at, tie
FROM given
ORDER BY connection_id, external_room_type_id, day
ON CONFLICT (connection_id, external_room_type_id, day) DO UPDATE
SET external_property_id = EXCLUDED.external_property_id, available = EXCLUDED.available, price = EXCLUDED.price,
    currency = EXCLUDED.currency, min_stay = EXCLUDED.min_stay, closed = EXCLUDED.closed,
    raw_data = EXCLUDED.raw_data, source_version = EXCLUDED.source_version, observed_at = EXCLUDED.observed_at,
    tie = EXCLUDED.tie, updated_at = now()
WHERE (stored.source_version, stored.observed_at, stored.tie)
    < (EXCLUDED.source_version, EXCLUDED.observed_at, EXCLUDED.tie)
RETURNING stored.connection_id, stored.external_room_type_id

-- name: upsert_properties
INSERT INTO int_properties AS stored (id, company_id, connection_id, external_id, name, currency, timezone, country,
    city, address, raw_data, source_version, observed_at, tie)
SELECT id, company_id, connection_id, external_id, name, currency, timezone, country, city, address, raw_data::jsonb,
       source_version, observed_at, tie
FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::text[],
            $10::text[], $11::text[], $12::timestamptz[], $13::timestamptz[], $14::smallint[])
    AS g (id, company_id, connection_id, external_id, name, currency, timezone, country, city, address, raw_data,
          source_version, observed_at, tie)
ORDER BY connection_id, external_id
ON CONFLICT (connection_id, external_id) DO UPDATE
SET name = EXCLUDED.name, currency = EXCLUDED.currency, timezone = EXCLUDED.timezone, country = EXCLUDED.country,
    city = EXCLUDED.city, address = EXCLUDED.address, raw_data = EXCLUDED.raw_data,
    source_version = EXCLUDED.source_version, observed_at = EXCLUDED.observed_at, tie = EXCLUDED.tie, updated_at = now()
WHERE (stored.source_version, stored.observed_at, stored.tie)
    < (EXCLUDED.source_version, EXCLUDED.observed_at, EXCLUDED.tie)

-- name: upsert_room_types
INSERT INTO int_room_types AS stored (id, company_id, connection_id, external_id, external_property_id, name, quantity,
    max_occupancy, raw_data, source_version, observed_at, tie)
SELECT id, company_id, connection_id, external_id, external_property_id, name, quantity, max_occupancy,
       raw_data::jsonb, source_version, observed_at, tie
FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::int[], $8::int[], $9::text[],
            $10::timestamptz[], $11::timestamptz[], $12::smallint[])
    AS g (id, company_id, connection_id, external_id, external_property_id, name, quantity, max_occupancy, raw_data,
          source_version, observed_at, tie)
ORDER BY connection_id, external_id
ON CONFLICT (connection_id, external_id) DO UPDATE
SET external_property_id = EXCLUDED.external_property_id, name = EXCLUDED.name, quantity = EXCLUDED.quantity,
    max_occupancy = EXCLUDED.max_occupancy, raw_data = EXCLUDED.raw_data, source_version = EXCLUDED.source_version,
    observed_at = EXCLUDED.observed_at, tie = EXCLUDED.tie, updated_at = now()
WHERE (stored.source_version, stored.observed_at, stored.tie)
    < (EXCLUDED.source_version, EXCLUDED.observed_at, EXCLUDED.tie)

-- name: own_writes
-- As in `load`, and by marker: a webhook about a create may come before the answer to the create does, and then only that ties
-- them. Of a create that was answered the marker ties nothing more: what else has it is somebody's copy of that booking.
SELECT g.connection_id, g.external_id, jsonb_agg(jsonb_build_object(
           'expected', w.expected, 'written_at', w.written_at, 'said_at', (
               SELECT c.received_at FROM channel_events d JOIN channel_events c ON c.id = d.parent_id
               WHERE d.id = w.event_id)))::text AS own_writes
FROM (SELECT DISTINCT * FROM unnest($1::text[], $2::text[], $3::text[])) AS g (connection_id, external_id, marker)
CROSS JOIN LATERAL (
    SELECT event_id, expected, written_at, expires_at FROM own_writes
    WHERE connection_id = g.connection_id AND external_id = g.external_id
    UNION ALL
    SELECT event_id, expected, written_at, expires_at FROM own_writes
    WHERE connection_id = g.connection_id AND marker = g.marker AND external_id IS NULL
) w
WHERE w.expires_at > now()
GROUP BY g.connection_id, g.external_id
