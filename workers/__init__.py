"""The consumer processes: consume → begin → perform → settle (batch) → publish next → ack."""
