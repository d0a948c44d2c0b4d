"""`staybus demo`, `up` and `down`: the real processes on this machine, against simulated vendors."""
