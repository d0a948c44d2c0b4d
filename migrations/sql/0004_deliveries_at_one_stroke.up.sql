-- A delivery that its vendor has done.
CREATE TYPE delivery_row AS (
    id uuid, attempts integer, -- and whose lease it must hold still
    started_at timestamptz,
    external_id text, internal_id text, entity_type text, -- by which names both know the thing; null: the vendor gave none
    request text, response text, -- JSON, without personal data
    result uuid, told text); -- the id of what others hear of it, and what they hear, as JSON
