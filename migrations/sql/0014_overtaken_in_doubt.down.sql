-- Whether a failed or abandoned event that ran again would put an older state back.
-- Of a delivery: something newer of its lane went out, or is being sent.
-- Of a command that was never routed: it would be routed now, behind whatever its lanes hold. So what was commanded after it
-- and waits, goes out, went out or may be requeued is in its way, and only what was abandoned is not. Commands are compared,
-- because the delivery of an older one that was requeued is newer than both. Lanes have the names that store/outbound.py gives.
-- OFFSET 0, so that lanes and commands are looked up by index, whatever the planner expects of row-level security.
CREATE OR REPLACE FUNCTION is_overtaken(of_id uuid) RETURNS boolean
LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT CASE
        WHEN e.lane IS NOT NULL THEN
            EXISTS (
                SELECT FROM channel_events n WHERE n.lane = e.lane AND n.seq > e.seq AND n.status = 'processing')
            OR EXISTS (
                SELECT FROM channel_events n WHERE n.lane = e.lane AND n.seq > e.seq AND n.status IN ('done', 'superseded')
                    AND n.replay_of IS NULL)
        WHEN e.direction = 'outbound' AND e.parent_id IS NULL THEN
            EXISTS (
                SELECT FROM channel_events n
                WHERE n.company_id = e.company_id AND n.entity_internal_id = e.entity_internal_id AND n.seq > e.seq
                    AND n.direction = 'outbound' AND n.parent_id IS NULL AND n.status = 'received'
                    AND n.entity_type = e.entity_type
                    AND (e.connection_id IS NULL OR n.connection_id IS NULL OR n.connection_id = e.connection_id))
            OR EXISTS (
                SELECT FROM connections c
                CROSS JOIN LATERAL (
                    (SELECT n.parent_id FROM channel_events n
                     WHERE n.lane = e.entity_type || ':' || e.entity_internal_id || '@' || c.id AND n.connection_id = c.id
                         AND n.seq > e.seq AND n.status IN ('received', 'processing', 'retrying', 'failed'))
                    UNION ALL
                    (SELECT n.parent_id FROM channel_events n
                     WHERE n.lane = e.entity_type || ':' || e.entity_internal_id || '@' || c.id AND n.connection_id = c.id
                         AND n.seq > e.seq AND n.status IN ('done', 'superseded'))
                    OFFSET 0) n
                CROSS JOIN LATERAL (SELECT FROM channel_events p WHERE p.id = n.parent_id AND p.seq > e.seq OFFSET 0) p
                WHERE c.company_id = e.company_id AND (e.connection_id IS NULL OR c.id = e.connection_id))
        ELSE false END
    FROM channel_events e WHERE e.id = of_id
$$;
