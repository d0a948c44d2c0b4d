-- name: circuits
SELECT c.connection_id, c.kind, c.failures, c.retry_at
FROM unnest($1::text[], $2::text[]) AS g (connection_id, kind) JOIN call_circuits c USING (connection_id, kind)

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
    SELECT b.scope, g.cost FROM unnest($3::text[], $4::float8[], $5::float8[]) AS g (scope, cost, needed)
    JOIN rate_budgets b USING (scope)
    WHERE b.resets_at > clock_timestamp() AND b.remaining - b.under_way >= g.needed
      AND NOT EXISTS (SELECT FROM unnest($1::text[], $2::text[]) AS k (connection_id, kind)
                      JOIN call_circuits c USING (connection_id, kind))
    ORDER BY b.scope FOR UPDATE OF b
)
UPDATE rate_budgets b SET under_way = b.under_way + f.cost, updated_at = clock_timestamp()
FROM free f
WHERE b.scope = f.scope AND (SELECT count(*) FROM free) = cardinality($3::text[])

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
-- Calls of these kinds ($1, $2) were not answered. Below $5 failures in a row the circuit is closed and each counts; from there
-- on it is open, and only the failure of a probe ($8, $9) makes it stay so longer: $6 seconds, doubled each time, at most $7.
-- Probes of several processes at once are one.
WITH tried AS (
    SELECT connection_id, kind FROM unnest($8::text[], $9::text[]) AS p (connection_id, kind)
)
INSERT INTO call_circuits AS c (connection_id, kind, company_id, failures, retry_at)
SELECT connection_id, kind, company_id, LEAST(failures, $5::int),
       clock_timestamp() + make_interval(secs => CASE WHEN failures >= $5 THEN $6::float8 ELSE 0 END)
FROM unnest($1::text[], $2::text[], $3::text[], $4::int[]) AS g (connection_id, kind, company_id, failures)
ORDER BY connection_id, kind
ON CONFLICT (connection_id, kind) DO UPDATE
SET failures = CASE WHEN c.failures < $5 THEN LEAST($5, c.failures + EXCLUDED.failures)
                    WHEN (c.connection_id, c.kind) IN (TABLE tried) AND c.retry_at <= clock_timestamp() THEN c.failures + 1
                    ELSE c.failures END,
    retry_at = CASE WHEN c.failures + EXCLUDED.failures < $5 THEN c.retry_at
                    WHEN c.failures < $5
                      OR ((c.connection_id, c.kind) IN (TABLE tried) AND c.retry_at <= clock_timestamp())
                    THEN clock_timestamp() + make_interval(
                        secs => LEAST($7::float8, $6 * 2 ^ LEAST(GREATEST(c.failures + 1 - $5, 0), 20)))
                    ELSE c.retry_at END,
    updated_at = clock_timestamp()
RETURNING connection_id, kind, failures

-- name: heard
DELETE FROM call_circuits c USING unnest($1::text[], $2::text[]) AS g (connection_id, kind)
WHERE c.connection_id = g.connection_id AND c.kind = g.kind

-- name: open_circuits
-- One that has been due for longer than $2 seconds nobody waits for: the next call tries it.
SELECT c.connection_id, c.kind, k.vendor, c.failures, c.retry_at
FROM call_circuits c JOIN connections k ON k.id = c.connection_id
WHERE c.failures >= $1 AND c.retry_at > clock_timestamp() - make_interval(secs => $2) AND k.status = 'active'
