"""The private Postgres and RabbitMQ of one folder: `ops.stack.local` starts and stops them."""
