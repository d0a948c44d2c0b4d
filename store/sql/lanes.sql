-- name: held
-- Lanes whose head has failed and holds them, the oldest first. $1 vendor, $2 company, $3 connection, $4 error class,
-- $5 seconds since the head was recorded, $6 lane, $7 only after this place, $8 how many.
SELECT e.lane, e.company_id, e.connection_id, c.vendor, e.lane_policy AS policy, e.id AS head_id, e.event_type AS head_type,
       e.status AS head_status, e.attempts, e.error_class, e.last_error, e.received_at AS since, e.processed_at AS failed_at,
       EXTRACT(epoch FROM clock_timestamp() - e.received_at)::bigint AS age_seconds,
       (SELECT d.id FROM dead_letters d WHERE d.event_id = e.id AND d.status IN ('pending', 'retrying')) AS dead_letter_id,
       (SELECT count(*) FROM (SELECT FROM channel_events w WHERE w.lane = e.lane AND w.seq > e.seq
                              AND w.status IN ('received', 'processing', 'retrying', 'failed') LIMIT 10000) behind
       ) AS waiting,
       e.seq
FROM channel_events e JOIN connections c ON c.id = e.connection_id
WHERE e.status = 'failed' AND e.lane IS NOT NULL AND e.lane_policy = 'hold'
  AND NOT EXISTS (SELECT FROM channel_events h WHERE h.lane = e.lane AND h.seq < e.seq
                  AND h.status IN ('received', 'processing', 'retrying', 'failed'))
  AND ($1::text IS NULL OR c.vendor = $1) AND ($2::text IS NULL OR e.company_id = $2)
  AND ($3::text IS NULL OR e.connection_id = $3) AND ($4::text IS NULL OR e.error_class = $4)
  AND ($5::float8 IS NULL OR e.received_at < clock_timestamp() - make_interval(secs => $5))
  AND ($6::text IS NULL OR e.lane = $6) AND ($7::bigint IS NULL OR e.seq > $7)
ORDER BY e.seq LIMIT $8

-- name: open
-- Every lane with commands that have not ended, by the one that runs first: the oldest, or the newest where that replaces
-- the others. The same parameters.
SELECT e.lane, e.company_id, e.connection_id, c.vendor, e.lane_policy AS policy, e.id AS head_id, e.event_type AS head_type,
       e.status AS head_status, e.attempts, e.error_class, e.last_error, e.received_at AS since,
       CASE WHEN e.status = 'failed' THEN e.processed_at END AS failed_at,
       EXTRACT(epoch FROM clock_timestamp() - e.received_at)::bigint AS age_seconds,
       (SELECT d.id FROM dead_letters d WHERE d.event_id = e.id AND d.status IN ('pending', 'retrying')) AS dead_letter_id,
       (SELECT count(*) FROM (SELECT FROM channel_events w WHERE w.lane = e.lane AND w.id <> e.id
                              AND w.status IN ('received', 'processing', 'retrying', 'failed') LIMIT 10000) behind
       ) AS waiting,
       e.seq
FROM channel_events e JOIN connections c ON c.id = e.connection_id
WHERE e.lane IS NOT NULL AND e.status IN ('received', 'processing', 'retrying', 'failed')
  AND CASE WHEN e.lane_policy = 'supersede'
      THEN e.status <> 'failed' AND NOT EXISTS (
          SELECT FROM channel_events h WHERE h.lane = e.lane AND h.id <> e.id AND h.status IN ('received', 'processing', 'retrying')
            AND (h.status = 'processing' OR e.status <> 'processing' AND h.seq > e.seq))
      ELSE NOT EXISTS (
          SELECT FROM channel_events h WHERE h.lane = e.lane AND h.seq < e.seq
            AND h.status IN ('received', 'processing', 'retrying', 'failed')) END
  AND ($1::text IS NULL OR c.vendor = $1) AND ($2::text IS NULL OR e.company_id = $2)
  AND ($3::text IS NULL OR e.connection_id = $3) AND ($4::text IS NULL OR e.error_class = $4)
  AND ($5::float8 IS NULL OR e.received_at < clock_timestamp() - make_interval(secs => $5))
  AND ($6::text IS NULL OR e.lane = $6) AND ($7::bigint IS NULL OR e.seq > $7)
ORDER BY e.seq LIMIT $8

-- name: commands
-- What of a lane has not ended, in the order of recording, which is its order.
SELECT e.id, e.event_type, e.status, e.lane_policy AS policy, e.attempts, e.max_attempts, e.next_attempt_at, e.error_class,
       e.last_error, e.received_at, e.processed_at, e.parent_id, e.company_id, e.connection_id
FROM channel_events e
WHERE e.lane = $1 AND e.status IN ('received', 'processing', 'retrying', 'failed') ORDER BY e.seq LIMIT $2

-- name: following
-- The next command of each lane behind its head; $1 lanes, $2 their heads.
SELECT g.lane, n.id, n.event_type, n.status, n.received_at
FROM unnest($1::text[], $2::uuid[]) AS g (lane, head)
CROSS JOIN LATERAL (
    SELECT e.id, e.event_type, e.status, e.received_at FROM channel_events e
    WHERE e.lane = g.lane AND e.id <> g.head AND e.status IN ('received', 'processing', 'retrying', 'failed')
    ORDER BY e.seq LIMIT 1) n

-- name: give_up
-- The failed heads of lanes, with their dead letters, for good.
WITH event AS (
    SELECT id FROM channel_events WHERE id = ANY ($1::uuid[]) AND status = 'failed' ORDER BY id FOR UPDATE
), letter AS (
    UPDATE dead_letters d SET status = 'abandoned', resolved_by = $2, resolved_at = clock_timestamp(), notes = $3
    FROM event WHERE d.event_id = event.id AND d.status IN ('pending', 'retrying')
)
UPDATE channel_events e SET status = 'abandoned', processed_at = clock_timestamp()
FROM event WHERE e.id = event.id
RETURNING e.id, e.lane
