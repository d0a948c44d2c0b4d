-- Whoever commits outbox rows is heard at once (store/bell.py); without a listener it costs next to nothing.
CREATE FUNCTION outbox_rings() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NOTIFY staybus_outbox;
    RETURN NULL;
END $$;

CREATE TRIGGER outbox_rings AFTER INSERT ON outbox FOR EACH STATEMENT EXECUTE FUNCTION outbox_rings();
