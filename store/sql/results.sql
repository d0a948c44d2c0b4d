-- name: keep
-- Results of one transaction, and the batch that says that nobody was told them yet.
WITH given AS (
    SELECT * FROM unnest($2::result_row[]) WITH ORDINALITY
        AS g (id, company_id, connection_id, event_type, subject, data, cause_id, trace, n)
), batch AS (
    INSERT INTO core_batches (id, event_ids) SELECT $1, array_agg(id ORDER BY n) FROM given
)
INSERT INTO core_events (id, company_id, connection_id, event_type, subject, data, cause_id, trace)
SELECT id, company_id, connection_id, event_type, subject, data::json, cause_id, trace
FROM given

-- name: told
DELETE FROM core_batches WHERE id = ANY ($1::uuid[])

-- name: untold
-- Committed and not confirmed within $1 seconds. $3: those that rest.
SELECT id, event_ids FROM core_batches
WHERE created_at < clock_timestamp() - make_interval(secs => $1) AND id <> ALL ($3::uuid[])
ORDER BY created_at LIMIT $2 FOR UPDATE SKIP LOCKED

-- name: of_batches
SELECT id, company_id, connection_id, event_type, subject, data::text AS data, cause_id, trace
FROM core_events WHERE id = ANY ($1::uuid[])
