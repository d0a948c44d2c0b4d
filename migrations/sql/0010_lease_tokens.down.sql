ALTER TABLE channel_events DROP COLUMN lease_token;
