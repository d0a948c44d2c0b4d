DROP TRIGGER outbox_rings ON outbox;
DROP FUNCTION outbox_rings();
