-- One look for each reason, each on its own partial index. Rows are independent, so SKIP LOCKED lets several
-- schedulers share the work. Each look marks its rows before they are published: a crash between costs a delay,
-- never a row, because the mark runs out.

-- name: unpublished
-- Recorded, and not confirmed by the broker within $1 seconds.
UPDATE channel_events e SET published_at = clock_timestamp()
FROM (SELECT id FROM channel_events
      WHERE status = 'received' AND published_at IS NULL AND received_at < clock_timestamp() - make_interval(secs => $1)
      ORDER BY received_at LIMIT $2 FOR UPDATE SKIP LOCKED) due
WHERE e.id = due.id
RETURNING e.id, e.company_id, e.connection_id, e.parent_id, e.direction, e.event_type, e.trace

-- name: stale
-- Published, and not settled within $1 seconds: the wake-up may be lost. A command that waits behind its lane's head is
-- woken by the head.
UPDATE channel_events e SET published_at = clock_timestamp()
FROM (SELECT w.id FROM channel_events w
      WHERE w.status = 'received' AND w.published_at < clock_timestamp() - make_interval(secs => $1)
        AND CASE w.lane_policy
            WHEN 'hold' THEN NOT EXISTS (
                SELECT FROM channel_events h WHERE h.lane = w.lane AND h.seq < w.seq
                    AND h.status IN ('received', 'processing', 'retrying', 'failed'))
            WHEN 'supersede' THEN NOT EXISTS (
                SELECT FROM channel_events h WHERE h.lane = w.lane AND h.id <> w.id
                    AND (h.status = 'processing' OR (h.status IN ('received', 'retrying') AND h.seq > w.seq)))
            ELSE true END
        AND (w.parent_id IS NULL
             OR EXISTS (SELECT FROM connections c WHERE c.id = w.connection_id AND c.status = 'active'))
      ORDER BY w.published_at LIMIT $2 FOR UPDATE SKIP LOCKED) due
WHERE e.id = due.id
RETURNING e.id, e.company_id, e.connection_id, e.parent_id, e.direction, e.event_type, e.trace

-- name: due
-- Retries whose time has come; from here on they are received again, with their attempts.
UPDATE channel_events e SET status = 'received', published_at = clock_timestamp(), next_attempt_at = NULL
FROM (SELECT id FROM channel_events WHERE status = 'retrying' AND next_attempt_at <= clock_timestamp()
      ORDER BY next_attempt_at LIMIT $2 FOR UPDATE SKIP LOCKED) due
WHERE e.id = due.id AND $1::float8 IS NOT NULL
RETURNING e.id, e.company_id, e.connection_id, e.parent_id, e.direction, e.event_type, e.trace

-- name: expired
-- Leases that ran out without an answer: what was begun is unknown; the next attempt asks before it repeats.
UPDATE channel_events e SET status = 'received', published_at = clock_timestamp(), lease_until = NULL,
    error_class = 'unknown', last_error = 'the worker that had it did not answer'
FROM (SELECT id FROM channel_events
      WHERE status = 'processing' AND lease_until < clock_timestamp() - make_interval(secs => $1)
      ORDER BY lease_until LIMIT $2 FOR UPDATE SKIP LOCKED) due
WHERE e.id = due.id
RETURNING e.id, e.company_id, e.connection_id, e.parent_id, e.direction, e.event_type, e.trace

-- name: core
-- Results that were committed and not confirmed within $1 seconds.
SELECT id, company_id, connection_id, event_type, subject, data::text AS data, cause_id, trace FROM core_events
WHERE published_at IS NULL AND created_at < clock_timestamp() - make_interval(secs => $1)
ORDER BY created_at LIMIT $2 FOR UPDATE SKIP LOCKED

-- name: outbox
SELECT id, company_id, event_type, subject, connection_id, payload::text AS payload, idempotency_key FROM outbox
WHERE taken_at IS NULL ORDER BY created_at LIMIT $1 FOR UPDATE SKIP LOCKED

-- name: outbox_taken
-- The event has the payload now, its personal part sealed; here it would stay readable. What was refused is its writer's.
UPDATE outbox o SET taken_at = clock_timestamp(), event_id = g.event_id, error = g.error,
    payload = CASE WHEN g.event_id IS NULL THEN o.payload ELSE '{}' END
FROM unnest($1::uuid[], $2::uuid[], $3::text[]) AS g (id, event_id, error) WHERE o.id = g.id

-- name: vendors
SELECT id, vendor FROM connections WHERE id = ANY ($1::text[])

-- name: backlog
-- For the gauges; each part reads only its partial index.
SELECT
    (SELECT count(*) FROM (SELECT FROM channel_events WHERE status = 'received' AND published_at IS NULL LIMIT 100000) u)
        AS unpublished,
    (SELECT EXTRACT(epoch FROM clock_timestamp() - min(created_at)) FROM dead_letters
        WHERE status IN ('pending', 'retrying')) AS oldest_letter,
    (SELECT EXTRACT(epoch FROM clock_timestamp() - min(received_at)) FROM channel_events
        WHERE lane IS NOT NULL AND status IN ('received', 'processing', 'retrying', 'failed')) AS lane_age

-- name: open_letters
SELECT COALESCE(vendor, 'none') AS vendor, owner, operation, count(*) AS n FROM dead_letters
WHERE status IN ('pending', 'retrying') GROUP BY 1, 2, 3
