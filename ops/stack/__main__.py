"""`python -m ops.stack up|down|status|env|rabbitmq4`: the local stack by hand."""

import argparse
import sys
from pathlib import Path

from ops.stack import debian, health, local

_ROOTS = Path(".staybus")


def main() -> int:
    """Exit codes: 0 done (or running), 1 failed (or not running)."""
    parser = argparse.ArgumentParser(
        prog="python -m ops.stack", description="The private Postgres and RabbitMQ of a folder."
    )
    parser.add_argument(
        "action",
        choices=("up", "down", "status", "env", "rabbitmq4"),
        help="env prints the URLs, passwords included; rabbitmq4 unpacks a newer RabbitMQ for the local stack",
    )
    parser.add_argument("--folder", type=Path, default=Path(".staybus/local"), help="default: %(default)s")
    parser.add_argument("--delete", action="store_true", help="with down: remove the data as well")
    parser.add_argument(
        "--release",
        choices=list(debian.RELEASES),
        default="trixie",
        help="with rabbitmq4: of Debian, default %(default)s",
    )
    given = parser.parse_args()
    try:
        if given.action == "rabbitmq4":
            return _build(given.release)
        return _act(given.action, given.folder, delete=given.delete)
    except local.StackError as error:
        print(error, file=sys.stderr)
        return 1


def _build(release: str) -> int:
    debian.build(_ROOTS, release, print)
    setting = f"{local.RABBITMQ_ROOT_VARIABLE}={_ROOTS / debian.RELEASES[release]}"
    print(f"now any command may use it:\n  {setting} make test\n  {setting} make faults")
    return 0


def _act(action: str, folder: Path, *, delete: bool) -> int:
    if action == "down":
        (local.delete if delete else local.stop)(folder, print)
        return 0
    stack = local.start(folder, print) if action == "up" else local.running(folder)
    if stack is None:
        print(f"not running: {folder}", file=sys.stderr)
        return 1
    if action == "env":
        print(f"export STAYBUS_DATABASE_URL={stack.database_url}\nexport STAYBUS_AMQP_URL={stack.amqp_url}")
        return 0
    print(f"Postgres   {health.address(stack.database_url)}")
    print(f"RabbitMQ   {health.address(stack.amqp_url)}")
    if stack.amqp_admin_url:
        print(f"management {health.address(stack.amqp_admin_url)}")
    print(f"pids       {' '.join(map(str, stack.pids)) or '-'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
