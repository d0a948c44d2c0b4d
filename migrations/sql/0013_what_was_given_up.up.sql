-- What a person may still let run again, by lane, or by the entity of a command that was never routed: what was sent after it
-- tells that it would put an older state back. Few rows, so small indexes.
CREATE INDEX channel_events_lane_given_up ON channel_events (lane, seq) WHERE lane IS NOT NULL AND status = 'abandoned';
CREATE INDEX channel_events_parked ON channel_events (company_id, entity_internal_id, seq)
    WHERE direction = 'outbound' AND parent_id IS NULL AND status IN ('failed', 'abandoned');
