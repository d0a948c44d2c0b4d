-- Every way goes from the oldest row by index, a page at a time, and remembers where it was: rows that must stay are read
-- once a round, whatever there are of them. Cutoffs are seconds before now() and not before clock_timestamp(), which no
-- index can be asked for: behind the last old row everything would be read.

-- name: page_channel_events
-- Of the next $3 rows in order of recording after $4: families that may go, each a fact, or a command with all of its
-- deliveries. A delivery whose command stands goes with it and not before: a requeued command would deliver it anew.
-- A family stays while one of it is open, finished less than $1 seconds ago, has a dead letter that is open or was closed
-- less than $2 seconds ago, or is of a lane in which something else is open or has failed. And while something older that it
-- overtook may be requeued: a delivery of its lane that was given up, a command about the same entity that was never routed.
-- Scalar subqueries on purpose: run row by row, by index. An EXISTS may be planned as a hash of all there is.
WITH page AS (
    SELECT id, seq, company_id, parent_id, direction, entity_type, entity_internal_id, status, lane, received_at, processed_at
    FROM channel_events WHERE seq > $4 ORDER BY seq LIMIT $3
), member AS (
    SELECT p.id AS root, p.id, p.seq, p.company_id, p.parent_id, p.entity_type, p.entity_internal_id, p.status, p.lane,
           p.processed_at
    FROM page p WHERE p.parent_id IS NULL OR (SELECT c.id FROM channel_events c WHERE c.id = p.parent_id) IS NULL
    UNION ALL
    SELECT p.id, d.id, d.seq, d.company_id, d.parent_id, d.entity_type, d.entity_internal_id, d.status, d.lane, d.processed_at
    FROM page p JOIN channel_events d ON d.parent_id = p.id
    WHERE p.direction = 'outbound'
), family AS (
    SELECT array_agg(m.id) AS ids FROM member m
    GROUP BY m.root
    HAVING bool_and(
        m.status IN ('done', 'failed', 'skipped', 'superseded', 'abandoned')
        AND m.processed_at < now() - make_interval(secs => $1)
        AND (SELECT l.id FROM dead_letters l WHERE l.event_id = m.id
             AND (l.status IN ('pending', 'retrying') OR l.resolved_at >= now() - make_interval(secs => $2))
             LIMIT 1) IS NULL
        AND (m.lane IS NULL
             OR (SELECT h.id FROM channel_events h WHERE h.lane = m.lane AND h.id <> m.id
                 AND h.status IN ('received', 'processing', 'retrying', 'failed') LIMIT 1) IS NULL
             AND (SELECT h.id FROM channel_events h WHERE h.lane = m.lane AND h.seq < m.seq
                  AND h.status = 'abandoned' LIMIT 1) IS NULL)
        AND (m.parent_id IS NOT NULL
             OR (SELECT h.id FROM channel_events h
                 WHERE h.company_id = m.company_id AND h.entity_internal_id = m.entity_internal_id AND h.seq < m.seq
                   AND h.direction = 'outbound' AND h.parent_id IS NULL AND h.status IN ('failed', 'abandoned')
                   AND h.entity_type = m.entity_type LIMIT 1) IS NULL))
)
SELECT ids, NULL::bigint AS after FROM family
UNION ALL
-- The last row: where the next page begins. Null behind a page without one old row: a single wrong time ends no round.
SELECT NULL, CASE WHEN count(*) = $3 AND min(received_at) < now() - make_interval(secs => $1)
                  THEN max(seq) END
FROM page

-- name: lock_events
SELECT id FROM channel_events
WHERE id = ANY ($1::uuid[]) AND status IN ('done', 'failed', 'skipped', 'superseded', 'abandoned')
FOR UPDATE SKIP LOCKED

-- name: drop_events
-- What else is about these events goes with them.
WITH event AS (
    DELETE FROM channel_events WHERE id = ANY ($1::uuid[]) RETURNING id
), attempt AS (
    DELETE FROM event_attempts WHERE event_id = ANY ($1::uuid[]) RETURNING 1
), exchange AS (
    DELETE FROM sync_exchanges WHERE event_id = ANY ($1::uuid[]) RETURNING 1
)
SELECT (SELECT count(*) FROM event) AS channel_events, (SELECT count(*) FROM attempt) AS event_attempts,
       (SELECT count(*) FROM exchange) AS sync_exchanges

-- name: page_webhook_log
WITH page AS (SELECT id, received_at FROM webhook_log WHERE id > $3 ORDER BY id LIMIT $2)
SELECT COALESCE(array_agg(id) FILTER (WHERE received_at < now() - make_interval(secs => $1)), '{}') AS ids,
       CASE WHEN count(*) = $2 AND min(received_at) < now() - make_interval(secs => $1) THEN max(id) END AS after
FROM page

-- name: drop_webhook_log
DELETE FROM webhook_log WHERE id = ANY ($1::bigint[])

-- name: page_core_events
-- Results that were told: ids are in the order of time, and what waits in core_batches stays.
WITH page AS (SELECT id, created_at FROM core_events WHERE id > $3 ORDER BY id LIMIT $2)
SELECT COALESCE(array_agg(id) FILTER (
           WHERE created_at < now() - make_interval(secs => $1)
             AND id <> ALL (ARRAY(SELECT unnest(b.event_ids) FROM core_batches b
                                  WHERE b.created_at < now() - make_interval(secs => $1) + interval '1 hour'))),
           '{}') AS ids,
       CASE WHEN count(*) = $2 AND min(created_at) < now() - make_interval(secs => $1)
            THEN (array_agg(id ORDER BY id DESC))[1] END AS after
FROM page

-- name: drop_core_events
DELETE FROM core_events WHERE id = ANY ($1::uuid[])

-- name: page_outbox
WITH page AS (
    SELECT id, taken_at FROM outbox
    WHERE taken_at IS NOT NULL AND taken_at < now() - make_interval(secs => $1) AND (taken_at, id) > ($3, $4)
    ORDER BY taken_at, id LIMIT $2
)
SELECT COALESCE(array_agg(id), '{}') AS ids, CASE WHEN count(*) = $2 THEN max(taken_at) END AS after,
       (array_agg(id ORDER BY taken_at DESC, id DESC))[1] AS after_id
FROM page

-- name: drop_outbox
DELETE FROM outbox WHERE id = ANY ($1::uuid[])

-- name: page_own_writes
-- They say themselves until when they are of use.
WITH page AS (
    SELECT event_id, expires_at FROM own_writes WHERE expires_at < now() AND (expires_at, event_id) > ($2, $3)
    ORDER BY expires_at, event_id LIMIT $1
)
SELECT COALESCE(array_agg(event_id), '{}') AS ids,
       CASE WHEN count(*) = $1 THEN max(expires_at) END AS after,
       (array_agg(event_id ORDER BY expires_at DESC, event_id DESC))[1] AS after_id
FROM page

-- name: drop_own_writes
DELETE FROM own_writes WHERE event_id = ANY ($1::uuid[]) AND expires_at < now()

-- name: page_dead_letters
-- Closed ones whose event is gone; what an operator has edited in one may still be laid over the event while it stands.
-- An open one is somebody's work, however old it is.
WITH page AS (
    SELECT id, event_id, resolved_at FROM dead_letters
    WHERE status IN ('resolved', 'abandoned') AND resolved_at < now() - make_interval(secs => $1)
      AND (resolved_at, id) > ($3, $4)
    ORDER BY resolved_at, id LIMIT $2
)
SELECT COALESCE(array_agg(id) FILTER (WHERE (SELECT e.id FROM channel_events e WHERE e.id = event_id) IS NULL), '{}') AS ids,
       CASE WHEN count(*) = $2 THEN max(resolved_at) END AS after,
       (array_agg(id ORDER BY resolved_at DESC, id DESC))[1] AS after_id
FROM page

-- name: drop_dead_letters
DELETE FROM dead_letters WHERE id IN (
    SELECT id FROM dead_letters WHERE id = ANY ($1::uuid[]) AND status IN ('resolved', 'abandoned') FOR UPDATE SKIP LOCKED)
