"""RabbitMQ as staybus uses it: what is declared there, when commands are tried again, and how processes publish and consume.

model, declared   exchanges, queues and bindings as values, made by one function
routing           where a routing key lands, as a pure function
apply             compare the broker with the values, and make it equal them
retry             the named retry policies
link              one supervised connection; publisher and consumer stand on it
lenient           frames that the library cannot decode
ledger            which deliveries may be acknowledged, as a pure value
"""
