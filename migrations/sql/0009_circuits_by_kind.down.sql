-- A connection's is open where the vendor answers neither kind.
DELETE FROM circuits;
INSERT INTO circuits (connection_id, company_id, failures, retry_at, updated_at)
SELECT connection_id, company_id, min(failures), min(retry_at), max(updated_at) FROM call_circuits
GROUP BY connection_id, company_id HAVING count(*) = 2;
DROP TABLE call_circuits;
