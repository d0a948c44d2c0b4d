"""What the processes cost: CPU seconds and memory from /proc, and how much of the machine others took."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True, slots=True)
class Snapshot:
    """CPU seconds by name of a process tree, of our own ended children, and of the whole machine (busy, all)."""

    by_name: dict[str, float]
    ended: float
    ours: float
    busy: float
    total: float


def snapshot(roots: dict[str, list[int]]) -> Snapshot:
    """roots: name → pids; each counts with its descendants"""
    by_name = {name: sum(map(_tree, pids)) for name, pids in roots.items()}
    own = {process.pid for process in _family(os.getpid())}
    servers = sum(_tree(pid) for pids in roots.values() for pid in pids if pid not in own)
    times = psutil.cpu_times()
    total = sum(times) - times.guest - times.guest_nice
    mine = psutil.Process().cpu_times()
    ended = mine.children_user + mine.children_system
    return Snapshot(by_name, ended, servers + _tree(os.getpid()), total - times.idle - times.iowait, total)


@dataclass(frozen=True, slots=True)
class Cost:
    """Between two snapshots.

    cpu       seconds by name
    load      seconds of what we started and what has ended meanwhile: the load generator
    foreign   the share of the machine that other programs took. Above 5 % a run is not clean.
    """

    cpu: dict[str, float]
    load: float
    foreign: float


def cost(before: Snapshot, after: Snapshot) -> Cost:
    total = max(after.total - before.total, 1e-9)
    foreign = (after.busy - before.busy) - (after.ours - before.ours)
    return Cost(
        cpu={name: after.by_name[name] - before.by_name[name] for name in before.by_name},
        load=after.ended - before.ended,
        foreign=max(0.0, foreign / total),
    )


def memory(pids: list[int]) -> list[float]:
    """MiB of each process and of each of its descendants: the proportional set size, or what is resident where that is not told"""
    return [_held(process.pid) for pid in pids for process in _family(pid)]


def _tree(pid: int) -> float:
    """With the children that have ended: every process keeps what those it reaped took."""
    seconds = 0.0
    for process in _family(pid):
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        seconds += times.user + times.system + times.children_user + times.children_system
    return seconds


def _family(pid: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _held(pid: int) -> float:
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    try:
        return float(psutil.Process(pid).memory_info().rss) / 2**20
    except psutil.Error:
        return 0.0
