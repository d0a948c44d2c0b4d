ALTER TABLE int_reservations DROP COLUMN told_at;
