-- Of a lease: what tells it from every other lease of the same event, by whichever worker.
ALTER TABLE channel_events ADD COLUMN lease_token uuid;
ALTER TABLE channel_events ALTER COLUMN lease_token SET STATISTICS 20; -- as all of its columns, see 0008
