-- When the core was told of a reservation last; null: never, all that is stored of it the core said itself. Of what was stored
-- before this column: it may have been told until now. The default is of these rows alone, which are not rewritten.
ALTER TABLE int_reservations ADD COLUMN told_at timestamptz DEFAULT now();
ALTER TABLE int_reservations ALTER COLUMN told_at DROP DEFAULT;
ALTER TABLE int_reservations ALTER COLUMN told_at SET STATISTICS 20; -- as all of its columns, see 0008
