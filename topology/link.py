"""One connection with one channel, rebuilt after any loss: what publisher and consumer stand on.

Not `connect_robust`: it brings connection and channel back, but not a consumer whose queue was deleted, and says nothing
about it. Here any of these means that the link is lost, and all that is gone is built again, with backoff:

    the connection closes      close callback of the connection      everything is rebuilt
    the channel closes         close callback of the channel         the channel, and what its owner does on it
    the broker cancels         cancel callback of the raw channel    the same
    its owner distrusts it     `drop`                                everything

Owners work on the raw (aiormq) channel: half the cost of aio-pika's objects a message, and the same protocol code below.
"""

import asyncio
import logging
import random
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from enum import StrEnum
from urllib.parse import parse_qs, urlsplit

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractConnection
from aiormq.abc import AbstractChannel as RawChannel
from aiormq.exceptions import ChannelClosed, InvalidFrameError
from pamqp.commands import Connection as ConnectionFrames
from yarl import URL

from topology.acks import Transport
from topology.lenient import read_everything

log = logging.getLogger(__name__)

Backoff = Callable[[int], float]
"""Seconds to wait after failure number n in a row, from 0."""

HEARTBEAT = 10
"""Seconds, unless the URL says otherwise. A peer that went silent is noticed after 3.3 of them; the library's 60 make 3 minutes."""

SETTLED = 5.0
"""Seconds that a link must live before a loss counts as the first again. Shorter lives keep backing off, so that something
that closes the channel at every start does not become a busy loop."""

PATIENCE = 10.0
"""Seconds for one attempt to connect, and for a peaceful close."""

LOOK = 1.0
"""Seconds between looks at `connection.blocked`, which the library does not report by callback; only state changes wait for it,
and only where something is published: the broker blocks nobody else. Every look of every link wakes a process that rests."""


class LinkLost(ConnectionError):  # noqa: N818 - named for what happened, as all errors here are
    """What was awaited will never come, because its connection or channel is gone."""


class LinkState(StrEnum):
    DOWN = "down"
    UP = "up"
    BLOCKED = "blocked"
    """Connected, but the broker (memory or disk alarm) reads nothing that is published."""


def jittered_backoff(failures: int) -> float:
    """0.1 s doubling to 5 s, each shortened by up to half, so that many processes do not come back at the same moment."""
    return min(0.1 * 2.0 ** min(failures, 10), 5.0) * (1 - random.random() / 2)  # noqa: S311 - spreading load, not a secret


def where(url: str) -> str:
    """Host, port and vhost of a broker URL: what logs and errors may say, which is never its user or password."""
    parts = urlsplit(url)
    return f"{parts.hostname}:{parts.port or (5671 if parts.scheme == 'amqps' else 5672)}{parts.path or '/'}"


def tls_context(ca_file: str | None) -> ssl.SSLContext | None:
    """None: the library verifies with the system's authorities. A private one needs its file (PEM); raises OSError for a bad one."""
    return ssl.create_default_context(cafile=ca_file) if ca_file else None


async def connect(
    url: str, *, name: str, tls: ssl.SSLContext | None = None, confirms: bool = False
) -> AbstractConnection:
    """A plain connection, shown to the broker's operators as `name`. Raises AMQPError, OSError, TimeoutError.

    confirms   many are expected on it
    """
    if "heartbeat" not in parse_qs(urlsplit(url).query):
        url = f"{url}{'&' if urlsplit(url).query else '?'}heartbeat={HEARTBEAT}"
    read_everything()
    # Not aio_pika.connect(): its connection that could not connect is never closed, and closes itself at some later collection
    # of garbage, in whatever is running then.
    connection = aio_pika.Connection(URL(url), ssl_context=tls, client_properties={"connection_name": name})
    if confirms:
        connection.kwargs["transport_factory"] = Transport()
    try:
        await connection.connect()
    except BaseException as error:
        await connection.close()
        if isinstance(error, StopAsyncIteration):  # aiormq's word for a peer that hangs up in the handshake
            raise ConnectionError("the connection was closed while it was made") from error
        closed_instead = isinstance(error, InvalidFrameError) and ConnectionFrames.OpenOk.name in str(error)
        if closed_instead:
            raise ConnectionError("there is no such virtual host, or it is not open to this user") from error
        raise
    return connection


async def disconnect(connection: AbstractConnection, patience: float = PATIENCE) -> None:
    """Closes it, whatever state it is in."""
    await _close(connection, patience)
    if not connection.is_closed:
        # The first close failed on what was broken and took it away; this one only notes the end.
        await _close(connection, patience)


async def _close(closable: AbstractChannel | AbstractConnection, patience: float) -> None:
    # Closing what is already broken fails in as many ways as there are to break; the broker closes its side by itself.
    with suppress(Exception):
        async with asyncio.timeout(patience):
            with losses_as_errors():
                await closable.close()


@contextmanager
def losses_as_errors() -> Iterator[None]:
    """Waits on a connection that is dropped end in CancelledError though nobody cancelled us: that becomes LinkLost."""
    task = asyncio.current_task()
    cancels = task.cancelling() if task else 0
    try:
        yield
    except asyncio.CancelledError as error:
        if task and task.cancelling() > cancels:
            raise
        raise LinkLost("the connection was dropped") from error


class Link:
    """A supervised connection and channel.

    furnish    is called with each new channel and does what its owner needs there (QoS, consume); it may raise, then all is
               tried again
    on_lost    is called once for every furnished channel that is gone, before the next is built
    on_state   is called at each change of `state`, for metrics
    """

    def __init__(
        self,
        url: str,
        *,
        name: str,
        furnish: Callable[[RawChannel], Awaitable[None]],
        on_lost: Callable[[], None],
        on_state: Callable[[LinkState], None] | None = None,
        confirms: bool = False,
        ca_file: str | None = None,
        backoff: Backoff = jittered_backoff,
        patience: float = PATIENCE,
    ) -> None:
        """`patience`: seconds for one attempt to connect and furnish, and for a peaceful close."""
        self._url = url
        self._name = name
        self._furnish = furnish
        self._on_lost = on_lost
        self._on_state = on_state
        self._confirms = confirms
        self._tls = tls_context(ca_file)
        self._backoff = backoff
        self._patience = patience
        self._connection: AbstractConnection | None = None
        self._channel: AbstractChannel | None = None
        self._furnished = False
        self._distrusted = False
        self._lost = asyncio.Event()
        self._ready = asyncio.Event()
        self._told = LinkState.DOWN
        self.failure = ""  # why the last attempt to connect failed
        self._supervisor: asyncio.Task[None] | None = None

    @property
    def connected(self) -> bool:
        """Whether the channel is open and furnished."""
        return self._furnished and not self._lost.is_set()

    @property
    def blocked(self) -> bool:
        """Whether the broker has told this connection that it reads no publishes for now."""
        return self.connected and self._connection is not None and _is_blocked(self._connection)

    @property
    def state(self) -> LinkState:
        if not self.connected:
            return LinkState.DOWN
        return LinkState.BLOCKED if self.blocked else LinkState.UP

    async def start(self, wait: float = 0) -> None:
        """Begin, and wait at most `wait` seconds to be connected. With the broker away it keeps trying in the background."""
        if self._supervisor is None:
            self._supervisor = asyncio.create_task(self._supervise(), name=f"link {self._name}")
        if wait > 0:
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._ready.wait()

    def drop(self, reason: str) -> None:
        """Give this connection up and build another."""
        if self.connected:
            log.warning("%s: dropping the connection to %s: %s", self._name, where(self._url), reason)
            self._distrusted = True
            self._lost.set()

    async def stop(self) -> None:
        """Close channel and connection, and stay so."""
        supervisor, self._supervisor = self._supervisor, None
        if supervisor is not None:
            supervisor.cancel()
            await asyncio.gather(supervisor, return_exceptions=True)
        self._mark_lost()
        await self._close_channel()
        await self._close_connection()

    async def _supervise(self) -> None:
        failures = 0
        loop = asyncio.get_running_loop()
        while True:
            try:
                async with self._clean_slate(), asyncio.timeout(self._patience):
                    with losses_as_errors():
                        await self._build()
            except Exception as error:  # noqa: BLE001 - whatever the libraries raise: a supervisor that ends leaves its process idle for ever
                self.failure = _words(error)
                log.warning("%s: no link to %s: %s", self._name, where(self._url), self.failure)
            else:
                self.failure = ""
                log.info("%s: linked to %s", self._name, where(self._url))
                built = loop.time()
                await self._watch()
                log.warning("%s: lost the link to %s", self._name, where(self._url))
                self._mark_lost()
                if self._distrusted:
                    await self._close_connection()
                await self._close_channel()
                if loop.time() - built >= SETTLED:
                    failures = 0
            await asyncio.sleep(self._backoff(failures))
            failures += 1

    @asynccontextmanager
    async def _clean_slate(self) -> AsyncIterator[None]:
        """Leave no half-built channel behind; keep the connection only if the channel alone was refused (no such queue)."""
        try:
            yield
        except BaseException as error:
            await self._close_channel()
            if not isinstance(error, ChannelClosed):
                await self._close_connection()
            raise

    async def _build(self) -> None:
        if self._connection is not None and not is_open(self._connection):
            await self._close_connection()
        self._lost = lost = asyncio.Event()
        self._distrusted = False

        def mark(*_: object) -> None:
            lost.set()

        if self._connection is None:
            self._connection = connection = await connect(
                self._url, name=self._name, tls=self._tls, confirms=self._confirms
            )
            connection.close_callbacks.add(lambda *_: self._connection_closed(connection))
        self._channel = self._connection.channel(publisher_confirms=self._confirms, on_return_raises=self._confirms)
        await self._channel.initialize()
        self._channel.close_callbacks.add(mark)
        raw = await self._channel.get_underlay_channel()
        raw.on_consumer_cancel_callbacks.add(mark)
        await self._furnish(raw)
        self._furnished = True
        self._ready.set()

    def _connection_closed(self, connection: AbstractConnection) -> None:
        if connection is self._connection:
            self._lost.set()

    async def _watch(self) -> None:
        while not self._lost.is_set():
            self._tell()
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK if self._confirms else None):
                    await self._lost.wait()

    def _mark_lost(self) -> None:
        if self._furnished:
            self._furnished = False
            self._ready.clear()
            self._on_lost()
        self._tell()

    def _tell(self) -> None:
        state = self.state
        if state is not self._told:
            self._told = state
            if self._on_state is not None:
                self._on_state(state)

    async def _close_channel(self) -> None:
        """Also gives back what a cancelled consumer still held: the broker requeues what a closed channel has not acknowledged."""
        channel, self._channel = self._channel, None
        if channel is not None and not channel.is_closed:
            await _close(channel, self._patience)

    async def _close_connection(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await disconnect(connection, self._patience)


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def is_open(connection: AbstractConnection) -> bool:
    """aio-pika's own `is_closed` stays False after a loss; the raw connection knows whether its reader and writer still run."""
    return connection.transport is not None and connection.transport.connection.is_opened


def _is_blocked(connection: AbstractConnection) -> bool:
    """aiormq tells of `connection.blocked` only through `ready()`, which waits as long; one step of it asks without waiting."""
    if connection.transport is None:
        return False
    probe = connection.transport.connection.ready().__await__()
    try:
        next(iter(probe))
    except StopIteration:
        return False
    else:
        return True
    finally:
        probe.close()
