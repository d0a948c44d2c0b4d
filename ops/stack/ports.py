"""Free TCP ports on the loopback interface.

Ports are taken from below the kernel's ephemeral range: an outgoing connection of a client can then never sit on the port
of a server that is about to be restarted.
"""

import random
import socket
import time
from collections.abc import Mapping
from pathlib import Path

_LOWEST = 15_000
_EPHEMERAL_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_USUAL_EPHEMERAL_START = 32_768


def is_free(port: int) -> bool:
    """Whether a server could listen on 127.0.0.1:port now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def is_open(port: int) -> bool:
    """Whether something accepts connections on 127.0.0.1:port."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def free_port(taken: set[int] | None = None) -> int:
    """A port on which nothing listens; chosen at random, so that stacks starting side by side rarely meet."""
    below = _ephemeral_start()
    lowest = _LOWEST if below > _LOWEST + 1000 else 1024
    chooser = random.SystemRandom()
    while True:
        port = chooser.randrange(lowest, max(below, lowest + 1000))
        if port not in (taken or set()) and is_free(port):
            return port


def keep_or_replace(ports: Mapping[str, int], names: tuple[str, ...], patience: float = 2) -> dict[str, int]:
    """A free port for each name: the one it had when that becomes free within `patience` seconds, else a new one."""
    deadline = time.monotonic() + patience
    chosen: dict[str, int] = {}
    for name in names:
        while name in ports and name not in chosen and time.monotonic() < deadline:
            if is_free(ports[name]):
                chosen[name] = ports[name]
            else:
                time.sleep(0.05)
        if name not in chosen:
            chosen[name] = free_port(set(chosen.values()))
    return chosen


def _ephemeral_start() -> int:
    try:
        return int(_EPHEMERAL_RANGE.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return _USUAL_EPHEMERAL_START
