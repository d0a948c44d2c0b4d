ALTER TABLE connections DROP COLUMN renewing_by;
