"""The table says what the runs say: medians of clean runs, ratios of the medians, goals as information."""

from __future__ import annotations

import io

from rich.console import Console

from bench.measure import Result
from bench.peers.report import Session, figure_table, goal_table, progress, summary

IDLE = {"web": [50.0], "worker": [40.0, 30.0]}


def session(name: str, number: int, rate: float, cpu: float, *, foreign: float = 0.01, done: int = 1000) -> Session:
    kinds = {"ingress": cpu, "inbound": cpu, "scheduler": cpu} if name == "staybus" else {"web": cpu, "worker": cpu}
    memory = {kind: [45.0] for kind in kinds}
    result = Result(
        name="burst",
        rate=0.0,
        count=1000,
        accepted=1000,
        done=done,
        ingest_rate=rate * 1.1,
        done_rate=rate,
        ack=(0.002, 0.009),
        latency=(0.004, 0.010),
        cpu=kinds | {"postgres": cpu, "rabbitmq": cpu},
        load=99.0,
        memory=memory,
        foreign=foreign,
    )
    runs = {"burst": result} | dict.fromkeys(("100/s", "300/s", "half"), result)
    return Session(number, name, memory if name == "staybus" else IDLE, runs)


def test_runs_that_others_disturbed_are_left_out() -> None:
    rounds = [
        session("celery", 1, 500, 800),
        session("celery", 2, 520, 800),
        session("celery", 3, 90, 800, foreign=0.4),
    ]
    figure = summary(rounds).figures["celery"]["burst done/s"]
    assert (figure.value, figure.least, figure.most, figure.clean) == (510, 500, 520, 2)


def test_where_no_run_is_clean_the_figure_says_so() -> None:
    figure = summary([session("celery", 1, 500, 800, foreign=0.06)]).figures["celery"]["burst done/s"]
    assert (figure.clean, figure.shown()) == (0, "~500")


def test_ratios_are_of_medians_and_count_every_process() -> None:
    rounds = [
        *(session("staybus", number, rate, 100) for number, rate in enumerate((3000, 3300, 9000))),
        *(session("faststream", number, rate, 600) for number, rate in enumerate((500, 550, 900))),
    ]
    ratio = summary(rounds).ratios["faststream"]
    assert ratio["rate"] == 6.0
    assert ratio["cpu"] == 500 / 2400


def test_goals_are_met_or_not_and_only_those_that_took_part_are_judged() -> None:
    rounds = [session("staybus", 1, 4000, 100), session("celery", 1, 500, 800), session("handwritten", 1, 1001, 300)]
    met = {goal.text.split(":")[1].strip(): goal.met for goal in summary(rounds).goals}
    assert met == {
        "at least 8 times Celery": True,
        "at least 4 times aio-pika": False,
        "under 60 ms": True,
        "at most 60 MiB": True,
    }
    assert summary([session("celery", 1, 500, 800)]).goals == []


def test_the_table_has_a_column_for_each_and_shows_what_was_lost() -> None:
    whole = summary([session("staybus", 1, 4000, 100), session("faststream", 1, 500, 600, done=997)])
    out = io.StringIO()
    say = Console(file=out, width=100)
    say.print(figure_table(whole))
    say.print(goal_table(whole.goals))
    lines = {line.split("  ")[0].strip(): line for line in out.getvalue().splitlines()}
    assert lines["median"].split() == ["median", "staybus", "FastStream"]
    assert "8.0 x this" in out.getvalue()
    assert "3" in out.getvalue().split("lost")[1].splitlines()[0]
    assert "70 in 2" in out.getvalue()


def test_a_line_of_progress_tells_what_is_wrong_with_a_run() -> None:
    line = progress(session("celery", 2, 500, 800, foreign=0.2, done=990), "burst")
    assert line.startswith("round 2  Celery      burst     500/s")
    assert line.endswith("others 20%  not clean, 10 LOST")
