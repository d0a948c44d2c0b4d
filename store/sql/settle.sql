-- name: finish
-- New states, with the history of attempts. What was leased ends by its lease only: who slept through it knows an old answer.
WITH given AS (
    SELECT * FROM unnest($1::uuid[], $2::text[], $3::int[], $4::int[], $5::timestamptz[], $6::text[], $7::text[],
                         $8::text[], $9::boolean[], $10::text[], $11::timestamptz[], $12::uuid[])
        AS g (id, status, attempts, starts, next_attempt_at, error_class, last_error, error_code, keep_attempt, outcome,
              started_at, lease_token)
), settled AS (
    UPDATE channel_events e
    SET status = g.status, attempts = g.attempts, starts = g.starts, next_attempt_at = g.next_attempt_at,
        error_class = g.error_class, last_error = g.last_error, lease_until = NULL, started_at = g.started_at,
        published_at = COALESCE(e.published_at, clock_timestamp()),
        processed_at = CASE WHEN g.status = 'retrying' THEN NULL ELSE clock_timestamp() END
    FROM given g
    WHERE e.id = g.id AND e.status IN ('received', 'processing', 'retrying')
      AND (g.lease_token IS NULL OR e.status = 'processing' AND e.lease_token = g.lease_token)
    RETURNING e.id, e.company_id, e.attempts, e.worker, g.error_class, g.last_error, g.error_code, g.keep_attempt, g.outcome,
              g.started_at
), tried AS (
    INSERT INTO event_attempts (event_id, company_id, attempt, outcome, error_class, error_code, error, worker, started_at)
    SELECT id, company_id, attempts, outcome, error_class, error_code, last_error, worker, started_at
    FROM settled
    WHERE keep_attempt
)
SELECT id FROM settled

-- name: bury
-- One open dead letter for an event: a second failure after a requeue adds to it.
INSERT INTO dead_letters AS d (id, event_id, company_id, connection_id, vendor, queue, operation, entity_type,
    entity_external_id, entity_internal_id, error_class, error_code, error_message, fingerprint, attempts,
    first_attempt_at, owner, sealed, routing, digest)
SELECT id, event_id, company_id, connection_id, vendor, queue, operation, entity_type, entity_external_id,
       entity_internal_id, error_class, error_code, error_message, fingerprint, attempts, first_attempt_at, owner,
       sealed, routing::jsonb, digest
FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[],
            $9::text[], $10::text[], $11::text[], $12::text[], $13::text[], $14::text[], $15::int[],
            $16::timestamptz[], $17::text[], $18::bytea[], $19::text[], $20::bytea[])
    AS g (id, event_id, company_id, connection_id, vendor, queue, operation, entity_type, entity_external_id,
          entity_internal_id, error_class, error_code, error_message, fingerprint, attempts, first_attempt_at, owner,
          sealed, routing, digest)
ON CONFLICT (event_id) WHERE event_id IS NOT NULL AND status IN ('pending', 'retrying') DO UPDATE
SET status = 'pending', error_class = EXCLUDED.error_class, error_code = EXCLUDED.error_code,
    error_message = EXCLUDED.error_message, fingerprint = EXCLUDED.fingerprint, owner = EXCLUDED.owner,
    attempts = d.attempts + EXCLUDED.attempts, last_attempt_at = clock_timestamp()

-- name: resolve
-- Events that came through after a requeue.
UPDATE dead_letters SET status = 'resolved', resolved_at = clock_timestamp(),
    resolved_by = COALESCE(resolved_by, 'requeue')
WHERE event_id = ANY ($1::uuid[]) AND status IN ('pending', 'retrying')
