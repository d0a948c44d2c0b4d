-- name: add
INSERT INTO operator_jobs (id, company_id, kind, filter, most, rate, canary, canary_share, requested_by, note, total)
VALUES ($1, $2, $3, $4::jsonb, $5, $6, $7, $8, $9, $10, $11)

-- name: list
-- The newest first; $1 status.
SELECT id, company_id, kind, filter::text AS filter, most, rate, canary, canary_share, requested_by, note, status, total,
       done, failed, cursor, created_at, started_at, finished_at, last_error
FROM operator_jobs WHERE $1::text IS NULL OR status = $1 ORDER BY id DESC LIMIT $2

-- name: show
SELECT id, company_id, kind, filter::text AS filter, most, rate, canary, canary_share, requested_by, note, status, total,
       done, failed, cursor, created_at, started_at, finished_at, last_error
FROM operator_jobs WHERE id = $1

-- name: cancel
-- Waits for the batch that is under way, which holds the row.
UPDATE operator_jobs SET status = 'cancelled', finished_at = clock_timestamp(), last_error = 'cancelled by ' || $2::text
WHERE id = $1 AND status IN ('waiting', 'canary', 'running')
RETURNING id

-- name: due
-- Whether there is one to take: mostly not, and then this is all that a look costs.
SELECT EXISTS (SELECT FROM operator_jobs WHERE status IN ('waiting', 'canary', 'running') AND next_at <= clock_timestamp())

-- name: take
-- The job whose turn it is, held until the transaction ends: one scheduler at a time works on it.
SELECT id, company_id, kind, filter::text AS filter, most, rate, canary, canary_share, requested_by, note, status, total,
       done, failed, cursor, created_at, started_at, finished_at, last_error
FROM operator_jobs WHERE status IN ('waiting', 'canary', 'running') AND next_at <= clock_timestamp()
ORDER BY next_at LIMIT 1 FOR UPDATE SKIP LOCKED

-- name: advance
-- What a batch did, in the transaction that did it. $6: seconds until the next.
UPDATE operator_jobs
SET status = $2, done = done + $3, failed = failed + $4, cursor = $5,
    next_at = clock_timestamp() + make_interval(secs => $6), started_at = COALESCE(started_at, clock_timestamp()),
    finished_at = CASE WHEN $2 IN ('done', 'failed') THEN clock_timestamp() END, last_error = $7
WHERE id = $1

-- name: rest
-- Whose batch is not known to have come to its end: others have their turn. $2: seconds until it is tried again, at the earliest.
UPDATE operator_jobs SET next_at = GREATEST(next_at, clock_timestamp() + make_interval(secs => $2)), last_error = $3
WHERE id = $1 AND status IN ('waiting', 'canary', 'running')

-- name: fail
UPDATE operator_jobs SET status = 'failed', finished_at = clock_timestamp(), last_error = $2
WHERE id = $1 AND status IN ('waiting', 'canary', 'running')

-- name: outcome
-- What became of the events that a job let run. A command that was routed is its deliveries. OFFSET 0, so that each is looked
-- up by its parent, however many the planner expects. What waits behind a failed one of its lane ends no sooner than a person
-- comes, so it has failed too.
WITH ran AS (
    SELECT COALESCE(d.status, e.status) AS status, d.lane, d.lane_policy, d.seq
    FROM channel_events e LEFT JOIN LATERAL (
        SELECT c.status, c.lane, c.lane_policy, c.seq FROM channel_events c
        WHERE c.parent_id = e.id AND c.replay_of IS NULL OFFSET 0
    ) d ON true
    WHERE e.job_id = $1
), ended AS MATERIALIZED (
    SELECT CASE WHEN r.status IN ('received', 'retrying') AND r.lane_policy = 'hold' AND EXISTS (
                    SELECT FROM channel_events h WHERE h.lane = r.lane AND h.seq < r.seq AND h.status = 'failed')
                THEN 'failed' ELSE r.status END AS status
    FROM ran r
)
SELECT count(*) FILTER (WHERE status IN ('done', 'skipped', 'superseded')) AS came_through,
       count(*) FILTER (WHERE status IN ('failed', 'abandoned')) AS failed_again,
       count(*) FILTER (WHERE status IN ('received', 'processing', 'retrying')) AS under_way
FROM ended

-- name: reasons
-- Why some of them failed again, the most frequent first.
SELECT d.error_class, d.error_code, d.fingerprint, count(*) AS letters, min(d.error_message) AS error
FROM channel_events e
CROSS JOIN LATERAL (
    SELECT e.id, e.status
    UNION ALL
    (SELECT c.id, c.status FROM channel_events c WHERE c.parent_id = e.id AND c.replay_of IS NULL OFFSET 0)
) r
JOIN dead_letters d ON d.event_id = r.id AND d.status IN ('pending', 'retrying')
WHERE e.job_id = $1 AND r.status = 'failed'
GROUP BY d.error_class, d.error_code, d.fingerprint ORDER BY count(*) DESC, d.fingerprint LIMIT 20

-- name: audit
INSERT INTO audit_log (actor, company_id, action, target, details)
SELECT $1, g.company_id, $2, g.target, g.details::jsonb
FROM unnest($3::text[], $4::text[], $5::text[]) AS g (company_id, target, details)
