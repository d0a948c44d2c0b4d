-- Lanes are looked up by their beginning (entity:id@…), which is a range only where text is compared by its bytes: not in every
-- database's locale. Keys are compared more often than anything else, and nobody sorts them for people.
ALTER TABLE channel_events
    ALTER COLUMN lane TYPE text COLLATE "C",
    ALTER COLUMN idempotency_key TYPE text COLLATE "C";
