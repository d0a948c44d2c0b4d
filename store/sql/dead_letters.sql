-- name: behind_letters
SELECT e.id, e.company_id, e.event_type, e.trace, e.status, e.starts, c.vendor, e.parent_id IS NOT NULL AS delivery
FROM channel_events e LEFT JOIN connections c ON c.id = e.connection_id
WHERE e.id = ANY ($1::uuid[])

-- name: park_poison
UPDATE channel_events e
SET status = 'failed', attempts = e.attempts + 1, processed_at = clock_timestamp(), lease_until = NULL,
    error_class = 'poison', last_error = 'started ' || e.starts || ' times and never ended'
WHERE e.id = ANY ($1::uuid[]) AND e.status IN ('received', 'processing', 'retrying')
RETURNING e.id, e.company_id, e.connection_id, split_part(e.event_type, '.', 1) AS vendor, e.event_type, e.entity_type,
    e.entity_external_id, e.entity_internal_id, e.last_error, e.attempts, e.received_at

-- name: list
-- Newest first; $1 status, $2 vendor, $3 company, $4 operation, $5 error class, $6 fingerprint, $7 only before this id.
SELECT id, event_id, company_id, connection_id, vendor, queue, operation, entity_type, entity_external_id,
       entity_internal_id, error_class, error_code, error_message, fingerprint, attempts, first_attempt_at,
       last_attempt_at, status, owner, resolved_by, resolved_at, notes, routing::text AS routing, created_at
FROM dead_letters
WHERE ($1::text IS NULL AND status IN ('pending', 'retrying') OR status = $1)
  AND ($2::text IS NULL OR vendor = $2) AND ($3::text IS NULL OR company_id = $3)
  AND ($4::text IS NULL OR operation = $4) AND ($5::text IS NULL OR error_class = $5)
  AND ($6::text IS NULL OR fingerprint = $6) AND ($7::uuid IS NULL OR id < $7)
ORDER BY id DESC LIMIT $8

-- name: show
SELECT id, event_id, company_id, connection_id, vendor, queue, operation, entity_type, entity_external_id,
       entity_internal_id, error_class, error_code, error_message, fingerprint, attempts, first_attempt_at,
       last_attempt_at, status, owner, resolved_by, resolved_at, notes, routing::text AS routing, created_at
FROM dead_letters WHERE id = $1 OR event_id = $1
ORDER BY created_at DESC LIMIT 1

-- name: requeue
-- A fresh budget for the same event; its history stays. The relay publishes it.
WITH letter AS (
    UPDATE dead_letters SET status = 'retrying', resolved_by = $2, notes = COALESCE($3, notes)
    WHERE event_id = ANY ($1::uuid[]) AND status IN ('pending', 'abandoned')
)
UPDATE channel_events e
SET status = 'received', attempts = 0, next_attempt_at = NULL, published_at = NULL, processed_at = NULL,
    lease_until = NULL,
    starts = LEAST(e.starts, 1) -- not a poison any more, but what nobody answered is still asked before it is repeated
WHERE e.id = ANY ($1::uuid[]) AND e.status IN ('failed', 'abandoned')
RETURNING e.id, e.company_id

-- name: abandon
WITH letter AS (
    UPDATE dead_letters SET status = 'abandoned', resolved_by = $2, resolved_at = clock_timestamp(), notes = $3
    WHERE id = ANY ($1::uuid[]) AND status IN ('pending', 'retrying')
    RETURNING id, event_id, company_id
), given_up AS (
    UPDATE channel_events e SET status = 'abandoned', processed_at = clock_timestamp()
    FROM letter WHERE e.id = letter.event_id AND e.status = 'failed'
    RETURNING e.id, e.lane
)
SELECT letter.id, letter.event_id, letter.company_id, given_up.lane
FROM letter LEFT JOIN given_up ON given_up.id = letter.event_id

-- name: wake_lanes
-- Whoever waited behind an abandoned head may run: unpublished rows are the relay's next look.
UPDATE channel_events e SET published_at = NULL
WHERE e.id IN (SELECT DISTINCT ON (lane) id FROM channel_events
               WHERE lane = ANY ($1::text[]) AND status IN ('received', 'processing', 'retrying', 'failed')
               ORDER BY lane, seq)
  AND e.status = 'received'

-- name: groups
-- Open letters by cause, the most frequent first. $1 vendor, $2 company.
SELECT vendor, operation, owner, error_class, error_code, fingerprint, count(*) AS letters, min(created_at) AS oldest,
       max(last_attempt_at) AS newest, min(error_message) AS error
FROM dead_letters
WHERE status IN ('pending', 'retrying') AND ($1::text IS NULL OR vendor = $1) AND ($2::text IS NULL OR company_id = $2)
GROUP BY vendor, operation, owner, error_class, error_code, fingerprint
ORDER BY count(*) DESC, fingerprint
