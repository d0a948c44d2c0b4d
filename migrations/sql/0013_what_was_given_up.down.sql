DROP INDEX channel_events_lane_given_up;
DROP INDEX channel_events_parked;
