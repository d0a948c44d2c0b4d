-- One look for each reason, each on its own partial index. Rows are independent, so SKIP LOCKED lets several
-- schedulers share the work. Each look marks its rows before they are published: a crash between costs a delay,
-- never a row, because the mark runs out. Times are compared with now() and not with the clock, which no index
-- can be asked for: a look would read all that waits to find nothing.

-- name: waiting
-- Which of the looks below would find something: mostly none, and then this is all that a round costs.
SELECT
    EXISTS (SELECT FROM channel_events WHERE status = 'received' AND published_at IS NULL
            AND received_at < now() - make_interval(secs => $1)) AS unpublished,
    EXISTS (SELECT FROM channel_events WHERE status = 'retrying' AND next_attempt_at <= now()) AS due,
    EXISTS (SELECT FROM channel_events WHERE status = 'processing' AND lease_until < now()) AS expired,
    EXISTS (SELECT FROM channel_events WHERE status = 'received' AND published_at < now() - make_interval(secs => $2)) AS stale,
    EXISTS (SELECT FROM core_batches WHERE created_at < now() - make_interval(secs => $3)) AS untold,
    EXISTS (SELECT FROM outbox WHERE taken_at IS NULL) AS outbox,
    (SELECT EXTRACT(epoch FROM min(next_attempt_at) - now())::float8 FROM channel_events WHERE status = 'retrying') AS due_in

-- name: unpublished
-- Recorded, and not confirmed by the broker within $1 seconds. Companies take turns, beginning after $3, each with its oldest
-- rows. All who wait share $2: of one company no more facts than its share, at least 20, may be announced and not settled.
-- The rest of a flood waits here, however long it is, behind nobody but itself.
WITH RECURSIVE waiting AS (
    -- One probe of the index for each company and direction; its first entry is its oldest row.
    (SELECT company_id, direction, received_at FROM channel_events
     WHERE status = 'received' AND published_at IS NULL AND company_id > $3
     ORDER BY company_id, direction, received_at LIMIT 1)
    UNION ALL
    SELECT n.company_id, n.direction, n.received_at
    FROM waiting w CROSS JOIN LATERAL (
        SELECT company_id, direction, received_at FROM channel_events
        WHERE status = 'received' AND published_at IS NULL
          AND (company_id, direction) > (w.company_id, w.direction)
        ORDER BY company_id, direction, received_at LIMIT 1) n
), turn AS (
    SELECT company_id, direction FROM waiting WHERE received_at < now() - make_interval(secs => $1)
), share AS (
    SELECT GREATEST(20, $2 / GREATEST(1, count(*))) AS rows FROM (SELECT FROM turn LIMIT 25) t
), announced AS MATERIALIZED (
    -- What is not settled after so long is lost, or in a queue that is merely long: it must not keep the rest waiting.
    SELECT company_id, count(*) AS rows
    FROM (SELECT company_id FROM channel_events
          WHERE status = 'received' AND direction = 'inbound' AND published_at > now() - interval '10 seconds'
          ORDER BY published_at DESC LIMIT 4000) a
    GROUP BY company_id
)
UPDATE channel_events e SET published_at = clock_timestamp()
FROM (SELECT oldest.id FROM turn t CROSS JOIN LATERAL (
          SELECT id FROM channel_events
          WHERE company_id = t.company_id AND direction = t.direction AND status = 'received' AND published_at IS NULL
            AND received_at < now() - make_interval(secs => $1)
          ORDER BY received_at
          LIMIT GREATEST(0, (SELECT rows FROM share) - CASE WHEN t.direction = 'inbound' THEN
              COALESCE((SELECT a.rows FROM announced a WHERE a.company_id = t.company_id), 0) ELSE 0 END)
          FOR UPDATE SKIP LOCKED) oldest
      LIMIT $2) due
WHERE e.id = due.id
RETURNING e.id, e.company_id, e.connection_id, e.parent_id, e.direction, e.event_type, e.trace

-- name: stale
-- The first $2 rows published after ($3, $4) and not settled within $1 seconds are read; those of them are found whose wake-up is
-- lost, or in a queue that is merely long, and the last one in any case: the next look goes on from there. A command that waits
-- behind its lane's head is woken by the head, and a paused connection's not at all, so of very many there may be none to find.
-- Many may have one time: that of what was given back.
SELECT id, company_id, connection_id, parent_id, direction, event_type, trace, published_at, asleep, n
FROM (
    SELECT r.*, row_number() OVER (ORDER BY published_at, id) AS n,
        (parent_id IS NULL
            OR EXISTS (SELECT FROM connections c WHERE c.id = r.connection_id AND c.status = 'active'))
        AND lane_is_free(id, lane, lane_policy, seq) AS asleep
    FROM (SELECT id, company_id, connection_id, parent_id, direction, event_type, trace, published_at, lane, lane_policy, seq
          FROM channel_events
          WHERE status = 'received' AND published_at < now() - make_interval(secs => $1)
            AND published_at >= $3 AND (published_at, id) > ($3, $4::uuid)
          ORDER BY published_at, id LIMIT $2) r
) w
WHERE asleep OR n = $2
ORDER BY n

-- name: lost
-- Of these that were stale, those that nobody has settled or woken since.
UPDATE channel_events e SET published_at = clock_timestamp()
FROM (SELECT id FROM channel_events
      WHERE id = ANY ($2::uuid[]) AND status = 'received' AND published_at < now() - make_interval(secs => $1)
      FOR UPDATE SKIP LOCKED) due
WHERE e.id = due.id
RETURNING e.id, e.company_id, e.connection_id, e.parent_id, e.direction, e.event_type, e.trace

-- name: due
-- Retries whose time has come; from here on they are received again, with their attempts.
UPDATE channel_events e SET status = 'received', published_at = clock_timestamp(), next_attempt_at = NULL
FROM (SELECT id FROM channel_events WHERE status = 'retrying' AND next_attempt_at <= now()
      ORDER BY next_attempt_at LIMIT $2 FOR UPDATE SKIP LOCKED) due
WHERE e.id = due.id AND $1::float8 IS NOT NULL
RETURNING e.id, e.company_id, e.connection_id, e.parent_id, e.direction, e.event_type, e.trace

-- name: expired
-- Leases that ran out without an answer: what was begun is unknown; the next attempt asks before it repeats.
UPDATE channel_events e SET status = 'received', published_at = clock_timestamp(), lease_until = NULL,
    error_class = 'unknown', last_error = 'the worker that had it did not answer'
FROM (SELECT id FROM channel_events
      WHERE status = 'processing' AND lease_until < now() - make_interval(secs => $1)
      ORDER BY lease_until LIMIT $2 FOR UPDATE SKIP LOCKED) due
WHERE e.id = due.id
RETURNING e.id, e.company_id, e.connection_id, e.parent_id, e.direction, e.event_type, e.trace

-- name: outbox
-- One scheduler at a time, for the order in which the rows were written. A row that somebody holds locked is passed over, and
-- those behind it go first: all looks are one loop, which waits for nobody.
SELECT id, company_id, event_type, subject, connection_id, payload::text AS payload, idempotency_key FROM outbox
WHERE taken_at IS NULL AND (SELECT pg_try_advisory_xact_lock(7203411962)) ORDER BY created_at LIMIT $1
FOR UPDATE SKIP LOCKED

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
        WHERE lane IS NOT NULL AND status IN ('received', 'processing', 'retrying', 'failed')
          AND (status <> 'failed' OR lane_policy = 'hold')) AS lane_age -- any other failed one holds nobody

-- name: open_letters
-- With a vendor, the type is its adapter's word, or a command's that it takes; without one it may be anybody's, of which only
-- those in $1 are told apart.
SELECT COALESCE(vendor, 'none') AS vendor, owner,
       CASE WHEN vendor IS NOT NULL OR operation = ANY ($1::text[]) THEN operation ELSE 'other' END AS operation, count(*) AS n
FROM dead_letters WHERE status IN ('pending', 'retrying') GROUP BY 1, 2, 3
