"""Whatever happens in whatever order: in the end our state is the vendor's, and the vendor's is what was last said to it.

`schedule.py` makes random schedules out of what may happen around the gateway (`outside.py`). The fast form, thousands in a
minute: `machine.py` plays one with the real pure code over `vendor.py` (the simulator without its server) and `model.py` (the
tables, by the rules of the SQL). The real form, a hundred in some minutes: `real.py` plays the like of them on every process,
Postgres and RabbitMQ (`fleet.py`), over HTTP with the simulator (`served.py`); `ending.py` reads what the database then holds.
`oracle.py` says of both what must hold in the end.

    python -m tests.convergence --seed 42              plays one schedule again and prints its steps
    python -m tests.convergence --count 100000         plays so many, prints each seed that fails, shortened
    python -m tests.convergence --real --seed 42       the same on the real parts: prints what happened when
    python -m tests.convergence --real --count 100     so many, eight at once, prints the story of each seed that fails
"""
