"""Do the servers answer? Each question is asked from a thread of its own, so it may be asked from inside a running event loop."""

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import aio_pika
import asyncpg
import httpx

_AMQP_PORTS = {"amqp": 5672, "amqps": 5671}


def postgres_problem(url: str, timeout: float = 5) -> str | None:
    """Why the database does not answer a query, in words without its password; None when it does."""
    return _problem(url, lambda: _ask_postgres(url, timeout))


def amqp_problem(url: str, timeout: float = 5) -> str | None:
    """Why the broker does not accept an AMQP connection; None when it does."""
    return _problem(url, lambda: _ask_amqp(url, timeout))


def management_answers(url: str) -> bool:
    """Whether RabbitMQ's management API lists its virtual hosts."""
    try:
        with httpx.Client(trust_env=False, timeout=5) as client:
            return client.get(f"{url}/vhosts").is_success
    except httpx.HTTPError:
        return False


def ensure_database(server_url: str, name: str) -> None:
    """Create the database unless it is there."""
    _in_thread(lambda: _create_database(server_url, name))


def address(url: str) -> str:
    """Hosts, ports and path of a URL: what may be shown to people."""
    parts = urlsplit(url)
    return "an address that cannot be told" if _is_amiss(url) else f"{parts.netloc.rpartition('@')[2]}{parts.path}"


def _is_amiss(url: str) -> bool:
    """Whether a bare / ? or # in the password ends the host too soon: parts of it are read as the host's, the port's or the path."""
    return urlsplit(url).netloc.count("@") != url.count("@")


async def _ask_postgres(url: str, timeout: float) -> None:
    connection = await asyncpg.connect(url, timeout=timeout)
    try:
        await connection.fetchval("select 1", timeout=timeout)
    finally:
        await connection.close(timeout=timeout)


async def _ask_amqp(url: str, timeout: float) -> None:
    parts = urlsplit(url)
    async with asyncio.timeout(timeout):
        _, writer = await asyncio.open_connection(parts.hostname, parts.port or _AMQP_PORTS.get(parts.scheme))
        writer.close()  # a plain refusal is told apart here: the AMQP library would also log it
        await writer.wait_closed()
        connection = await aio_pika.connect(url, timeout=timeout)
        await connection.close()


async def _create_database(server_url: str, name: str) -> None:
    connection = await asyncpg.connect(server_url, timeout=10)
    try:
        if not await connection.fetchval("select 1 from pg_database where datname = $1", name):
            await connection.execute(f'create database "{name}"')
    finally:
        await connection.close(timeout=10)


def _problem(url: str, ask: Callable[[], Coroutine[None, None, None]]) -> str | None:
    if _is_amiss(url):  # what a client says of it may quote the password
        return "it is read amiss; write the special characters of its password as %2F, %3F, %23, %40"
    try:
        _in_thread(ask)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the answer to the question
        return _without_password(url, f"{type(error).__name__}: {error}")
    return None


def _without_password(url: str, text: str) -> str:
    password = urlsplit(url).password
    return text.replace(password, "***") if password else text


def _in_thread(ask: Callable[[], Coroutine[None, None, None]]) -> None:
    with ThreadPoolExecutor(1) as thread:
        thread.submit(lambda: asyncio.run(ask())).result()
