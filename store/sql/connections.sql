-- name: load
-- One connection with what is needed to verify its webhooks and to open its sealed values.
SELECT c.id, c.company_id, c.vendor, c.name, c.status, c.external_account_id, c.config::text AS config, k.data_key,
       (SELECT jsonb_object_agg(p.external_id, p.currency)::text FROM int_properties p
        WHERE p.connection_id = c.id AND p.currency IS NOT NULL) AS currencies,
       s.sealed AS webhook_secret,
       CASE WHEN s.previous_until > now() THEN s.previous END AS previous_secret
FROM connections c
JOIN companies k ON k.id = c.company_id
LEFT JOIN secrets s ON s.connection_id = c.id AND s.name = 'webhook_secret'
WHERE c.id = $1

-- name: company_key
SELECT data_key FROM companies WHERE id = $1

-- name: company_keys
SELECT id, data_key FROM companies ORDER BY id

-- name: secrets
SELECT name, sealed, expires_at FROM secrets WHERE connection_id = $1

-- name: put_secret
-- A new value; the one before stays valid until $5 (null: at once invalid).
INSERT INTO secrets (connection_id, company_id, name, sealed, expires_at)
VALUES ($1, $2, $3, $4, $6)
ON CONFLICT (connection_id, name) DO UPDATE
SET sealed = EXCLUDED.sealed, previous = CASE WHEN $5::timestamptz IS NULL THEN NULL ELSE secrets.sealed END,
    previous_until = $5, expires_at = EXCLUDED.expires_at, rotated_at = now()

-- name: begin_renewal
UPDATE connections SET renewing_until = clock_timestamp() + make_interval(secs => $2), renewing_by = $3
WHERE id = $1 AND (renewing_until IS NULL OR renewing_until < clock_timestamp()) RETURNING renewing_until

-- name: end_renewal
-- $2: what begin_renewal returned. Who came to an end too late does not end another's.
UPDATE connections SET renewing_until = NULL WHERE id = $1 AND renewing_until = $2

-- name: end_any_renewal
-- Whose lease it is finds it gone, and what it used replaced.
UPDATE connections SET renewing_until = NULL WHERE id = $1

-- name: forget_secrets
DELETE FROM secrets WHERE connection_id = $1 AND name = ANY ($2::text[])

-- name: tokens_to_renew
-- Connections whose access token ends within $1 seconds, or has ended: what renews it dies of a month's rest at some vendors.
SELECT connection_id FROM secrets JOIN connections c ON c.id = connection_id
WHERE secrets.name = 'access_token' AND expires_at < now() + make_interval(secs => $1) AND c.status = 'active'

-- name: add_company
INSERT INTO companies (id, name, data_key) VALUES ($1, $2, $3) ON CONFLICT (id) DO NOTHING

-- name: add_connection
INSERT INTO connections (id, company_id, vendor, name, external_account_id, config)
VALUES ($1, $2, $3, $4, $5, $6::jsonb)

-- name: set_config
UPDATE connections SET config = config || $2::jsonb, updated_at = now() WHERE id = $1

-- name: unset_config
UPDATE connections SET config = config - $2::text[], updated_at = now() WHERE id = $1

-- name: set_status
UPDATE connections SET status = $2, updated_at = now() WHERE id = $1

-- name: list_companies
SELECT id, name, created_at FROM companies ORDER BY id

-- name: list_connections
SELECT c.id, c.company_id, c.vendor, c.name, c.status, c.config::text AS config, c.last_sync_at, c.created_at
FROM connections c WHERE $1::text IS NULL OR c.company_id = $1 ORDER BY c.id

-- name: list_secrets
SELECT connection_id, company_id, name, rotated_at, previous_until, expires_at FROM secrets
WHERE $1::text IS NULL OR connection_id = $1 ORDER BY connection_id, name

-- name: add_api_key
INSERT INTO api_keys (id, company_id, name, key_hash, scopes) VALUES ($1, $2, $3, $4, $5)

-- name: find_api_key
SELECT id, company_id, scopes FROM api_keys WHERE key_hash = $1 AND revoked_at IS NULL

-- name: list_api_keys
SELECT id, company_id, name, scopes, created_at, last_used_at, revoked_at FROM api_keys ORDER BY created_at

-- name: revoke_api_key
UPDATE api_keys SET revoked_at = now() WHERE id = $1 AND revoked_at IS NULL

-- name: add_mapping
INSERT INTO int_mappings (company_id, connection_id, external_entity_type, external_entity_id, internal_entity_type,
                          internal_entity_id, auto_sync)
VALUES ($1, $2, $3, $4, $3, $5, $6)
ON CONFLICT (connection_id, external_entity_type, external_entity_id)
DO UPDATE SET internal_entity_id = EXCLUDED.internal_entity_id, is_active = true, auto_sync = EXCLUDED.auto_sync

-- name: list_mappings
SELECT id, company_id, connection_id, external_entity_type, external_entity_id, internal_entity_type,
       internal_entity_id, auto_sync, is_active
FROM int_mappings
WHERE ($1::text IS NULL OR connection_id = $1) AND ($2::text IS NULL OR internal_entity_type = $2)
ORDER BY connection_id, external_entity_type, external_entity_id LIMIT $3

-- name: remove_mapping
DELETE FROM int_mappings WHERE connection_id = $1 AND external_entity_type = $2 AND external_entity_id = $3

-- name: audit
INSERT INTO audit_log (actor, company_id, action, target, details) VALUES ($1, $2, $3, $4, $5::jsonb)
