-- name: list
-- Newest first, in the order of recording. $1 status, $2 vendor, $3 company, $4 type, $5 only before this event.
SELECT e.id, e.company_id, e.connection_id, e.parent_id, e.direction, e.event_type, e.entity_type, e.entity_external_id,
       e.entity_internal_id, e.idempotency_key, e.status, e.lane, e.attempts, e.max_attempts, e.next_attempt_at,
       e.last_error, e.error_class, e.received_at, e.published_at, e.processed_at, e.trace, e.replay_of, e.job_id
FROM channel_events e
WHERE ($1::text IS NULL OR e.status = $1)
  AND ($2::text IS NULL OR e.connection_id IN (SELECT c.id FROM connections c WHERE c.vendor = $2))
  AND ($3::text IS NULL OR e.company_id = $3) AND ($4::text IS NULL OR e.event_type = $4)
  AND ($5::uuid IS NULL OR e.seq < (SELECT cursor.seq FROM channel_events cursor WHERE cursor.id = $5))
ORDER BY e.seq DESC LIMIT $6

-- name: known
SELECT EXISTS (SELECT FROM channel_events WHERE id = $1)

-- name: of_key
SELECT id FROM channel_events WHERE company_id = $1 AND direction = 'outbound' AND idempotency_key = $2

-- name: count
-- Counted up to 10,000: beyond that the number is a bound, not worth a scan of the table.
SELECT count(*) FROM (
    SELECT FROM channel_events e
    WHERE ($1::text IS NULL OR e.status = $1)
      AND ($2::text IS NULL OR e.connection_id IN (SELECT c.id FROM connections c WHERE c.vendor = $2))
      AND ($3::text IS NULL OR e.company_id = $3) AND ($4::text IS NULL OR e.event_type = $4)
    LIMIT 10000) counted

-- name: show
SELECT e.id, e.company_id, e.connection_id, e.parent_id, e.direction, e.event_type, e.entity_type, e.entity_external_id,
       e.entity_internal_id, e.idempotency_key, e.status, e.lane, e.attempts, e.max_attempts, e.next_attempt_at,
       e.last_error, e.error_class, e.received_at, e.published_at, e.processed_at, e.trace, e.replay_of, e.job_id,
       e.overlay_id IS NOT NULL AS edited, e.payload::text AS payload
FROM channel_events e WHERE e.id = $1

-- name: attempts
SELECT attempt, outcome, error_class, error_code, error, worker, started_at, finished_at FROM event_attempts
WHERE event_id = $1 ORDER BY id

-- name: deliveries
SELECT id, connection_id, status, attempts, last_error FROM channel_events WHERE parent_id = $1 ORDER BY seq

-- name: recorded
-- When the first row from $1 on was recorded; replays say the time of what they repeat.
SELECT seq, received_at FROM channel_events WHERE seq >= $1 AND replay_of IS NULL ORDER BY seq LIMIT 1

-- name: newest
SELECT seq FROM channel_events ORDER BY seq DESC LIMIT 1

-- name: replayable
-- Ended facts and deliveries from a stretch of rows; not the commands, which were only routed, nor earlier replays.
-- $1 after, $2 up to (in order of recording), $3 statuses, $4 from, $5 to, $6 connections, $7 company, $8 type, $9 how many.
SELECT e.id, e.seq, e.company_id, e.direction, e.event_type, e.status, c.vendor
FROM channel_events e LEFT JOIN connections c ON c.id = e.connection_id
WHERE e.seq > $1 AND e.seq <= $2 AND e.status = ANY ($3::text[]) AND e.replay_of IS NULL
  AND (e.direction = 'inbound' OR e.parent_id IS NOT NULL)
  AND ($4::timestamptz IS NULL OR e.received_at >= $4) AND ($5::timestamptz IS NULL OR e.received_at < $5)
  AND ($6::text[] IS NULL OR e.connection_id = ANY ($6)) AND ($7::text IS NULL OR e.company_id = $7)
  AND ($8::text IS NULL OR e.event_type = $8)
ORDER BY e.seq LIMIT $9

-- name: replayable_ids
SELECT e.id, e.seq, e.company_id, e.direction, e.event_type, e.status, c.vendor
FROM channel_events e LEFT JOIN connections c ON c.id = e.connection_id
WHERE e.id = ANY ($1::uuid[]) ORDER BY e.seq

-- name: deliveries_of
-- Whether an id is known; of a command its deliveries, of all else itself.
SELECT g.id AS asked, COALESCE(d.id, e.id) AS id, e.direction = 'outbound' AND e.parent_id IS NULL AND d.id IS NULL AS nothing
FROM unnest($1::uuid[]) AS g (id) JOIN channel_events e ON e.id = g.id
LEFT JOIN channel_events d ON d.parent_id = e.id AND d.replay_of IS NULL

-- name: followers
-- What the selection has behind these deliveries in their lanes, in any order and at most $10. $2 to $8: the selection, $9 its
-- ids. Which statuses a delivery in a lane can be repeated of is said once more, for the index; OFFSET 0, so that each lane is
-- looked up in it, however many the planner expects.
SELECT n.id, n.seq, n.company_id, n.direction, n.event_type, n.status, c.vendor
FROM (SELECT lane, min(seq) AS first FROM channel_events WHERE id = ANY ($1::uuid[]) AND lane IS NOT NULL GROUP BY lane) l
CROSS JOIN LATERAL (
    SELECT f.id, f.seq, f.company_id, f.direction, f.event_type, f.status, f.connection_id FROM channel_events f
    WHERE f.lane = l.lane AND f.seq > l.first AND f.status IN ('done', 'superseded')
      AND f.id NOT IN (SELECT unnest($1)) AND f.replay_of IS NULL
      AND CASE WHEN $9::uuid[] IS NOT NULL THEN f.id IN (SELECT unnest($9))
          ELSE f.seq <= $2 AND f.status = ANY ($3::text[])
               AND ($4::timestamptz IS NULL OR f.received_at >= $4) AND ($5::timestamptz IS NULL OR f.received_at < $5)
               AND ($6::text[] IS NULL OR f.connection_id = ANY ($6)) AND ($7::text IS NULL OR f.company_id = $7)
               AND ($8::text IS NULL OR f.event_type = $8) END
    OFFSET 0
) n
LEFT JOIN connections c ON c.id = n.connection_id
LIMIT $10

-- name: overtaken
-- Of these deliveries, those after which something newer of their lane went out, or is on its way: sent again, they would put
-- an older state back. Not where the newer one is repeated behind them ($2). The newest one decides, and is looked up once.
WITH given AS MATERIALIZED (
    SELECT id, lane, seq FROM channel_events WHERE id = ANY ($1::uuid[]) AND lane IS NOT NULL
), newest AS MATERIALIZED (
    SELECT l.lane, GREATEST(
        (SELECT max(n.seq) FROM channel_events n WHERE n.lane = l.lane AND n.seq > l.first AND n.replay_of IS NULL
            AND n.status IN ('done', 'superseded') AND n.id NOT IN (SELECT unnest($2::uuid[]))),
        (SELECT max(n.seq) FROM channel_events n WHERE n.lane = l.lane AND n.seq > l.first AND n.replay_of IS NULL
            AND n.status IN ('received', 'processing', 'retrying'))) AS seq
    FROM (SELECT lane, min(seq) AS first FROM given GROUP BY lane) l
)
SELECT g.id FROM given g JOIN newest n ON n.lane = g.lane AND n.seq > g.seq

-- name: repeated
-- Which of these a replay has repeated already, by the keys that it gives; each is looked up.
SELECT e.id FROM channel_events e
WHERE e.id = ANY ($2::uuid[]) AND EXISTS (
    SELECT FROM channel_events r WHERE r.company_id = e.company_id AND r.direction = e.direction
        AND r.idempotency_key = e.idempotency_key || '#replay:' || $1::uuid
    OFFSET 0)

-- name: mapped
-- Of these deliveries, those whose entity has an id at their connection.
SELECT e.id FROM channel_events e
JOIN int_mappings m ON m.company_id = e.company_id AND m.internal_entity_type = e.entity_type
    AND m.internal_entity_id = e.entity_internal_id AND m.connection_id = e.connection_id
WHERE e.id = ANY ($1::uuid[])

-- name: replay
-- New rows that say the same as ended ones, the edit included, under keys of their own. A fact keeps the time at which it
-- came, which may be part of its version; a delivery goes to the end of its lane. In the order of recording.
INSERT INTO channel_events (id, company_id, connection_id, property_id, parent_id, replay_of, job_id, overlay_id, direction,
    event_type, entity_type, entity_external_id, entity_internal_id, idempotency_key, payload, sealed, lane, lane_policy,
    max_attempts, trace, received_at)
SELECT g.id, e.company_id, e.connection_id, e.property_id, e.parent_id, e.id, $3, e.overlay_id, e.direction,
       e.event_type, e.entity_type, e.entity_external_id, e.entity_internal_id,
       e.idempotency_key || '#replay:' || $3::uuid, e.payload, e.sealed, e.lane, e.lane_policy, e.max_attempts, e.trace,
       CASE WHEN e.direction = 'inbound' THEN e.received_at ELSE clock_timestamp() END
FROM unnest($1::uuid[], $2::uuid[]) AS g (original, id) JOIN channel_events e ON e.id = g.original
ORDER BY e.seq
ON CONFLICT (company_id, direction, idempotency_key) DO NOTHING
RETURNING id, replay_of, company_id

-- name: connections_of
SELECT id FROM connections WHERE vendor = $1
