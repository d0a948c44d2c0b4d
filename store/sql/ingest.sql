-- name: record
-- Writes the facts of many webhook requests and the log of the requests themselves, in one statement and one commit.
-- Rows go in in the order of their key, so that two batches with the same keys wait for each other and cannot deadlock.
-- Answers, in arrays in the order of the facts, the id under which each stands and whether this call recorded it. Nothing here
-- is joined: without statistics a batch would be compared with itself row by row.
WITH fact AS (
    SELECT * FROM unnest($2::fact_row[]) WITH ORDINALITY
        AS f (id, company_id, connection_id, property_id, event_type, entity_type, entity_external_id,
              idempotency_key, payload, sealed, trace, max_attempts, n)
), fresh AS (
    INSERT INTO channel_events (id, company_id, connection_id, property_id, direction, event_type, entity_type,
                                entity_external_id, idempotency_key, payload, sealed, trace, max_attempts)
    SELECT id, company_id, connection_id, property_id, 'inbound', event_type, entity_type, entity_external_id,
           idempotency_key, payload::json, sealed, trace, max_attempts
    FROM fact
    ORDER BY company_id, idempotency_key
    ON CONFLICT (company_id, direction, idempotency_key) DO NOTHING
    RETURNING id
), outcome AS (
    SELECT n, id, company_id, idempotency_key, id IN (SELECT id FROM fresh) AS recorded FROM fact
), answer AS (
    -- The look-up of the earlier row is a scalar subquery on purpose: run for duplicates only, by the unique key.
    SELECT array_agg(CASE WHEN recorded THEN id ELSE
                         (SELECT e.id FROM channel_events e
                          WHERE e.company_id = outcome.company_id AND e.direction = 'inbound'
                            AND e.idempotency_key = outcome.idempotency_key) END ORDER BY n) AS ids,
           array_agg(recorded ORDER BY n) AS recorded
    FROM outcome
), logged AS (
    INSERT INTO webhook_log (received_at, platform, connection_id, company_id, method, status, signature, error, bytes,
                             body, event_ids)
    SELECT received_at, platform, connection_id, company_id, method,
           CASE WHEN status < 400 AND first_fact <= last_fact AND NOT true = ANY (a.recorded[first_fact:last_fact])
                THEN 200 ELSE status END,
           signature, error, bytes, body, COALESCE(array_remove(a.ids[first_fact:last_fact], NULL), '{}')
    FROM unnest($1::webhook_row[]) r, answer a
)
SELECT ids, recorded FROM answer

-- name: standing
-- Under which id each of these facts stands. OFFSET 0, so that each is looked up by its whole key: planned while there was little,
-- a join read all facts by a part of it.
SELECT e.id FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS k (company_id, idempotency_key, n)
CROSS JOIN LATERAL (
    SELECT id FROM channel_events
    WHERE company_id = k.company_id AND direction = 'inbound' AND idempotency_key = k.idempotency_key OFFSET 0) e
ORDER BY k.n

-- name: mark_published
-- Only rows that still wait: what a worker has settled in the meantime needs no mark. A row that failed and was requeued
-- in the meantime is another matter: that publish was before, so it must not count for it.
-- IS TRUE: by id, as `load` of inbound.sql. What waits may be very much, and was read whole, twice a second.
UPDATE channel_events SET published_at = clock_timestamp()
WHERE id = ANY ($1::uuid[]) AND (published_at IS NULL AND status = 'received') IS TRUE AND error_class IS NULL
RETURNING event_type
