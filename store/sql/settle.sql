-- name: finish
-- The new state of events, their line in the sync log, their attempts, and the results that follow from them.
-- The caller holds the rows' locks.
WITH given AS (
    SELECT * FROM unnest($1::uuid[], $2::text[], $3::int[], $4::int[], $5::timestamptz[], $6::text[], $7::text[],
                         $8::text[], $9::text[], $10::boolean[], $11::text[], $12::text[], $13::text[],
                         $14::timestamptz[])
        AS g (id, status, attempts, starts, next_attempt_at, error_class, last_error, error_code, action, keep_attempt,
              outcome, request, response, started_at)
), settled AS (
    UPDATE channel_events e
    SET status = g.status, attempts = g.attempts, starts = g.starts, next_attempt_at = g.next_attempt_at,
        error_class = g.error_class, last_error = g.last_error, lease_until = NULL,
        published_at = COALESCE(e.published_at, clock_timestamp()),
        processed_at = CASE WHEN g.status = 'retrying' THEN NULL ELSE clock_timestamp() END
    FROM given g
    WHERE e.id = g.id
    RETURNING e.id, e.company_id, e.connection_id, e.direction, e.entity_type, e.entity_external_id,
              e.entity_internal_id, e.received_at, e.processed_at, e.attempts, e.max_attempts, e.worker,
              g.status, g.action, g.error_class, g.last_error, g.error_code, g.keep_attempt, g.outcome, g.request,
              g.response, g.started_at
), logged AS (
    INSERT INTO sync_log AS log (company_id, connection_id, event_id, direction, entity_type, entity_external_id,
        entity_internal_id, action, state, triggered_at, started_at, finished_at, retry_count, max_retries,
        deadletter_at, error, request, response)
    SELECT company_id, connection_id, id, direction, entity_type, entity_external_id, entity_internal_id, action,
           CASE status WHEN 'retrying' THEN 'retrying' WHEN 'failed' THEN 'failed' ELSE 'success' END,
           received_at, started_at, processed_at, GREATEST(attempts - 1, 0), GREATEST(max_attempts - 1, 0),
           CASE WHEN status = 'failed' THEN processed_at END, last_error, request::jsonb, response::jsonb
    FROM settled
    WHERE action IS NOT NULL
    ON CONFLICT (event_id) DO UPDATE
    SET state = EXCLUDED.state, started_at = EXCLUDED.started_at, finished_at = EXCLUDED.finished_at,
        retry_count = EXCLUDED.retry_count, deadletter_at = EXCLUDED.deadletter_at, error = EXCLUDED.error,
        action = EXCLUDED.action, entity_external_id = EXCLUDED.entity_external_id,
        entity_internal_id = EXCLUDED.entity_internal_id, request = EXCLUDED.request, response = EXCLUDED.response
), tried AS (
    INSERT INTO event_attempts (event_id, company_id, attempt, outcome, error_class, error_code, error, worker, started_at)
    SELECT id, company_id, attempts, outcome, error_class, error_code, last_error, worker, started_at
    FROM settled
    WHERE keep_attempt
)
INSERT INTO core_events (id, company_id, connection_id, event_type, subject, data, cause_id, trace)
SELECT id, company_id, connection_id, event_type, subject, data::jsonb, cause_id, trace
FROM unnest($15::uuid[], $16::text[], $17::text[], $18::text[], $19::text[], $20::text[], $21::uuid[], $22::text[])
    AS c (id, company_id, connection_id, event_type, subject, data, cause_id, trace)

-- name: bury
-- One open dead letter for an event: a second failure after a requeue adds to it.
INSERT INTO dead_letters AS d (id, event_id, company_id, connection_id, vendor, queue, operation, entity_type,
    entity_external_id, entity_internal_id, error_class, error_code, error_message, fingerprint, attempts,
    first_attempt_at, owner, sealed, routing)
SELECT id, event_id, company_id, connection_id, vendor, queue, operation, entity_type, entity_external_id,
       entity_internal_id, error_class, error_code, error_message, fingerprint, attempts, first_attempt_at, owner,
       sealed, routing::jsonb
FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[],
            $9::text[], $10::text[], $11::text[], $12::text[], $13::text[], $14::text[], $15::int[],
            $16::timestamptz[], $17::text[], $18::bytea[], $19::text[])
    AS g (id, event_id, company_id, connection_id, vendor, queue, operation, entity_type, entity_external_id,
          entity_internal_id, error_class, error_code, error_message, fingerprint, attempts, first_attempt_at, owner,
          sealed, routing)
ON CONFLICT (event_id) WHERE status IN ('pending', 'retrying') DO UPDATE
SET status = 'pending', error_class = EXCLUDED.error_class, error_code = EXCLUDED.error_code,
    error_message = EXCLUDED.error_message, fingerprint = EXCLUDED.fingerprint, owner = EXCLUDED.owner,
    attempts = d.attempts + EXCLUDED.attempts, last_attempt_at = clock_timestamp()

-- name: resolve
-- Events that came through after a requeue.
UPDATE dead_letters SET status = 'resolved', resolved_at = clock_timestamp(),
    resolved_by = COALESCE(resolved_by, 'requeue')
WHERE event_id = ANY ($1::uuid[]) AND status IN ('pending', 'retrying')
