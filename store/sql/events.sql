-- name: list
-- Newest first, in the order of recording. $1 status, $2 vendor, $3 company, $4 type, $5 only before this event.
SELECT e.id, e.company_id, e.connection_id, e.parent_id, e.direction, e.event_type, e.entity_type, e.entity_external_id,
       e.entity_internal_id, e.idempotency_key, e.status, e.lane, e.attempts, e.max_attempts, e.next_attempt_at,
       e.last_error, e.error_class, e.received_at, e.published_at, e.processed_at, e.trace
FROM channel_events e
WHERE ($1::text IS NULL OR e.status = $1)
  AND ($2::text IS NULL OR e.connection_id IN (SELECT c.id FROM connections c WHERE c.vendor = $2))
  AND ($3::text IS NULL OR e.company_id = $3) AND ($4::text IS NULL OR e.event_type = $4)
  AND ($5::uuid IS NULL OR e.seq < (SELECT cursor.seq FROM channel_events cursor WHERE cursor.id = $5))
ORDER BY e.seq DESC LIMIT $6

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
       e.last_error, e.error_class, e.received_at, e.published_at, e.processed_at, e.trace, e.payload::text AS payload
FROM channel_events e WHERE e.id = $1

-- name: attempts
SELECT attempt, outcome, error_class, error_code, error, worker, started_at, finished_at FROM event_attempts
WHERE event_id = $1 ORDER BY id

-- name: deliveries
SELECT id, connection_id, status, attempts, last_error FROM channel_events WHERE parent_id = $1 ORDER BY seq
