-- Which process renews the access token: that of a dead one is another's to renew at once. Null: one that nobody watches.
ALTER TABLE connections ADD COLUMN renewing_by text;
GRANT UPDATE (renewing_by) ON connections TO staybus_worker;
