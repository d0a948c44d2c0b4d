DROP INDEX dead_letters_one_stranger;
ALTER TABLE dead_letters DROP COLUMN digest;
