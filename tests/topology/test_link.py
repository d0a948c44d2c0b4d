from topology.link import jittered_backoff, where


def test_backoff_doubles_to_five_seconds_and_is_spread() -> None:
    for failures, longest in [(0, 0.1), (1, 0.2), (5, 3.2), (6, 5.0), (1_000_000, 5.0)]:
        waits = [jittered_backoff(failures) for _ in range(200)]
        assert longest / 2 <= min(waits) <= max(waits) <= longest
        assert len(set(waits)) > 100


def test_what_is_said_of_a_url_names_nobody() -> None:
    assert where("amqp://user:s3cret@broker.example/stay") == "broker.example:5672/stay"
    assert where("amqps://user:s3cret@broker.example:6000") == "broker.example:6000/"
    assert where("amqps://broker.example") == "broker.example:5671/"
