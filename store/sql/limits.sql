-- name: circuits
SELECT connection_id, failures, retry_at FROM circuits WHERE connection_id = ANY ($1::text[])

-- name: begin_budgets
-- A row for each scope, so that there is something to lock. It is over: it says nothing of what is left.
INSERT INTO rate_budgets (scope, company_id, remaining, resets_at)
SELECT scope, company_id, 0, '-infinity' FROM unnest($1::text[], $2::text[]) AS g (scope, company_id) ORDER BY scope
ON CONFLICT DO NOTHING

-- name: budgets
-- Locked in the order of their names, those whose window is over, too: reading and taking is one step for all processes.
SELECT scope, remaining, under_way, resets_at, resets_at > clock_timestamp() AS running FROM rate_budgets
WHERE scope = ANY ($1::text[]) ORDER BY scope FOR UPDATE

-- name: take_at_once
-- The usual case in one statement: takes all of these costs, or none of them. Rows are locked in the order of their names, and
-- looked at again when the lock was waited for.
WITH free AS MATERIALIZED (
    SELECT b.scope, g.cost FROM unnest($2::text[], $3::float8[], $4::float8[]) AS g (scope, cost, needed)
    JOIN rate_budgets b USING (scope)
    WHERE b.resets_at > clock_timestamp() AND b.remaining - b.under_way >= g.needed
      AND NOT EXISTS (SELECT FROM circuits WHERE connection_id = ANY ($1::text[]))
    ORDER BY b.scope FOR UPDATE OF b
)
UPDATE rate_budgets b SET under_way = b.under_way + f.cost, updated_at = clock_timestamp()
FROM free f
WHERE b.scope = f.scope AND (SELECT count(*) FROM free) = cardinality($2::text[])

-- name: take
UPDATE rate_budgets b
SET remaining = g.remaining, under_way = g.under_way, told = b.told AND b.resets_at = g.resets_at,
    resets_at = g.resets_at, updated_at = clock_timestamp()
FROM unnest($1::text[], $2::float8[], $3::float8[], $4::timestamptz[]) AS g (scope, remaining, under_way, resets_at)
WHERE b.scope = g.scope

-- name: spent
-- Calls that are over. What a vendor says is left ($3) only falls within a window: an answer that is written late says more
-- than is left. Units of calls of which it says nothing stay taken until the window is over.
WITH known AS (
    SELECT scope, remaining, under_way, resets_at, told FROM rate_budgets WHERE scope = ANY ($1::text[])
    ORDER BY scope FOR UPDATE
), given AS (
    SELECT k.*, g.units, g.told AS left, g.resets_at AS until, -- of whole seconds, as vendors say it
           k.resets_at <= clock_timestamp() OR g.resets_at > k.resets_at + interval '2 seconds' AS turned
    FROM unnest($1::text[], $2::float8[], $3::float8[], $4::timestamptz[]) AS g (scope, units, told, resets_at)
    JOIN known k USING (scope)
)
UPDATE rate_budgets b
SET remaining = CASE WHEN g.told AND NOT g.turned THEN LEAST(g.remaining, g.left)
                     ELSE COALESCE(g.left, g.remaining) END,
    under_way = CASE WHEN g.turned AND g.left IS NOT NULL THEN 0 ELSE GREATEST(0, g.under_way - g.units) END,
    resets_at = COALESCE(g.until, g.resets_at), told = g.told OR g.left IS NOT NULL, updated_at = clock_timestamp()
FROM given g
WHERE b.scope = g.scope

-- name: silent
-- Connections whose vendor did not answer. Below $4 failures in a row the circuit is closed and each counts; from there on
-- it is open, and only the failure of a probe makes it stay so longer: $5 seconds, doubled each time, at most $6. Probes of
-- several processes at once are one.
INSERT INTO circuits AS c (connection_id, company_id, failures, retry_at)
SELECT connection_id, company_id, LEAST(failures, $4::int),
       clock_timestamp() + make_interval(secs => CASE WHEN failures >= $4 THEN $5::float8 ELSE 0 END)
FROM unnest($1::text[], $2::text[], $3::int[]) AS g (connection_id, company_id, failures)
ORDER BY connection_id
ON CONFLICT (connection_id) DO UPDATE
SET failures = CASE WHEN c.failures < $4 THEN LEAST($4, c.failures + EXCLUDED.failures)
                    WHEN c.connection_id = ANY ($7::text[]) AND c.retry_at <= clock_timestamp() THEN c.failures + 1
                    ELSE c.failures END,
    retry_at = CASE WHEN c.failures + EXCLUDED.failures < $4 THEN c.retry_at
                    WHEN c.failures < $4 OR (c.connection_id = ANY ($7::text[]) AND c.retry_at <= clock_timestamp())
                    THEN clock_timestamp() + make_interval(
                        secs => LEAST($6::float8, $5 * 2 ^ LEAST(GREATEST(c.failures + 1 - $4, 0), 20)))
                    ELSE c.retry_at END,
    updated_at = clock_timestamp()
RETURNING connection_id, failures

-- name: heard
DELETE FROM circuits WHERE connection_id = ANY ($1::text[])

-- name: open_circuits
SELECT c.connection_id, k.vendor, c.failures, c.retry_at FROM circuits c JOIN connections k ON k.id = c.connection_id
WHERE c.failures >= $1 AND k.status = 'active'
