"""From samples to the service: the batch format, the buffer on disk, the sender's patience."""

from __future__ import annotations

import errno
import gzip
import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resin.agent import wire
from resin.agent.agent import Agent, Sampler
from resin.agent.buffer import DiskBuffer
from resin.agent.sender import Outcome, Sender, ServiceTransport
from resin.config import Config, ConfigError
from resin.model import Entity, Sample

SAMPLES = [
    Sample(Entity("h", "a", 5, 1.25, "a/5@1"), 10.0, {"rss_bytes": 4096, "fds": 3}),
    Sample(Entity("h", "kernel"), 10.0, {"slab_bytes": 1.5}),
]


def decoded(body: bytes) -> wire.Batch:
    return wire.decode(wire.inflate(body, 1 << 20))


def test_batches_survive_the_way():
    batch = decoded(wire.encode("s1", 7, "h", SAMPLES))
    assert batch == wire.Batch("s1", 7, "h", tuple(SAMPLES))


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
rows = st.lists(values, min_size=5, max_size=7)
batches = st.fixed_dictionaries(
    {
        "v": st.sampled_from([1, 1, 1, 2, None, "1"]),
        "session": st.sampled_from(["s", "s", ""]) | values,
        "seq": st.integers() | values,
        "host": st.sampled_from(["h", "h"]) | values,
        "samples": st.lists(rows | st.sampled_from([["c", 1, 2.0, None, 3.0, {"m": 1}]]), max_size=3)
        | values,
    }
)


@given(
    st.binary(max_size=200)
    | batches.map(lambda b: json.dumps(b).encode())
    | values.map(lambda v: json.dumps(v).encode())
)
def test_hostile_batches_are_refused_with_words(data):
    try:
        batch = wire.decode(data)
    except wire.WireError as error:
        assert str(error)
        assert len(str(error)) < 500
    else:
        assert all(isinstance(v, float) for s in batch.samples for v in s.values.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"v": 2}, "batch version 2"),
        ({"session": "a/b"}, "session must be"),
        ({"seq": -1}, "seq must be"),
        ({"seq": True}, "seq must be"),
        ({"host": "x" * 300}, "host must be 1 to 256"),
        ({"host": "a\nb"}, "printable"),
        ({"samples": [[]]}, r"samples\[0\] must be"),
        ({"samples": [["c", "5", 1.0, None, 1.0, {}]]}, r"samples\[0\].pid"),
        ({"samples": [["c", 5, 1.0, None, -1.0, {}]]}, "negative time"),
        ({"samples": [["c", 5, 1.0, None, 1.0, {"Bad-Name": 1}]]}, "metric name"),
        ({"samples": [["c", 5, 1.0, None, 1.0, {"m": 10**400}]]}, "expected a number"),
        ({"samples": [["c", 5, 1.0, None, 1.0, {"m": None}]]}, "expected a number"),
        ({"samples": [["c", 5, 1.0, None, 1.0, {f"m{i}": 1 for i in range(65)}]]}, "at most 64 metrics"),
    ],
)
def test_refusals_name_what_is_wrong(change, message):
    good = {"v": 1, "session": "s", "seq": 0, "host": "h", "samples": []}
    wire.decode(json.dumps(good).encode())
    with pytest.raises(wire.WireError, match=message):
        wire.decode(json.dumps({**good, **change}).encode())


@pytest.mark.parametrize("text", [b'{"v": 1, "seq": NaN}', b"[" * 100_000, b"\xff\xfe", b""])
def test_no_json(text):
    with pytest.raises(wire.WireError, match="not valid JSON"):
        wire.decode(text)


def test_gzip_bombs_stop_at_the_bound():
    bomb = gzip.compress(b"0" * 50_000_000)
    with pytest.raises(wire.WireError, match="inflates to more than 1000000"):
        wire.inflate(bomb, 1_000_000)
    with pytest.raises(wire.WireError, match="not valid gzip"):
        wire.inflate(b"plain", 100)
    with pytest.raises(wire.WireError, match="cut off"):
        wire.inflate(gzip.compress(b"abc")[:-4], 100)


def test_buffer_keeps_order_over_restarts(tmp_path):
    buffer = DiskBuffer(str(tmp_path), 1 << 20)
    for text in (b"one", b"two", b"three"):
        buffer.put("s", text)
    again = DiskBuffer(str(tmp_path), 1 << 20)
    seen = []
    while found := again.oldest():
        seen.append(found[1])
        again.remove(found[0])
    assert seen == [b"one", b"two", b"three"]
    assert not os.listdir(tmp_path)


def test_buffer_drops_the_oldest_at_its_bound_and_counts(tmp_path):
    buffer = DiskBuffer(str(tmp_path), 100)
    for number in range(5):
        assert buffer.put("s", bytes([number]) * 30)
    assert buffer.dropped == 2
    assert buffer.oldest()[1] == b"\2" * 30
    assert buffer.size_bytes <= 100


def test_buffer_ignores_half_written_batches(tmp_path):
    (tmp_path / "00000000000000000001-s.batch.tmp").write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("not ours")
    buffer = DiskBuffer(str(tmp_path), 100)
    assert buffer.oldest() is None
    assert os.listdir(tmp_path) == ["notes.txt"]


def test_full_disk_costs_the_oldest_batches_only(tmp_path, monkeypatch):
    buffer = DiskBuffer(str(tmp_path), 1 << 20)
    buffer.put("s", b"old")
    real, failures = os.fsync, [OSError(errno.ENOSPC, "No space left on device")]

    def full_once(fd):
        if failures:
            raise failures.pop()
        real(fd)

    monkeypatch.setattr(os, "fsync", full_once)
    assert buffer.put("s", b"new")
    assert buffer.oldest()[1] == b"new"
    assert buffer.dropped == 1
    monkeypatch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    assert not buffer.put("s", b"newer")
    assert not [n for n in os.listdir(tmp_path) if n.endswith(".tmp")]


class Script:
    """A transport that answers from a list and remembers what it was sent."""

    def __init__(self, *outcomes):
        self.outcomes = list(outcomes)
        self.sent = []

    def send(self, body):
        self.sent.append(body)
        return self.outcomes.pop(0) if self.outcomes else Outcome("stored", answer={})


def filled(tmp_path, transport):
    buffer = DiskBuffer(str(tmp_path), 1 << 20)
    for text in (b"1", b"2", b"3"):
        buffer.put("s", text)
    return Sender(buffer, transport)


def test_sender_keeps_what_was_not_stored_and_waits(tmp_path):
    transport = Script(Outcome("stored", answer={}), Outcome("later", "down"))
    sender = filled(tmp_path, transport)
    sender.flush()
    assert transport.sent == [b"1", b"2"]
    assert len(sender.buffer) == 2
    assert sender.last_trouble == "down"
    sender.flush()  # too early: nothing is tried
    assert len(transport.sent) == 2
    sender.flush(force=True)
    assert transport.sent[2:] == [b"2", b"3"]
    assert sender.last_trouble is None


def test_refused_batches_do_not_block_the_rest(tmp_path):
    sender = filled(tmp_path, Script(Outcome("refused", "bad")))
    sender.flush()
    assert len(sender.buffer) == 0
    assert sender.refused == 1


def test_nobody_listening_is_no_error(tmp_path):
    import resin_servers

    transport = ServiceTransport(Config(service_url=f"http://127.0.0.1:{resin_servers.free_port()}"))
    assert transport.send(b"x").kind == "later"
    with pytest.raises(ConfigError, match="service_url"):
        ServiceTransport(Config(service_url="localhost:8790"))


def test_agent_keeps_batches_while_the_service_is_away(tmp_path):
    import resin_servers

    url = f"http://127.0.0.1:{resin_servers.free_port()}"
    config = Config(state_dir=str(tmp_path), service_url=url, host="h")
    sampler = Sampler(config, collectors=[])
    agent = Agent(config, sampler=sampler)
    for _ in range(3):
        agent.tick()
    assert len(agent.buffer) == 3
    agent.sender.transport = Script()
    agent.sender.flush(force=True)
    sent = [decoded(body) for body in agent.sender.transport.sent]
    assert [b.seq for b in sent] == [0, 1, 2]
    assert {b.session for b in sent} == {agent.session}
    assert sent[2].samples[-1].values["buffer_batches"] == 2


def test_second_agent_on_one_buffer_is_refused(tmp_path):
    config = Config(state_dir=str(tmp_path), host="h")
    first = Agent(config, sampler=Sampler(config, collectors=[]))
    with pytest.raises(RuntimeError, match="--state-dir"):
        Agent(config, sampler=Sampler(config, collectors=[]))
    os.close(first._lock_file)


def test_pace_keeps_the_budget():
    agent = Agent.__new__(Agent)
    agent.config, agent.stretch = Config(tick_s=10.0, cpu_budget=0.005), 1.0
    for _ in range(50):
        agent._pace(0.02)
    assert agent.stretch == 1.0
    for _ in range(100):
        agent._pace(0.2)
    assert 0.2 / (10.0 * agent.stretch) == pytest.approx(0.005, rel=0.05)
    for _ in range(200):
        agent._pace(100.0)
    assert agent.stretch == 12.0
