-- name: record
-- Writes the facts of many webhook requests and the log of the requests themselves, in one statement and one commit.
-- Rows go in in the order of their key, so that two batches with the same keys wait for each other and cannot deadlock.
-- Answers a row for each fact: its number, the id under which it stands, and whether this call recorded it.
WITH request AS (
    SELECT * FROM unnest($1::int[], $2::timestamptz[], $3::text[], $4::text[], $5::text[], $6::text[], $7::int[],
                         $8::text[], $9::text[], $10::int[], $11::bytea[])
        AS r (n, received_at, platform, connection_id, company_id, method, status, signature, error, bytes, body)
), fact AS (
    SELECT * FROM unnest($12::int[], $13::int[], $14::uuid[], $15::text[], $16::text[], $17::text[], $18::text[],
                         $19::text[], $20::text[], $21::text[], $22::text[], $23::bytea[], $24::text[], $25::int[])
        AS f (n, request, id, company_id, connection_id, property_id, event_type, entity_type, entity_external_id,
              idempotency_key, payload, sealed, trace, max_attempts)
), fresh AS (
    INSERT INTO channel_events (id, company_id, connection_id, property_id, direction, event_type, entity_type,
                                entity_external_id, idempotency_key, payload, sealed, trace, max_attempts)
    SELECT id, company_id, connection_id, property_id, 'inbound', event_type, entity_type, entity_external_id,
           idempotency_key, payload::jsonb, sealed, trace, max_attempts
    FROM fact
    ORDER BY company_id, idempotency_key
    ON CONFLICT (company_id, direction, idempotency_key) DO NOTHING
    RETURNING id
), outcome AS (
    -- The look-up of the earlier row is a scalar subquery on purpose: run for duplicates only, by the unique key. As a join
    -- it was planned, while the table was empty, as one scan of the whole table.
    SELECT fact.n, fact.request, fresh.id IS NOT NULL AS recorded,
           COALESCE(fresh.id, (SELECT e.id FROM channel_events e
                               WHERE e.company_id = fact.company_id AND e.direction = 'inbound'
                                 AND e.idempotency_key = fact.idempotency_key)) AS id
    FROM fact LEFT JOIN fresh USING (id)
), logged AS (
    INSERT INTO webhook_log (received_at, platform, connection_id, company_id, method, status, signature, error, bytes,
                             body, event_ids)
    SELECT request.received_at, platform, connection_id, company_id, method,
           CASE WHEN request.status < 400 AND NOT bool_or(COALESCE(outcome.recorded, true)) THEN 200
                ELSE request.status END,
           signature, error, bytes, body,
           COALESCE(array_agg(outcome.id) FILTER (WHERE outcome.id IS NOT NULL), '{}')
    FROM request LEFT JOIN outcome ON outcome.request = request.n
    GROUP BY request.n, request.received_at, platform, connection_id, company_id, method, request.status, signature,
             error, bytes, body
)
SELECT n, id, recorded FROM outcome

-- name: standing
-- Under which id each of these facts stands.
SELECT e.id FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS k (company_id, idempotency_key, n)
JOIN channel_events e ON e.company_id = k.company_id AND e.direction = 'inbound' AND e.idempotency_key = k.idempotency_key
ORDER BY k.n

-- name: mark_published
-- Only rows that still wait: what a worker has settled in the meantime needs no mark. A row that failed and was requeued
-- in the meantime is another matter: that publish was before, so it must not count for it.
UPDATE channel_events SET published_at = clock_timestamp()
WHERE id = ANY ($1::uuid[]) AND published_at IS NULL AND status = 'received' AND error_class IS NULL
RETURNING event_type
