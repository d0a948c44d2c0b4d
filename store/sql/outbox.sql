-- name: add
INSERT INTO outbox (id, company_id, event_type, subject, connection_id, payload, idempotency_key)
VALUES ($1, $2, $3, $4, $5, $6::jsonb, $7)

-- name: show
-- What became of a row; its payload may be a guest's and stays where it is.
SELECT id, company_id, event_type, created_at, taken_at, event_id, error FROM outbox WHERE id = $1
