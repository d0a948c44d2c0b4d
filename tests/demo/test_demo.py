"""`staybus demo` and `up`, as a person runs them: real commands, real servers, nothing left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from ops.stack import places

ROOT = Path(__file__).resolve().parents[2]
GIVEN = ("STAYBUS_DATABASE_URL", "DATABASE_URL", "STAYBUS_AMQP_URL", "RABBITMQ_URL")


@pytest.fixture
def env() -> dict[str, str]:
    """A folder without a stack, programs that are there already."""
    kept = {name: value for name, value in os.environ.items() if name not in GIVEN}
    return {**kept, "STAYBUS_RUNTIME": str(ROOT / ".staybus/runtime"), "PYTHONPATH": str(ROOT)}


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """The test fails when a process is left that works in this folder or names it."""
    yield tmp_path
    assert _processes_of(tmp_path) == []


def test_the_demo_plays_its_three_scenes_and_leaves_nothing(folder: Path, env: dict[str, str]) -> None:
    done = subprocess.run(
        _staybus("demo"), cwd=folder, env=env, capture_output=True, text=True, timeout=170, check=False
    )
    assert [line for line in done.stdout.splitlines() if "NOT SO" in line] == [], done.stdout
    assert done.returncode == 0, done.stdout + done.stderr
    for scene in ("Inbound", "Outbound", "Dead letters"):
        (line,) = [line for line in done.stdout.splitlines() if line.startswith(f"│ {scene} ")]
        assert " OK " in line, done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100
    assert "Madeupname" not in done.stdout + done.stderr
    assert [path.name for path in (folder / ".staybus").iterdir() if path.is_dir()] == []


def test_up_serves_what_it_prints_until_down(folder: Path, env: dict[str, str]) -> None:
    with (folder / "out").open("wb") as out:
        up = subprocess.Popen(_staybus("up"), cwd=folder, env=env, stdout=out, stderr=out)
    try:
        _until(lambda: "What happens from now on" in _said(folder) or up.poll() is not None, 120)
        assert up.poll() is None, _said(folder)
        pids = [mark["pid"] for mark in json.loads((folder / ".staybus/up.json").read_text())["children"].values()]
        assert len(pids) == 5
        assert len(_processes_of(folder)) >= 6  # they, and the servers: the look for what is left would see them
        curl = _said(folder).split("a duplicate):\n", 1)[1].split("\n\n", 1)[0]
        answers = [_shell(curl.replace("curl -sS", "curl -sS -w '%{http_code}'", 1), folder, env) for _ in range(2)]
        assert [answer[-3:] for answer in answers] == ["202", "200"], answers
        _until(lambda: "beds24.booking.created" in _said(folder).rsplit("from now on", 1)[1], 20)
        again = subprocess.run(_staybus("up"), cwd=folder, env=env, capture_output=True, text=True, check=True)
        assert "runs already" in again.stdout
    finally:
        subprocess.run(_staybus("down"), cwd=folder, env=env, timeout=90, check=True, stdout=subprocess.DEVNULL)
    assert up.wait(5) == 0
    assert [pid for pid in pids if psutil.pid_exists(pid)] == []


def _staybus(command: str) -> list[str]:
    return [sys.executable, "-c", "import sys; from ops.cli import main; sys.exit(main())", command]


def _shell(command: str, folder: Path, env: dict[str, str]) -> str:
    ran = subprocess.run(["bash", "-c", command], cwd=folder, env=env, capture_output=True, text=True, check=True)
    return ran.stdout


def _said(folder: Path) -> str:
    return (folder / "out").read_text()


def _until(condition: object, seconds: float) -> None:
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _processes_of(folder: Path) -> list[str]:
    # As root Postgres keeps its data elsewhere, under a name that is made from the folder's.
    stacks = [folder.resolve() / ".staybus" / name / "postgres" for name in ("demo", "stack")]
    names = [str(folder.resolve()), *(places.key(stack) for stack in stacks)]
    found = []
    for process in psutil.process_iter(["cmdline", "cwd"]):
        words = " ".join([*(process.info["cmdline"] or []), process.info["cwd"] or ""])
        if any(name in words for name in names):
            found.append(words)
    return found
