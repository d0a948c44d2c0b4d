"""Reading fewer frames says the same: whatever the broker's answers, and wherever their bytes are cut."""

import asyncio
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st
from pamqp.body import ContentBody
from pamqp.commands import Basic, Channel, Confirm
from pamqp.frame import marshal, unmarshal
from pamqp.heartbeat import Heartbeat
from yarl import URL

from topology.acks import Acks, Transport
from topology.apply import apply
from topology.burst import Outgoing
from topology.declared import topology as declare
from topology.publisher import Publisher

CHANNELS = (1, 2)


def frames(data: bytes) -> Iterator[tuple[int, Any]]:
    while data:
        size, channel, frame = unmarshal(data)
        yield channel, frame
        data = data[size:]


def answers(data: bytes) -> list[Any]:
    """What a reader learns, frame by frame: of confirms the tags that they are the first to answer, in order of tags between
    any two other frames; of others themselves."""
    learned: list[Any] = []
    group: list[tuple[int, int, str]] = []
    open_ = {channel: list(range(1, 41)) for channel in CHANNELS}
    for channel, frame in frames(data):
        if isinstance(frame, Basic.Ack | Basic.Nack):
            tag = frame.delivery_tag
            told = [t for t in open_[channel] if t == tag or (frame.multiple and t <= tag)]
            assert tag in told, "the library ignores a frame whose own tag is answered already"
            open_[channel] = [t for t in open_[channel] if t not in told]
            group += [(channel, t, frame.name) for t in told]
        else:
            if isinstance(frame, Confirm.SelectOk):
                open_[channel] = list(range(1, 41))
            learned += [*sorted(group), (channel, frame.name)]
            group = []
    return [*learned, *sorted(group)]


@st.composite
def broker_says(draw: st.DrawFn) -> bytes:
    """Each tag is answered once, in any order; other frames, and channels that begin anew, between."""
    said = [marshal(Confirm.SelectOk(), channel) for channel in CHANNELS]
    open_ = {channel: list(range(1, 41)) for channel in CHANNELS}
    for _ in range(draw(st.integers(0, 30))):
        channel = draw(st.sampled_from(CHANNELS))
        match draw(st.sampled_from(["next"] * 6 + ["any", "multiple", "nack", "other", "anew"])):
            case "other":
                other = draw(st.sampled_from([Heartbeat(), ContentBody(b"x" * 13), Channel.Flow(True)]))
                said.append(marshal(other, 0 if isinstance(other, Heartbeat) else channel))
                continue
            case "anew":
                said.append(marshal(Confirm.SelectOk(), channel))
                open_[channel] = list(range(1, 41))
                continue
            case kind:
                pass
        if not open_[channel]:
            continue
        tag = open_[channel][0] if kind == "next" else draw(st.sampled_from(open_[channel][:6]))
        multiple = kind == "multiple" or (kind == "nack" and draw(st.booleans()))
        frame = Basic.Nack(tag, multiple, False) if kind == "nack" else Basic.Ack(tag, multiple)
        said.append(marshal(frame, channel))
        open_[channel] = [t for t in open_[channel] if t > tag or (not multiple and t != tag)]
    return b"".join(said)


@given(broker_says(), st.lists(st.integers(1, 60), max_size=60))
def test_the_same_is_learned_from_fewer_frames(data: bytes, cuts: list[int]) -> None:
    acks, read, at = Acks(), b"", 0
    for cut in [*cuts, len(data)]:
        read += acks.merged(data[at : at + cut])
        at += cut
    assert acks.left() == b""
    assert answers(read) == answers(data)
    assert len(read) <= len(data)


def test_a_run_is_one_frame_and_a_gap_ends_it() -> None:
    acks = Acks()
    acks.merged(marshal(Confirm.SelectOk(), 1))
    said = [(1, False), (2, False), (5, False), (3, False), (4, False), (6, False)]
    read = acks.merged(b"".join(marshal(Basic.Ack(*ack), 1) for ack in said))
    told = [(frame.delivery_tag, frame.multiple) for _, frame in frames(read)]
    assert told == [(2, True), (5, False), (6, True)]


def test_behind_an_answer_that_never_comes_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("topology.acks.AHEAD", 5)
    acks = Acks()
    acks.merged(marshal(Confirm.SelectOk(), 1))
    said = b"".join(marshal(Basic.Ack(tag, False), 1) for tag in (*range(2, 20), 1, 20, 21))
    assert acks.merged(said) == said
    assert acks._ahead == {}
    anew = marshal(Confirm.SelectOk(), 1) + b"".join(marshal(Basic.Ack(tag, False), 1) for tag in (1, 2))
    assert [frame.name for _, frame in frames(acks.merged(anew))] == ["Confirm.SelectOk", "Basic.Ack"]


def test_what_never_becomes_a_frame_is_handed_on_at_the_end() -> None:
    """A broker that speaks another version says so in eight bytes that are no frame, and hangs up."""
    acks = Acks()
    assert acks.merged(b"AMQP\x00\x00\x09\x01") + acks.left() == b"AMQP\x00\x00\x09\x01"


async def test_the_broker_s_single_acks_are_read_as_few(amqp_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    came: list[int] = []
    merged = Acks.merged

    def counted(self: Acks, data: bytes) -> bytes:
        read = merged(self, data)
        came.append(len(data) - len(read))
        return read

    monkeypatch.setattr(Acks, "merged", counted)
    await apply(amqp_url, declare([]))
    publisher = Publisher(amqp_url, name="test acks")
    await publisher.start(wait=10)
    try:
        unheard = [Outgoing("core.a", b"{}", "application/json", mandatory=False) for _ in range(100)]
        for _ in range(5):
            assert await publisher.publish_all(unheard) == [None] * 100
    finally:
        await publisher.stop()
    assert sum(came) > 0


async def test_it_is_read_over_tls_as_well(tmp_path: Path) -> None:
    said = marshal(Confirm.SelectOk(), 1) + b"".join(marshal(Basic.Ack(tag, False), 1) for tag in (1, 2, 3))

    async def speak(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(said)
        await writer.drain()
        writer.close()

    certificate = _certificate(tmp_path)
    here = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    here.load_cert_chain(certificate)
    trusted = ssl.create_default_context(cafile=str(certificate))
    server = await asyncio.start_server(speak, "127.0.0.1", 0, ssl=here)
    async with server:
        port = server.sockets[0].getsockname()[1]

        async def get_context() -> ssl.SSLContext:
            return trusted

        reader, writer = await Transport().create(
            URL(f"amqps://127.0.0.1:{port}"), ssl_context_provider=SimpleNamespace(get_context=get_context)
        )
        read = await reader.read()
        writer.close()
    assert [frame.name for _, frame in frames(read)] == ["Confirm.SelectOk", "Basic.Ack"]


def _certificate(folder: Path) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = folder / "both.pem"
    file.write_bytes(
        certificate.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return file
