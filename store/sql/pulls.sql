-- name: due
-- Whose time has come, and for whom there is room: $1 vendors that can be pulled, $2 seconds between two pulls where the
-- connection says nothing else, $3 connections that $6 pulls now, $4 pulls of a vendor at once, $5 of these, of one company. A
-- connection that never was pulled is new: what was lost since it came is asked for after its first interval. A lease of $6 that
-- it knows nothing of is of a claim whose answer was lost.
WITH candidates AS (
    SELECT c.id, c.vendor, c.company_id, c.id = ANY ($3::text[]) AS under_way, COALESCE(p.finished_at, c.created_at) AS since
    FROM connections c LEFT JOIN pulls p ON p.connection_id = c.id
    CROSS JOIN LATERAL (SELECT CASE WHEN c.config ->> 'pull' ~ '^[0-9]{1,8}$' THEN (c.config ->> 'pull')::float8 ELSE $2 END
                        AS seconds) every
    WHERE c.vendor = ANY ($1::text[])
      AND (c.id = ANY ($3::text[])
        OR c.status = 'active' AND every.seconds > 0
           AND COALESCE(p.finished_at, c.created_at) + make_interval(secs => every.seconds * COALESCE(p.spread, 1))
               <= clock_timestamp()
           AND (p.not_before IS NULL OR p.not_before <= clock_timestamp())
           AND (p.lease_until IS NULL OR p.lease_until <= clock_timestamp() OR p.worker = $6))
), of_companies AS (
    SELECT id, vendor, under_way, since,
           row_number() OVER (PARTITION BY vendor, company_id ORDER BY under_way DESC, since) AS place
    FROM candidates
), of_vendors AS (
    SELECT id, under_way, since, place,
           row_number() OVER (PARTITION BY vendor ORDER BY under_way DESC, place, since) AS place_of_vendor
    FROM of_companies WHERE place <= $5
)
SELECT id FROM of_vendors WHERE NOT under_way AND place_of_vendor <= $4 ORDER BY place, since

-- name: claim
-- The lease decides between two schedulers that found the same connection due. What $2 holds is claimed anew: it asks for
-- nothing that it knows to be its own.
WITH taken AS (
    INSERT INTO pulls AS p (connection_id, company_id, worker, lease_until, started_at)
    SELECT c.id, c.company_id, $2, clock_timestamp() + make_interval(secs => $3), clock_timestamp()
    FROM connections c WHERE c.id = ANY ($1::text[])
    ORDER BY c.id
    ON CONFLICT (connection_id) DO UPDATE
    SET worker = EXCLUDED.worker, lease_until = EXCLUDED.lease_until, started_at = EXCLUDED.started_at
    WHERE p.lease_until IS NULL OR p.lease_until <= clock_timestamp() OR p.worker = EXCLUDED.worker
    RETURNING p.connection_id, p.worker, p.started_at, p.covered_until, p.failures
)
SELECT t.connection_id, t.worker, t.started_at, COALESCE(t.covered_until, c.created_at) AS covered_until, t.failures
FROM taken t JOIN connections c ON c.id = t.connection_id

-- name: holder
-- Who is pulling this connection now.
SELECT worker, started_at FROM pulls WHERE connection_id = $1 AND lease_until > clock_timestamp()

-- name: hold
UPDATE pulls SET lease_until = clock_timestamp() + make_interval(secs => $4)
WHERE connection_id = $1 AND worker = $2 AND started_at = $3 AND lease_until IS NOT NULL
RETURNING connection_id

-- name: stored
-- Of facts that are recorded already ($2 their number, $4 the event that has their key): what is stored of their entity, or
-- nulls, where the event has had its end.
SELECT g.n, r.source_event, r.source_version, r.external_property_id, r.external_room_type_id, r.external_unit_id, r.status,
       r.check_in, r.check_out, r.adults, r.children, r.total_price, r.currency, r.source, r.source_reference, r.booked_at,
       r.cancelled_at, u.sealed AS guest
FROM unnest($2::int[], $3::text[], $4::uuid[]) AS g (n, external_id, event_id)
JOIN channel_events e ON e.id = g.event_id AND e.status IN ('done', 'skipped')
LEFT JOIN int_reservations r ON r.connection_id = $1 AND r.external_id = g.external_id
LEFT JOIN int_guests u ON u.id = r.guest_id

-- name: known
-- Which of these keys are recorded.
SELECT idempotency_key FROM channel_events
WHERE company_id = $1 AND direction = 'inbound' AND idempotency_key = ANY ($2::text[])

-- name: finish
-- $4 listed, $5 recorded, $6 spread, $7 whether everything since the last one was asked for.
WITH ended AS (
    UPDATE pulls SET lease_until = NULL, not_before = NULL, failures = 0, error_class = NULL, last_error = NULL,
        listed = $4, recorded = $5, spread = $6,
        finished_at = CASE WHEN $7 THEN clock_timestamp() ELSE finished_at END,
        covered_until = CASE WHEN $7 THEN started_at ELSE covered_until END
    WHERE connection_id = $1 AND worker = $2 AND started_at = $3 AND lease_until IS NOT NULL
    RETURNING connection_id
)
UPDATE connections c SET last_sync_at = clock_timestamp() FROM ended WHERE c.id = ended.connection_id

-- name: fail
UPDATE pulls SET lease_until = NULL, failures = failures + 1, error_class = $4, last_error = $5,
    not_before = clock_timestamp() + make_interval(secs => $6)
WHERE connection_id = $1 AND worker = $2 AND started_at = $3 AND lease_until IS NOT NULL

-- name: put_off
-- Neither done nor failed: a stop, or an empty rate budget.
UPDATE pulls SET lease_until = NULL, not_before = clock_timestamp() + make_interval(secs => $4)
WHERE connection_id = $1 AND worker = $2 AND started_at = $3 AND lease_until IS NOT NULL

-- name: overview
-- $1 vendors that can be pulled, $2 seconds between two pulls where the connection says nothing else.
SELECT c.id, c.company_id, c.vendor, c.status, c.created_at,
       CASE WHEN c.config ->> 'pull' ~ '^[0-9]{1,8}$' THEN (c.config ->> 'pull')::float8 ELSE $2 END AS every,
       p.covered_until, p.finished_at, p.started_at, COALESCE(p.lease_until > clock_timestamp(), false) AS running,
       EXTRACT(epoch FROM clock_timestamp() - COALESCE(p.covered_until, c.created_at))::float8 AS lag,
       p.not_before, COALESCE(p.listed, 0) AS listed, COALESCE(p.recorded, 0) AS recorded,
       COALESCE(p.failures, 0) AS failures, p.error_class, p.last_error
FROM connections c LEFT JOIN pulls p ON p.connection_id = c.id
WHERE c.vendor = ANY ($1::text[])
ORDER BY c.id
