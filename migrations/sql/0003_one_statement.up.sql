-- A state of a reservation, and what others hear of it if it is applied. It has all of reservation_row, which stays for the
-- processes of the version before.
CREATE TYPE state_row AS (
    id uuid, company_id text, connection_id text, external_id text, external_property_id text, external_room_type_id text,
    external_unit_id text, guest_id uuid, status text, check_in date, check_out date, adults integer, children integer,
    total_price bigint, currency text, source text, source_reference text, booked_at timestamptz, cancelled_at timestamptz,
    raw_data text, sealed bytea, source_version timestamptz, observed_at timestamptz, tie smallint, source_event uuid,
    guest_sealed bytea, guest_language text, guest_country text, command uuid,
    result uuid, told text, trace text); -- result: its id; null: nobody is told. told: JSON, what the database adds left out

-- Ends a statement that would settle what somebody else has settled meanwhile; nothing of it remains.
CREATE FUNCTION settled_elsewhere() RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'an event of this batch is settled already' USING ERRCODE = 'SB001';
END
$$;
