-- A vendor may answer what it is asked and do nothing of what it is told, or the other way round. `circuits`, which has one row
-- for both, stays for the processes of the version before: they write to it by its key.
CREATE TABLE call_circuits (
    connection_id text NOT NULL REFERENCES connections (id) ON DELETE CASCADE,
    kind text NOT NULL CHECK (kind IN ('read', 'write')),
    company_id text NOT NULL,
    failures integer NOT NULL, -- calls of this kind in a row that the vendor did not answer
    retry_at timestamptz NOT NULL, -- no call of this kind before it, once there are enough of them
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (connection_id, kind)
);
-- An answer of either kind would have ended the row: neither was answered.
INSERT INTO call_circuits (connection_id, kind, company_id, failures, retry_at, updated_at)
SELECT connection_id, kind, company_id, failures, retry_at, updated_at FROM circuits, (VALUES ('read'), ('write')) AS k (kind);

ALTER TABLE call_circuits ENABLE ROW LEVEL SECURITY;
CREATE POLICY of_company ON call_circuits TO staybus_api
    USING (company_id = current_setting('staybus.company_id', true) OR current_setting('staybus.company_id', true) = '*');
CREATE POLICY of_worker ON call_circuits TO staybus_worker USING (true);
GRANT SELECT ON call_circuits TO staybus_api;
GRANT SELECT, INSERT, UPDATE, DELETE ON call_circuits TO staybus_worker;
