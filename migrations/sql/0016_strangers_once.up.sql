-- What has no event is told by what it says: by a keyed hash of it, so that a message that comes again, because its ack or a
-- commit's answer was lost, adds to its open dead letter and opens no other.
ALTER TABLE dead_letters ADD COLUMN digest bytea;
ALTER TABLE dead_letters ALTER COLUMN digest SET STATISTICS 0; -- as documents, see 0015
CREATE UNIQUE INDEX dead_letters_one_stranger ON dead_letters (digest)
    WHERE digest IS NOT NULL AND status IN ('pending', 'retrying');
