"""What every process tells about itself: metrics, logs, trace ids. Imports nothing of ours; no guest data, no secrets."""
