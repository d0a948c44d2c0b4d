-- name: insert_commands
-- Commands as they come from services, and deliveries as they come from the router. A key that is known is a duplicate.
INSERT INTO channel_events (id, company_id, connection_id, parent_id, direction, event_type, entity_type,
    entity_internal_id, idempotency_key, payload, sealed, lane, lane_policy, max_attempts, trace)
SELECT id, company_id, connection_id, parent_id, 'outbound', event_type, entity_type, entity_internal_id,
       idempotency_key, payload::json, sealed, lane, lane_policy, max_attempts, trace
FROM unnest($1::uuid[], $2::text[], $3::text[], $4::uuid[], $5::text[], $6::text[], $7::text[], $8::text[], $9::text[],
            $10::bytea[], $11::text[], $12::text[], $13::int[], $14::text[])
    WITH ORDINALITY AS g (id, company_id, connection_id, parent_id, event_type, entity_type, entity_internal_id,
        idempotency_key, payload, sealed, lane, lane_policy, max_attempts, trace, position)
ORDER BY position -- the order of arrival is the order of the lane
ON CONFLICT DO NOTHING
RETURNING id

-- name: deliveries_there
SELECT e.id FROM unnest($1::uuid[], $2::uuid[]) AS g (id, parent_id)
JOIN channel_events e ON e.id = g.id AND e.parent_id = g.parent_id

-- name: load_commands
-- The open ones of these, and before them what was recorded earlier about the same entities and is not routed yet: its
-- wake-up may be late, but the order of recording is the order of the lane.
-- IS TRUE: by id, as `load` of inbound.sql. OFFSET 0, here and below, as in `standing` of ingest.sql: all that waits may be much.
WITH named AS (
    SELECT e.id, e.company_id, e.entity_type, e.entity_internal_id, e.seq FROM channel_events e
    WHERE e.id = ANY ($1::uuid[]) AND (e.direction = 'outbound') IS TRUE AND e.parent_id IS NULL
      AND e.status IN ('received', 'processing', 'retrying')
), wanted AS (
    SELECT id FROM named
    UNION
    SELECT o.id FROM named n CROSS JOIN LATERAL (
        SELECT id FROM channel_events
        WHERE company_id = n.company_id AND entity_internal_id = n.entity_internal_id AND seq < n.seq
            AND entity_type = n.entity_type AND direction = 'outbound' AND parent_id IS NULL AND status = 'received' OFFSET 0) o
)
SELECT e.id, e.company_id, e.connection_id, e.event_type, e.idempotency_key, e.payload::text AS payload, e.sealed,
       e.status, e.attempts, e.max_attempts, e.starts, e.received_at, e.trace, e.error_class,
       CASE WHEN e.overlay_id IS NOT NULL THEN (
           SELECT jsonb_build_object('readable', d.overlay, 'sealed', encode(d.overlay_sealed, 'base64'))::text
           FROM dead_letters d WHERE d.id = e.overlay_id) END AS overlay
FROM channel_events e WHERE e.id IN (SELECT id FROM wanted)
ORDER BY e.seq LIMIT $2

-- name: mapped_connections
-- Where an entity of the core lives: the connections that have a mapping for it.
SELECT m.company_id, m.internal_entity_type AS entity_type, m.internal_entity_id AS internal_id, m.connection_id, c.vendor
FROM unnest($1::text[], $2::text[], $3::text[]) AS wanted (company_id, entity_type, internal_id)
JOIN int_mappings m ON m.company_id = wanted.company_id AND m.internal_entity_type = wanted.entity_type
    AND m.internal_entity_id = wanted.internal_id
JOIN connections c ON c.id = m.connection_id
WHERE m.is_active AND m.auto_sync AND c.status <> 'disabled'
ORDER BY m.connection_id

-- name: laned_connections
-- Where commands about an entity are under way, mapped yet or not: an update may follow its create closely.
SELECT DISTINCT wanted.company_id, wanted.prefix, e.connection_id, c.vendor
FROM unnest($1::text[], $2::text[]) AS wanted (company_id, prefix)
CROSS JOIN LATERAL (
    SELECT connection_id FROM channel_events
    WHERE lane >= wanted.prefix AND lane < wanted.prefix || chr(1114111)
        AND lane = wanted.prefix || connection_id -- an id may itself begin with this prefix
        AND lane IS NOT NULL AND status IN ('received', 'processing', 'retrying', 'failed')
        AND company_id = wanted.company_id OFFSET 0) e
JOIN connections c ON c.id = e.connection_id
WHERE c.status <> 'disabled'

-- name: claim
-- Leases the deliveries that may run now. The lane is locked (in the order of their names) and looked at, never skipped: a
-- second worker must not overtake the first. What is not due, not its lane's turn, or taken by another worker is simply not
-- among the answers. What the same token ($4) has taken already is, and is not counted once more: a claim whose answer was lost
-- is made again. What is at its last start ($5) stays there until `begin_alone`, however often it is claimed.
-- IS TRUE, here and below: by id, as `load` of inbound.sql. All deliveries, or all that is leased, may be much.
WITH wanted AS MATERIALIZED (
    SELECT e.id, e.lane, e.lane_policy, e.seq, e.status = 'processing' AS ours FROM channel_events e
    WHERE e.id = ANY ($1::uuid[]) AND (e.parent_id IS NOT NULL) IS TRUE
      AND (e.status IN ('received', 'retrying') AND (e.next_attempt_at IS NULL OR e.next_attempt_at <= clock_timestamp())
           AND EXISTS (SELECT FROM connections c WHERE c.id = e.connection_id AND c.status = 'active')
        OR e.status = 'processing' AND e.lease_token = $4)
    ORDER BY e.lane, e.seq
), runnable AS MATERIALIZED (
    SELECT w.id FROM wanted w WHERE w.ours OR take_lane(w.id, w.lane, w.lane_policy, w.seq)
)
UPDATE channel_events e
SET status = 'processing', attempts = e.attempts + (e.status <> 'processing')::int,
    starts = e.starts + (e.status <> 'processing' AND e.starts < $5)::int, worker = $2, lease_token = $4,
    lease_until = clock_timestamp() + make_interval(secs => $3), next_attempt_at = NULL,
    published_at = COALESCE(e.published_at, clock_timestamp())
FROM runnable
WHERE e.id = runnable.id
  AND (e.status IN ('received', 'retrying') AND (e.next_attempt_at IS NULL OR e.next_attempt_at <= clock_timestamp())
    OR e.status = 'processing' AND e.lease_token = $4)
RETURNING e.id, e.company_id, e.connection_id, e.event_type, e.entity_type, e.entity_internal_id, e.idempotency_key,
          e.payload::text AS payload, e.sealed, e.attempts, e.max_attempts, e.starts, e.received_at, e.trace,
          e.error_class, e.lane, e.lane_policy, e.lease_token,
          CASE WHEN e.overlay_id IS NOT NULL THEN (
              SELECT jsonb_build_object('readable', d.overlay, 'sealed', encode(d.overlay_sealed, 'base64'))::text
              FROM dead_letters d WHERE d.id = e.overlay_id) END AS overlay

-- name: begin_alone
-- Its last start is over when this counts it, unless it is settled. The lease begins anew.
UPDATE channel_events SET starts = $4 + 1, lease_until = clock_timestamp() + make_interval(secs => $3)
WHERE id = $1 AND lease_token = $2 AND (status = 'processing') IS TRUE
RETURNING id

-- name: recount
-- Of deliveries whose lease is still held.
UPDATE channel_events e SET attempts = g.attempts, starts = g.starts
FROM unnest($1::uuid[], $2::uuid[], $3::int[], $4::int[]) AS g (id, lease_token, attempts, starts)
WHERE e.id = g.id AND e.lease_token = g.lease_token AND (e.status = 'processing') IS TRUE

-- name: external_ids
SELECT m.connection_id, m.internal_entity_type AS entity_type, m.internal_entity_id AS internal_id,
       m.external_entity_id AS external_id
FROM unnest($1::text[], $2::text[], $3::text[]) AS wanted (connection_id, entity_type, internal_id)
JOIN connections c ON c.id = wanted.connection_id
JOIN int_mappings m ON m.company_id = c.company_id AND m.internal_entity_type = wanted.entity_type
    AND m.internal_entity_id = wanted.internal_id AND m.connection_id = c.id
WHERE m.is_active

-- name: note_own_writes
INSERT INTO own_writes (event_id, company_id, connection_id, external_id, marker, expected, expires_at)
SELECT event_id, company_id, connection_id, external_id, marker, expected::jsonb, clock_timestamp() + interval '1 day'
FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[])
    AS g (event_id, company_id, connection_id, external_id, marker, expected)
ON CONFLICT (event_id) DO UPDATE
SET written_at = clock_timestamp(), expected = EXCLUDED.expected,
    external_id = COALESCE(EXCLUDED.external_id, own_writes.external_id)

-- name: forget_own_writes
-- Noted before the call, which then was not made, or refused: who does the same now does it themselves.
DELETE FROM own_writes WHERE event_id = ANY ($1::uuid[])

-- name: succeed
-- Deliveries that their vendors have done, with the tokens of their leases ($2): their end, the names that the vendors gave,
-- what was said, and what others hear of it ($3: its type, $4: id of the batch).
-- Whose lease is another's now is not among the answers, and nothing of it is written.
WITH held AS MATERIALIZED (
    SELECT g.*, e.company_id, e.connection_id, e.entity_internal_id, e.worker, e.trace
    FROM unnest($1::delivery_row[], $2::uuid[]) AS g (id, attempts, started_at, external_id, internal_id, entity_type,
        request, response, result, told, lease_token)
    JOIN channel_events e ON e.id = g.id AND e.lease_token = g.lease_token
    WHERE (e.status = 'processing') IS TRUE
    ORDER BY e.id
    FOR UPDATE OF e
), done AS (
    UPDATE channel_events e
    SET status = 'done', starts = 0, next_attempt_at = NULL, error_class = NULL, last_error = NULL, lease_until = NULL,
        started_at = h.started_at, processed_at = clock_timestamp(),
        published_at = COALESCE(e.published_at, clock_timestamp()),
        entity_external_id = COALESCE(h.external_id, e.entity_external_id)
    FROM held h
    WHERE e.id = h.id
), tried AS (
    INSERT INTO event_attempts (event_id, company_id, attempt, outcome, worker, started_at)
    SELECT id, company_id, attempts, 'done', worker, started_at FROM held
), learned AS (
    INSERT INTO int_mappings (company_id, connection_id, external_entity_type, external_entity_id, internal_entity_type,
                              internal_entity_id)
    SELECT DISTINCT ON (connection_id, entity_type, external_id)
           company_id, connection_id, entity_type, external_id, entity_type, internal_id
    FROM held WHERE external_id IS NOT NULL AND entity_type = 'reservation' -- all else had its name before
    ORDER BY connection_id, entity_type, external_id, id
    ON CONFLICT (connection_id, external_entity_type, external_entity_id)
    DO UPDATE SET internal_entity_id = EXCLUDED.internal_entity_id, is_active = true
), answered AS (
    UPDATE own_writes w SET external_id = h.external_id
    FROM held h WHERE w.event_id = h.id AND h.external_id IS NOT NULL AND w.external_id IS DISTINCT FROM h.external_id
), exchanged AS (
    INSERT INTO sync_exchanges AS x (event_id, company_id, request, response)
    SELECT id, company_id, request::jsonb, response::jsonb FROM held
    ON CONFLICT (event_id) DO UPDATE
    SET request = EXCLUDED.request, response = COALESCE(EXCLUDED.response, x.response), at = clock_timestamp()
), kept AS (
    INSERT INTO core_events (id, company_id, connection_id, event_type, subject, data, cause_id, trace)
    SELECT result, company_id, connection_id, $3, entity_internal_id, told::json, id, trace FROM held
), batch AS (
    INSERT INTO core_batches (id, event_ids) SELECT $4, array_agg(result ORDER BY id) FROM held HAVING count(*) > 0
)
SELECT id FROM held

-- name: lock_leased
-- The fence, for what did not succeed: a worker that slept through its lease finds nothing here.
SELECT e.id FROM channel_events e
JOIN unnest($1::uuid[], $2::uuid[]) AS g (id, lease_token) ON g.id = e.id AND g.lease_token = e.lease_token
WHERE (e.status = 'processing') IS TRUE
ORDER BY e.id
FOR UPDATE OF e

-- name: note_exchanges
INSERT INTO sync_exchanges AS x (event_id, company_id, request, response)
SELECT event_id, company_id, request::jsonb, response::jsonb
FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[]) AS g (event_id, company_id, request, response)
ON CONFLICT (event_id) DO UPDATE
SET request = EXCLUDED.request, response = COALESCE(EXCLUDED.response, x.response), at = clock_timestamp()

-- name: waiting
-- Deliveries of one connection that may run: bookings first, rates last, of each those that wait longest. What `claim` would
-- refuse is not among them, or the same ones would be found and refused for ever.
WITH RECURSIVE ready AS NOT MATERIALIZED (
    SELECT e.id, e.lane, e.lane_policy, e.seq FROM channel_events e
    WHERE e.connection_id = $1 AND e.status = 'received' AND e.parent_id IS NOT NULL
      AND (e.next_attempt_at IS NULL OR e.next_attempt_at <= now())
), rates AS (
    -- One row of each lane, its oldest; then the newest goes out, for all of them.
    (SELECT lane, seq, ARRAY[lane] AS seen FROM ready WHERE lane_policy = 'supersede' ORDER BY seq LIMIT 1)
    UNION ALL
    SELECT n.lane, n.seq, r.seen || n.lane FROM rates r CROSS JOIN LATERAL (
        SELECT lane, seq FROM ready WHERE lane_policy = 'supersede' AND seq > r.seq AND lane <> ALL (r.seen)
        ORDER BY seq LIMIT 1) n
), newest AS (
    SELECT n.* FROM rates r CROSS JOIN LATERAL (
        SELECT e.id, e.lane, e.lane_policy, e.seq, e.status, e.next_attempt_at FROM channel_events e
        WHERE e.lane = r.lane AND e.status IN ('received', 'processing', 'retrying') ORDER BY e.seq DESC LIMIT 1) n
)
SELECT id FROM (
    (SELECT id, lane, lane_policy, seq FROM ready
     WHERE lane_policy = 'hold' AND lane_is_free(id, lane, lane_policy, seq) ORDER BY seq LIMIT $2)
    UNION ALL
    (SELECT id, lane, lane_policy, seq FROM ready WHERE lane_policy = 'independent' ORDER BY seq LIMIT $2)
    UNION ALL
    (SELECT id, lane, lane_policy, seq FROM newest
     WHERE status = 'received' AND (next_attempt_at IS NULL OR next_attempt_at <= now())
       AND lane_is_free(id, lane, lane_policy, seq) LIMIT $2)
) found
WHERE EXISTS (SELECT FROM connections c WHERE c.id = $1 AND c.status = 'active') LIMIT $2

-- name: wake_waiting
-- Stale at once, for the next look of the relay. Not null: who announced them a moment ago would mark them once more.
-- What somebody holds locked is passed over: nobody who wakes waits for anybody. However many there are, $3 of each connection
-- do, bookings first: who has to turn some of them away looks for the rest in the table.
UPDATE channel_events e SET published_at = '2000-01-01Z'
FROM unnest($1::text[]) AS g (connection_id) CROSS JOIN LATERAL (
    SELECT id FROM channel_events
    WHERE connection_id = g.connection_id AND status = 'received' AND parent_id IS NOT NULL AND id <> ALL ($2::uuid[])
    ORDER BY lane_policy, seq LIMIT $3 FOR UPDATE SKIP LOCKED) w
WHERE e.id = w.id

-- name: lane_heads
-- The command of each lane that is next, for waking it when the one before it is settled.
SELECT DISTINCT ON (e.lane) e.id, e.company_id, e.connection_id, e.event_type, e.trace, e.status, c.vendor
FROM channel_events e JOIN connections c ON c.id = e.connection_id
WHERE e.lane = ANY ($1::text[]) AND e.status IN ('received', 'processing', 'retrying', 'failed')
  AND (e.status <> 'failed' OR e.lane_policy = 'hold')
ORDER BY e.lane, CASE WHEN e.lane_policy = 'supersede' THEN -e.seq ELSE e.seq END

-- name: older_in_lane
-- What waits in the lane of a claimed delivery and is older, the oldest first, in the form of `claim` and with the lease of the
-- claimed one: it says them too, or ahead of itself.
SELECT e.id, e.company_id, e.connection_id, e.event_type, e.entity_type, e.entity_internal_id, e.idempotency_key,
       e.payload::text AS payload, e.sealed, e.attempts + 1, e.max_attempts, e.starts, e.received_at, e.trace,
       e.error_class, e.lane, e.lane_policy, n.lease_token,
       CASE WHEN e.overlay_id IS NOT NULL THEN (
           SELECT jsonb_build_object('readable', d.overlay, 'sealed', encode(d.overlay_sealed, 'base64'))::text
           FROM dead_letters d WHERE d.id = e.overlay_id) END AS overlay
FROM channel_events n
CROSS JOIN LATERAL (
    SELECT * FROM channel_events
    WHERE lane = n.lane AND seq < n.seq AND status IN ('received', 'retrying') OFFSET 0) e
WHERE n.id = $1 AND n.lane_policy = 'supersede'
ORDER BY e.seq LIMIT $2

-- name: supersede
-- Deliveries that went out with a newer one of their lane: their end, what was said, what others hear of it ($7: its type, $8:
-- id of the batch), and the end of a dead letter that was requeued.
WITH ended AS (
    UPDATE channel_events e SET status = 'superseded', processed_at = clock_timestamp(), next_attempt_at = NULL,
        published_at = COALESCE(e.published_at, clock_timestamp()), last_error = g.why
    FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::uuid[], $6::text[])
        AS g (id, why, request, response, result, told)
    WHERE e.id = g.id AND e.status IN ('received', 'retrying')
    RETURNING e.id, e.company_id, e.connection_id, e.entity_internal_id, e.trace, e.seq, g.request, g.response, g.result,
        g.told
), exchanged AS (
    INSERT INTO sync_exchanges AS x (event_id, company_id, request, response)
    SELECT id, company_id, request::jsonb, response::jsonb FROM ended WHERE request IS NOT NULL
    ON CONFLICT (event_id) DO UPDATE
    SET request = EXCLUDED.request, response = COALESCE(EXCLUDED.response, x.response), at = clock_timestamp()
), kept AS (
    INSERT INTO core_events (id, company_id, connection_id, event_type, subject, data, cause_id, trace)
    SELECT result, company_id, connection_id, $7, entity_internal_id, told::json, id, trace FROM ended
), batch AS (
    INSERT INTO core_batches (id, event_ids) SELECT $8, array_agg(result ORDER BY seq) FROM ended HAVING count(*) > 0
), closed AS (
    UPDATE dead_letters d SET status = 'resolved', resolved_at = clock_timestamp(),
        resolved_by = COALESCE(d.resolved_by, 'requeue')
    FROM ended WHERE d.event_id = ended.id AND d.status IN ('pending', 'retrying')
)
SELECT id FROM ended
