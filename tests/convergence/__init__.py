"""Whatever happens in whatever order: in the end our state is the vendor's, and the vendor's is what was last said to it.

`schedule.py` makes random schedules. `machine.py` plays one with the real pure code over `vendor.py` (the simulator without its
server) and `model.py` (the tables, by the rules of the SQL): thousands in a minute. `test_real.py` plays the like of them
with the real processes. `oracle.py` says what must hold in the end.

    python -m tests.convergence --seed 42              plays one schedule again and prints its steps
    python -m tests.convergence --count 100000         plays so many, prints each seed that fails, shortened
"""
