-- name: behind_letters
SELECT e.id, e.company_id, e.event_type, e.trace, e.status, e.starts, e.worker, c.vendor, e.parent_id IS NOT NULL AS delivery,
       e.connection_id, e.direction
FROM channel_events e LEFT JOIN connections c ON c.id = e.connection_id
WHERE e.id = ANY ($1::uuid[])

-- name: park_poison
-- With the attempt in the history, like any other that ended.
WITH parked AS (
    UPDATE channel_events e
    SET status = 'failed', attempts = e.attempts + 1, processed_at = clock_timestamp(), lease_until = NULL,
        error_class = 'poison', last_error = 'started ' || e.starts - 1 || ' times and never ended'
    WHERE e.id = ANY ($1::uuid[]) AND e.status IN ('received', 'processing', 'retrying')
    RETURNING e.id, e.company_id, e.connection_id, e.event_type, e.entity_type, e.entity_external_id, e.entity_internal_id,
        e.last_error, e.attempts, e.received_at, e.worker
), tried AS (
    INSERT INTO event_attempts (event_id, company_id, attempt, outcome, error_class, error_code, error, worker, started_at)
    SELECT id, company_id, attempts, 'park', 'poison', 'poison', last_error, worker, clock_timestamp() FROM parked
)
SELECT p.id, p.company_id, p.connection_id, c.vendor, p.event_type, p.entity_type, p.entity_external_id, p.entity_internal_id,
       p.last_error, p.attempts, p.received_at
FROM parked p LEFT JOIN connections c ON c.id = p.connection_id

-- name: list
-- Newest first. The filter, here and below: $1 status (null: open), $2 vendor, $3 company, $4 operation, $5 error class,
-- $6 fingerprint, $7 owner, $8 up to this id: ids are in the order of time. $9 only before this id.
SELECT id, event_id, company_id, connection_id, vendor, queue, operation, entity_type, entity_external_id,
       entity_internal_id, error_class, error_code, error_message, fingerprint, attempts, first_attempt_at,
       last_attempt_at, status, owner, resolved_by, resolved_at, notes, overlay_paths AS edited_paths, edited_by, edited_at,
       routing::text AS routing, created_at
FROM dead_letters
WHERE ($1::text IS NULL AND status IN ('pending', 'retrying') OR status = $1)
  AND ($2::text IS NULL OR vendor = $2) AND ($3::text IS NULL OR company_id = $3)
  AND ($4::text IS NULL OR operation = $4) AND ($5::text IS NULL OR error_class = $5)
  AND ($6::text IS NULL OR fingerprint = $6) AND ($7::text IS NULL OR owner = $7)
  AND ($8::uuid IS NULL OR id <= $8) AND ($9::uuid IS NULL OR id < $9)
ORDER BY id DESC LIMIT $10

-- name: oldest
-- Open ones, the oldest first; $9 only after this id.
SELECT id, event_id, company_id, connection_id, vendor, queue, operation, entity_type, entity_external_id,
       entity_internal_id, error_class, error_code, error_message, fingerprint, attempts, first_attempt_at,
       last_attempt_at, status, owner, resolved_by, resolved_at, notes, overlay_paths AS edited_paths, edited_by, edited_at,
       routing::text AS routing, created_at
FROM dead_letters
WHERE status IN ('pending', 'retrying') AND ($1::text IS NULL OR status = $1)
  AND ($2::text IS NULL OR vendor = $2) AND ($3::text IS NULL OR company_id = $3)
  AND ($4::text IS NULL OR operation = $4) AND ($5::text IS NULL OR error_class = $5)
  AND ($6::text IS NULL OR fingerprint = $6) AND ($7::text IS NULL OR owner = $7)
  -- COALESCE, so that also a plan made for any parameters begins at the place and does not walk up to it.
  AND id <= COALESCE($8::uuid, 'ffffffff-ffff-ffff-ffff-ffffffffffff')
  AND id > COALESCE($9::uuid, '00000000-0000-0000-0000-000000000000')
ORDER BY id LIMIT $10

-- name: newest
SELECT id FROM dead_letters ORDER BY id DESC LIMIT 1

-- name: kinds
-- How many open ones of what, the most frequent first; $9 of so many, the oldest (null: of all). $10: also whether a requeue
-- would leave them.
SELECT vendor, operation, status, readable, overtaken, count(*) AS letters FROM (
    SELECT vendor, operation, status, event_id IS NOT NULL AS readable,
           $10::boolean AND COALESCE(is_overtaken(event_id), false) AS overtaken
    FROM dead_letters
    WHERE status IN ('pending', 'retrying') AND ($1::text IS NULL OR status = $1)
      AND ($2::text IS NULL OR vendor = $2) AND ($3::text IS NULL OR company_id = $3)
      AND ($4::text IS NULL OR operation = $4) AND ($5::text IS NULL OR error_class = $5)
      AND ($6::text IS NULL OR fingerprint = $6) AND ($7::text IS NULL OR owner = $7)
      AND ($8::uuid IS NULL OR id <= $8)
    ORDER BY id LIMIT $9) counted
GROUP BY vendor, operation, status, readable, overtaken ORDER BY count(*) DESC, vendor, operation

-- name: groups
-- Open ones by cause, the most frequent first.
SELECT vendor, operation, owner, error_class, error_code, fingerprint, count(*) AS letters, min(created_at) AS oldest,
       max(last_attempt_at) AS newest, min(error_message) AS error
FROM dead_letters
WHERE status IN ('pending', 'retrying') AND ($1::text IS NULL OR status = $1)
  AND ($2::text IS NULL OR vendor = $2) AND ($3::text IS NULL OR company_id = $3)
  AND ($4::text IS NULL OR operation = $4) AND ($5::text IS NULL OR error_class = $5)
  AND ($6::text IS NULL OR fingerprint = $6) AND ($7::text IS NULL OR owner = $7)
  AND ($8::uuid IS NULL OR id <= $8)
GROUP BY vendor, operation, owner, error_class, error_code, fingerprint
ORDER BY count(*) DESC, fingerprint

-- name: show
SELECT id, event_id, company_id, connection_id, vendor, queue, operation, entity_type, entity_external_id,
       entity_internal_id, error_class, error_code, error_message, fingerprint, attempts, first_attempt_at,
       last_attempt_at, status, owner, resolved_by, resolved_at, notes, overlay_paths AS edited_paths, edited_by, edited_at,
       overlay::text AS edit, routing::text AS routing, created_at
FROM dead_letters WHERE id = $1 OR event_id = $1
ORDER BY created_at DESC LIMIT 1

-- name: take_lanes
-- Until the transaction ends nothing of the lanes of these events begins to be sent. In the order of their names, as `claim`
-- takes them.
SELECT take_lane(id, lane, lane_policy, seq)
FROM (SELECT DISTINCT ON (lane) id, lane, lane_policy, seq FROM channel_events
      WHERE id = ANY ($1::uuid[]) AND lane IS NOT NULL ORDER BY lane) l

-- name: events_of
SELECT event_id FROM dead_letters WHERE id = ANY ($1::uuid[]) AND event_id IS NOT NULL

-- name: overtaken
-- Of these events, those that a requeue leaves because of something newer.
SELECT id FROM unnest($1::uuid[]) AS g (id) WHERE is_overtaken(id)

-- name: requeue
-- A fresh budget for the same event; its history stays. The relay publishes it. Rows are locked in the order in which the
-- workers lock theirs. What something newer has overtaken is left: it would be sent beside that, or put an older state back.
WITH event AS (
    SELECT id FROM channel_events WHERE id = ANY ($1::uuid[]) AND status IN ('failed', 'abandoned') AND NOT is_overtaken(id)
    ORDER BY id FOR UPDATE
), letter AS (
    UPDATE dead_letters d SET status = 'retrying', resolved_by = $2, resolved_at = NULL, notes = COALESCE($3, notes)
    FROM event WHERE d.event_id = event.id AND d.status IN ('pending', 'abandoned')
)
UPDATE channel_events e
SET status = 'received', attempts = 0, next_attempt_at = NULL, published_at = NULL, processed_at = NULL,
    lease_until = NULL, job_id = $4,
    starts = LEAST(e.starts, 1) -- not a poison any more, but what nobody answered is still asked before it is repeated
FROM event WHERE e.id = event.id
RETURNING e.id, e.company_id

-- name: abandon
-- Also of what runs again and waits; what a worker holds at this moment is left alone, and so is what it says with a newer one. Nor
-- is it waited for: who settles it may wait for what is older in its lane, and is locked here.
WITH wanted AS (
    SELECT id, event_id FROM dead_letters WHERE id = ANY ($1::uuid[]) AND status IN ('pending', 'retrying')
), event AS (
    SELECT e.id, e.status, e.lane_policy = 'supersede' AND e.status IN ('received', 'retrying')
        AND EXISTS (SELECT FROM channel_events n WHERE n.lane = e.lane AND n.seq > e.seq
                    AND n.status IN ('received', 'processing', 'retrying', 'failed') -- as the lanes' index has them
                    AND (n.status = 'processing') IS TRUE) AS held
    FROM channel_events e WHERE e.id IN (SELECT event_id FROM wanted) AND e.status <> 'processing'
    ORDER BY e.id FOR UPDATE OF e
), given_up AS (
    UPDATE channel_events e SET status = 'abandoned', processed_at = clock_timestamp(), next_attempt_at = NULL
    FROM event WHERE e.id = event.id AND NOT event.held AND event.status IN ('failed', 'received', 'retrying')
    RETURNING e.id, e.lane
), letter AS (
    UPDATE dead_letters d SET status = 'abandoned', resolved_by = $2, resolved_at = clock_timestamp(), notes = $3
    FROM wanted LEFT JOIN event ON event.id = wanted.event_id
    WHERE d.id = wanted.id AND d.status IN ('pending', 'retrying')
      AND (NOT event.held OR (SELECT e.id FROM channel_events e WHERE e.id = wanted.event_id) IS NULL) -- no such event any more
    RETURNING d.id, d.event_id, d.company_id
)
SELECT letter.id, letter.event_id, letter.company_id, given_up.lane
FROM letter LEFT JOIN given_up ON given_up.id = letter.event_id

-- name: wake_lanes
-- Whoever waited behind an abandoned head may run now: due, which the relay sees at its next look. An unpublished row would
-- not do: the mark of its first publish may still be on its way, and would cover this wake-up. Who is next is chosen as
-- `lane_heads` chooses.
UPDATE channel_events e SET status = 'retrying', next_attempt_at = clock_timestamp()
WHERE e.id IN (SELECT DISTINCT ON (lane) id FROM channel_events
               WHERE lane = ANY ($1::text[]) AND status IN ('received', 'processing', 'retrying', 'failed')
                 AND (status <> 'failed' OR lane_policy = 'hold')
               ORDER BY lane, CASE WHEN lane_policy = 'supersede' THEN -seq ELSE seq END)
  AND e.status = 'received'

-- name: editable
-- A dead letter with its event as it came, and the edit that lies over it now.
SELECT d.id, d.status, d.edited_at, d.error_message, d.event_id, e.company_id, e.connection_id, e.parent_id, e.direction,
       e.event_type, e.entity_type, e.entity_external_id, e.entity_internal_id, e.lane, e.received_at,
       e.status AS event_status, e.starts, e.payload::text AS payload, e.sealed, o.overlay::text AS overlay, o.overlay_sealed
FROM dead_letters d LEFT JOIN channel_events e ON e.id = d.event_id LEFT JOIN dead_letters o ON o.id = e.overlay_id
WHERE d.id = $1 OR d.event_id = $1
ORDER BY d.created_at DESC LIMIT 1

-- name: edit
-- No row: its event runs again, or somebody else edited it after $8.
WITH letter AS (
    UPDATE dead_letters
    SET overlay = $3::jsonb, overlay_sealed = $4, overlay_paths = $5, edited_by = $6, edited_at = clock_timestamp(),
        notes = COALESCE($7, notes)
    WHERE id = $1 AND status IN ('pending', 'abandoned') AND edited_at IS NOT DISTINCT FROM $8
    RETURNING id
)
UPDATE channel_events e SET overlay_id = CASE WHEN $3::text IS NOT NULL THEN letter.id END
FROM letter WHERE e.id = $2 AND e.status IN ('failed', 'abandoned')
RETURNING e.id
