DROP FUNCTION is_overtaken (uuid);
DROP INDEX channel_events_lane_sent;
CREATE INDEX channel_events_lane_sent ON channel_events (lane, seq) WHERE lane IS NOT NULL AND status = 'done';
