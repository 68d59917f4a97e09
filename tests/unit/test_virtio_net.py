"""The network card, driven as a guest drives it, with a socket pair for the host's side."""

from __future__ import annotations

import os
import select
import socket
import struct
import time

import pytest
from virtio_driver import Driver

from pyvmm.devices.virtio import features as f
from pyvmm.devices.virtio import net_features as nf
from pyvmm.devices.virtio.net import NetDevice
from pyvmm.devices.virtio.stream import Stream
from pyvmm.errors import HostError, UsageError
from pyvmm.machine.attachments.net import Net

MAC = bytes.fromhex("525400abcdef")
HEADER = bytes(12)
RX, TX, CTRL = 0, 1, 2
PLAIN = ~nf.MRG_RXBUF


def ethernet(payload: bytes) -> bytes:
    return b"\xff" * 6 + MAC + b"\x88\xb5" + payload


class Peer:
    """The other end of the stream: frames with their lengths."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        connection.settimeout(5)
        self.pending = b""

    def send(self, *frames: bytes) -> None:
        self.socket.sendall(b"".join(len(frame).to_bytes(4, "big") + frame for frame in frames))

    def exactly(self, size: int) -> bytes:
        while len(self.pending) < size:
            data = self.socket.recv(1 << 20)
            assert data, "the device has closed the connection"
            self.pending += data
        data, self.pending = self.pending[:size], self.pending[size:]
        return data

    def receive(self) -> bytes:
        return self.exactly(int.from_bytes(self.exactly(4), "big"))

    def silent(self) -> bool:
        return not self.pending and not select.select([self.socket], [], [], 0.1)[0]


class Rig:
    def __init__(self, features: int | None = None, **settings) -> None:
        ours, theirs = socket.socketpair()
        self.peer = Peer(theirs)
        self.said: list[str] = []
        self.device = NetDevice("net0", Stream(ours), MAC, say=self.said.append, **settings)
        self.driver = Driver(self.device, features=features)

    def buffers(self, *sizes: int, kick: bool = True) -> list[int]:
        tokens = [self.driver.queue(RX).add([], [size]) for size in sizes]
        if kick:
            self.driver.kick(RX)
        return tokens

    def transmit(self, *pieces: bytes, kick: bool = True) -> int:
        token = self.driver.queue(TX).add(list(pieces), [])
        if kick:
            self.driver.kick(TX)
        return token

    def close(self) -> None:
        self.driver.close()
        self.peer.socket.close()


@pytest.fixture
def make():
    rigs = []

    def one(**settings) -> Rig:
        rigs.append(Rig(**settings))
        return rigs[-1]

    yield one
    for rig in rigs:
        rig.close()


@pytest.fixture
def rig(make) -> Rig:
    return make()


def until(condition, timeout: float = 5) -> bool:
    limit = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > limit:
            return False
        time.sleep(0.002)
    return True


# -- what the driver sees ---------------------------------------------------------------------------------


def test_identity_and_configuration(make):
    rig = make(mtu=1400)
    assert rig.driver.read(0x008) == 1
    assert rig.driver.config(0, 6) == MAC
    assert struct.unpack("<HHH", rig.driver.config(6, 6)) == (1, 1, 1400)
    offered = rig.driver.offered()
    for bit in (
        nf.MAC,
        nf.MTU,
        nf.STATUS,
        nf.MRG_RXBUF,
        nf.CTRL_VQ,
        f.EVENT_IDX,
        f.INDIRECT_DESC,
        f.VERSION_1,
    ):
        assert offered & bit, hex(bit)
    # The other end knows no headers, so all checksums and segments are the guest's own business.
    for bit in (nf.CSUM, nf.GUEST_CSUM, nf.HOST_TSO4, nf.GUEST_TSO4):
        assert not offered & bit, hex(bit)


def test_no_mtu_no_feature(rig):
    assert not rig.driver.offered() & nf.MTU


# -- reception --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("features", [None, PLAIN, ~f.EVENT_IDX])
def test_a_frame_arrives_behind_a_header(make, features):
    rig = make(features=features)
    (token,) = rig.buffers(1526)
    frame = ethernet(b"hello" * 10)
    rig.peer.send(frame)
    assert rig.driver.wait(RX) == [(token, 12 + len(frame))]
    (data,) = rig.driver.written(token)
    assert data[:12] == bytes(10) + b"\x01\x00"
    assert data[12 : 12 + len(frame)] == frame
    assert set(data[12 + len(frame) :]) == {0xEE}, "bytes behind the frame were written"


def test_header_in_a_buffer_of_its_own(make):
    rig = make(features=PLAIN)
    token = rig.driver.queue(RX).add([], [5, 7, 20, 1500])
    rig.driver.kick(RX)
    frame = ethernet(bytes(range(100)))
    rig.peer.send(frame)
    assert rig.driver.wait(RX) == [(token, 12 + len(frame))]
    data = b"".join(rig.driver.written(token))
    assert data[: 12 + len(frame)] == bytes(10) + b"\x01\x00" + frame


def test_a_frame_takes_as_many_buffers_as_it_needs(rig):
    tokens = rig.buffers(*[100] * 8)
    frame = ethernet(os.urandom(300))
    small = ethernet(b"after it")
    rig.peer.send(frame, small)
    used = rig.driver.wait_all(RX, 5)
    assert used == [*((token, 100) for token in tokens[:3]), (tokens[3], 26), (tokens[4], 12 + len(small))]
    data = b"".join(rig.driver.written(token)[0] for token in tokens[:4])
    assert data[:12] == bytes(10) + b"\x04\x00"
    assert data[12:326] == frame
    after = rig.driver.written(tokens[4])[0]
    assert after[:34] == bytes(10) + b"\x01\x00" + small, "num_buffers of one frame told of another"


def test_the_largest_frame(rig):
    tokens = rig.buffers(*[1536] * 64)
    frame = ethernet(os.urandom(65535))
    rig.peer.send(frame)
    count = -(-(12 + len(frame)) // 1536)
    used = rig.driver.wait_all(RX, count)
    assert [token for token, _ in used] == tokens[:count]
    data = b"".join(rig.driver.written(token)[0] for token in tokens[:count])
    assert data[10] == count
    assert data[12 : 12 + len(frame)] == frame


def test_a_frame_waits_for_more_buffers(rig):
    """Too large for the buffers that are there: it stays until the driver adds some, and nothing overtakes it."""
    first = rig.buffers(100, 100)
    frame, small = ethernet(os.urandom(500)), ethernet(b"later")
    rig.peer.send(frame, small)
    assert rig.driver.wait(RX, timeout=0.2) == []
    more = rig.buffers(100)
    assert rig.driver.wait(RX, timeout=0.2) == []
    more += rig.buffers(150, 200, 1536)
    used = rig.driver.wait_all(RX, 6)
    assert [token for token, _ in used] == [*first, *more]
    data = b"".join(rig.driver.written(token)[0] for token in [*first, *more[:-1]])
    assert data[10] == 5 and data[12 : 12 + len(frame)] == frame
    assert rig.driver.written(more[-1])[0][12 : 12 + len(small)] == small
    assert rig.device.statistics()["rx_dropped"] == 0


def test_a_frame_larger_than_the_whole_ring_is_dropped(make):
    rig = make()
    rig.driver.negotiate(sizes=(4, None, None))
    rig.buffers(100, 100, 100, 100)
    rig.peer.send(ethernet(bytes(1000)))
    assert until(lambda: rig.device.statistics()["rx_dropped"] == 1)
    rig.peer.send(small := ethernet(b"fits"))
    ((token, size),) = rig.driver.wait(RX)
    assert size == 12 + len(small) and rig.driver.written(token)[0][12:size] == small


def test_a_buffer_too_small_for_a_frame_drops_it_and_is_used_for_the_next(make):
    rig = make(features=PLAIN)
    (token,) = rig.buffers(60)
    rig.peer.send(ethernet(bytes(100)), small := ethernet(b"x"))
    assert rig.driver.wait(RX) == [(token, 12 + len(small))]
    counts = rig.device.statistics()
    assert (counts["rx_packets"], counts["rx_dropped"], counts["rx_bytes"]) == (1, 1, len(small))


def test_without_buffers_frames_wait_and_the_worker_sleeps(rig):
    rig.peer.send(*[frame := ethernet(b"early bird")] * 3)
    time.sleep(0.05)
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.1, "it looks all the time"
    rig.buffers(200)
    assert len(rig.driver.wait(RX)) == 1
    assert rig.driver.wait(RX, timeout=0.1) == []
    rig.buffers(200, 200)
    assert len(rig.driver.wait_all(RX, 2)) == 2
    assert rig.device.statistics()["rx_bytes"] == 3 * len(frame)


def test_many_frames_make_few_interrupts_and_no_kicks(rig):
    rig.buffers(*[200] * 200)
    queue = rig.driver.queue(RX)
    queue.no_interrupts()
    time.sleep(0.05)
    rig.driver.interrupts()
    queue.ask_for_interrupt()
    rig.peer.send(*[ethernet(bytes(40))] * 150)
    assert until(lambda: queue.used_idx == 150)
    assert 1 <= rig.driver.interrupts() <= 3
    queue.collect()
    tokens = [queue.add([], [200]) for _ in range(50)]
    assert not rig.driver.kick(RX), "buffers are there: no need for a kick"
    rig.peer.send(*[ethernet(bytes(40))] * 100)
    done = rig.driver.wait_all(RX, 100)
    assert [token for token, _ in done[50:]] == tokens


def test_frames_in_pieces(rig):
    """A stream cuts where it likes."""
    tokens = rig.buffers(*[2000] * 4)
    frames = [ethernet(os.urandom(size)) for size in (20, 600, 1400)]
    stream = b"".join(len(frame).to_bytes(4, "big") + frame for frame in frames)
    for at in range(0, len(stream), 97):
        rig.peer.socket.sendall(stream[at : at + 97])
        time.sleep(0.001)
    used = rig.driver.wait_all(RX, 3)
    assert used == [(token, 12 + len(frame)) for token, frame in zip(tokens, frames, strict=False)]
    for token, frame in zip(tokens, frames, strict=False):
        assert rig.driver.written(token)[0][12 : 12 + len(frame)] == frame


def test_a_long_stream_of_all_sizes(rig):
    """The buffer of the stream wraps several times; nothing is lost, torn or out of order."""
    sizes = [(at * 7919) % 9000 + 14 for at in range(400)]
    frames = [struct.pack(">I", at) * (size // 4 + 1) for at, size in enumerate(sizes)]
    frames = [frame[:size] for frame, size in zip(frames, sizes, strict=True)]
    queue = rig.driver.queue(RX)
    rig.buffers(*[1600] * 200)
    received: list[bytes] = []
    left, parts = 0, b""

    def collect(used):
        nonlocal left, parts
        for token, size in used:
            data = rig.driver.written(token)[0][:size]
            if not left:
                left = struct.unpack("<H", data[10:12])[0]
                data = data[12:]
            parts += data
            left -= 1
            if not left:
                received.append(parts)
                parts = b""
            queue.add([], [1600])
        rig.driver.kick(RX)

    rig.peer.socket.setblocking(False)
    stream = memoryview(b"".join(len(frame).to_bytes(4, "big") + frame for frame in frames))
    limit = time.monotonic() + 20
    while len(received) < len(frames) and time.monotonic() < limit:
        try:
            stream = stream[rig.peer.socket.send(stream) :] if stream else stream
        except BlockingIOError:
            pass
        collect(rig.driver.wait(RX, timeout=0.05))
    assert received == frames


@pytest.mark.parametrize("length", [0, 13, 70000, 0xFFFFFFFF])
def test_a_length_that_no_frame_has_takes_the_link_down(rig, length):
    rig.buffers(200)
    rig.peer.socket.sendall(length.to_bytes(4, "big") + bytes(100))
    assert until(lambda: rig.driver.config(6, 2) == b"\0\0")
    assert rig.said == [f"note: net0: stream: a frame of {length} bytes; the link is down"]


def test_the_other_end_closing_takes_the_link_down(rig):
    generation = rig.driver.read(0x0FC)
    rig.buffers(200)
    rig.peer.socket.close()
    assert until(lambda: rig.driver.config(6, 2) == b"\0\0")
    assert rig.driver.read(0x0FC) != generation
    assert rig.driver.acknowledge() & f.CONFIG_CHANGE
    assert rig.said == ["note: net0: stream: it has closed the connection; the link is down"]
    token = rig.transmit(HEADER + ethernet(b"to nobody"))
    assert rig.driver.wait(TX) == [(token, 0)]
    assert rig.device.statistics()["tx_dropped"] == 1
    calls = []
    receive = rig.device.backend.receive
    rig.device.backend.receive = lambda views: calls.append(1) or receive(views)
    time.sleep(0.1)
    assert calls == [], "it looks at the closed socket again and again"
    assert not rig.driver.needs_reset
    rig.driver.negotiate()
    rig.buffers(200)
    assert until(lambda: calls)
    assert rig.driver.config(6, 2) == b"\0\0"
    time.sleep(0.05)
    assert len(rig.said) == 1, "it is said once"


def test_a_receive_buffer_without_room_for_the_header_breaks_the_rules(rig):
    rig.buffers(11)
    assert until(lambda: rig.driver.needs_reset)
    assert "a buffer of 11 bytes cannot hold a frame's header" in rig.driver.notes[0]


def test_a_receive_buffer_in_more_pieces_than_one_system_call_fills(rig):
    rig.driver.queue(RX).add([], [64] * 513, indirect=True)
    rig.driver.kick(RX)
    assert until(lambda: rig.driver.needs_reset)
    assert "513 descriptors for a frame, over 512" in rig.driver.notes[0]


# -- transmission -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [0, 5, 12, 14, 30])
@pytest.mark.parametrize("indirect", [False, True])
def test_a_frame_goes_out_without_its_header(rig, cut, indirect):
    frame = ethernet(os.urandom(300))
    whole = HEADER + frame
    pieces = [whole[:cut], whole[cut:]] if cut else [whole]
    token = rig.driver.queue(TX).add(pieces, [], indirect)
    rig.driver.kick(TX)
    assert rig.peer.receive() == frame
    assert rig.driver.wait(TX) == [(token, 0)]


def test_a_header_in_pieces(rig):
    frame = ethernet(b"body" * 20)
    rig.transmit(HEADER[:4], HEADER[4:11], HEADER[11:] + frame[:9], frame[9:])
    assert rig.peer.receive() == frame


def test_frames_go_out_in_order_and_are_counted(rig):
    frames = [ethernet(struct.pack(">I", at) * (at + 1)) for at in range(100)]
    for frame in frames:
        rig.transmit(HEADER + frame, kick=False)
    rig.driver.kick(TX)
    assert [rig.peer.receive() for _ in frames] == frames
    assert len(rig.driver.wait_all(TX, 100)) == 100
    counts = rig.device.statistics()
    assert (counts["tx_packets"], counts["tx_dropped"]) == (100, 0)
    assert counts["tx_bytes"] == sum(map(len, frames))


@pytest.mark.parametrize("features", [None, ~f.EVENT_IDX])
def test_one_frame_after_another(make, features):
    """Each is kicked only if the device has asked for that."""
    rig = make(features=features)
    for at in range(20):
        token = rig.transmit(HEADER + ethernet(bytes((at,))))
        assert rig.peer.receive() == ethernet(bytes((at,)))
        assert rig.driver.wait(TX) == [(token, 0)]


def test_a_long_queue_is_sent_in_turns(rig, monkeypatch):
    monkeypatch.setattr("pyvmm.devices.virtio.net_queues._TURN", 2)
    for _ in range(200):
        rig.transmit(HEADER + ethernet(b"x"), kick=False)
    rig.driver.kick(TX)
    assert len(rig.driver.wait_all(TX, 200)) == 200
    rig.buffers(*[100] * 50)
    rig.peer.send(*[ethernet(b"y")] * 50)
    assert len(rig.driver.wait_all(RX, 50)) == 50


class Reluctant:
    """A socket that takes ``cut`` bytes, then nothing once, then all."""

    def __init__(self, cut: int) -> None:
        self.left: list[int] = [cut, 0]
        self.sent = b""

    def sendmsg(self, vectors, *_) -> int:
        data = b"".join(vectors)
        most = self.left.pop(0) if self.left else len(data)
        if not most:
            raise BlockingIOError
        self.sent += data[:most]
        return min(most, len(data))

    def setblocking(self, blocking: bool) -> None:
        assert not blocking

    def fileno(self) -> int:
        return -1


def test_wherever_a_socket_stops_taking_bytes():
    frames = [ethernet(bytes((at,)) * (5 * at)) for at in range(4)]
    whole = b"".join(len(frame).to_bytes(4, "big") + frame for frame in frames)
    for cut in range(len(whole) + 1):
        connection = Reluctant(cut)
        stream = Stream(connection)
        left = [[memoryview(HEADER), memoryview(frame)] for frame in frames]
        for _ in range(5):
            taken, dropped = stream.send(left)
            assert not dropped
            del left[:taken]
            if not left and not stream.backlog:
                break
        assert connection.sent == whole, cut


@pytest.mark.parametrize("frame", [b"\0", HEADER, HEADER + bytes(13), HEADER + bytes(65535 + 19)])
def test_what_is_no_frame_is_dropped(rig, frame):
    bad = rig.transmit(frame, kick=False)
    good = rig.transmit(HEADER + ethernet(b"good"))
    assert [token for token, _ in rig.driver.wait_all(TX, 2)] == [bad, good]
    assert rig.peer.receive() == ethernet(b"good")
    assert rig.peer.silent()
    assert rig.device.statistics()["tx_dropped"] == 1


def test_a_full_socket_holds_frames_back_without_a_loss_or_a_loop(rig):
    frames = [ethernet(struct.pack(">I", at) * 2500) for at in range(120)]
    for frame in frames:
        rig.transmit(HEADER + frame, kick=False)
    rig.driver.kick(TX)
    assert not until(lambda: rig.driver.queue(TX).used_idx == len(frames), timeout=0.2), (
        "nothing was held back"
    )
    before = time.process_time()
    time.sleep(0.2)
    assert time.process_time() - before < 0.1, "it tries all the time"
    assert [rig.peer.receive() for _ in frames] == frames
    assert len(rig.driver.wait_all(TX, len(frames))) == len(frames)
    assert rig.device.statistics()["tx_dropped"] == 0


def test_reception_goes_on_while_transmission_is_held_back(rig):
    for _ in range(120):
        rig.transmit(HEADER + ethernet(bytes(10000)), kick=False)
    rig.driver.kick(TX)
    time.sleep(0.1)
    rig.buffers(200)
    rig.peer.send(ethernet(b"hello"))
    assert len(rig.driver.wait(RX)) == 1


def test_a_broken_chain_fails_the_device_and_a_reset_heals_it(rig):
    queue = rig.driver.queue(TX)
    queue.set_descriptor(0, 1 << 40, 100)
    queue.publish(0)
    rig.driver.kick(TX)
    assert until(lambda: rig.driver.needs_reset)
    rig.driver.negotiate()
    rig.transmit(HEADER + ethernet(b"again"))
    assert rig.peer.receive() == ethernet(b"again")


# -- resets -----------------------------------------------------------------------------------------------


def test_after_a_reset_no_buffer_of_before_is_touched(rig):
    rig.buffers(*[1000] * 10)
    time.sleep(0.05)
    rig.driver.reset()
    rig.driver.memory.fill(0x1000, 0x100000, 0x55)
    rig.peer.send(ethernet(b"late"))
    time.sleep(0.1)
    assert rig.driver.memory.read(0x1000, 0x100000) == b"\x55" * 0x100000
    rig.driver.negotiate()
    rig.buffers(1000)
    ((token, size),) = rig.driver.wait(RX)
    assert rig.driver.written(token)[0][12:size] == ethernet(b"late")


def test_a_frame_cut_by_a_reset_does_not_tear_the_stream(rig):
    for _ in range(120):
        rig.transmit(HEADER + ethernet(b"a" * 10000), kick=False)
    rig.driver.kick(TX)
    time.sleep(0.1)
    rig.driver.negotiate()
    rig.transmit(HEADER + ethernet(b"b" * 100))
    frame = rig.peer.receive()
    while frame == ethernet(b"a" * 10000):
        frame = rig.peer.receive()
    assert frame == ethernet(b"b" * 100)


# -- commands ---------------------------------------------------------------------------------------------


def command(rig: Rig, kind: int, number: int, data: bytes = b"") -> int:
    pieces = [bytes((kind, number)), data] if data else [bytes((kind, number))]
    return rig.driver.request(CTRL, pieces, [1])[0][0]


def test_commands(rig):
    assert command(rig, 0, 0, b"\1") == nf.OK
    assert command(rig, 0, 1, b"\0") == nf.OK
    assert command(rig, 0, 2, b"\0") == nf.ERR, "VIRTIO_NET_F_CTRL_RX_EXTRA is not offered"
    assert command(rig, 2, 0, b"\1\0") == nf.ERR, "there are no VLAN filters"
    assert command(rig, 4, 0, b"\2\0") == nf.ERR, "there is one pair of queues"
    assert command(rig, 1, 0, bytes(8)) == nf.OK
    generation = rig.driver.read(0x0FC)
    assert command(rig, 1, 1, b"\x52\x54\0\1\2\3") == nf.OK
    assert rig.driver.config(0, 6) == b"\x52\x54\0\1\2\3", "before the command is given back"
    assert rig.driver.read(0x0FC) != generation
    assert command(rig, 1, 1, b"\x53\x54\0\1\2\3") == nf.ERR, "a multicast address"
    assert command(rig, 1, 1, b"\x52\x54\0\1\2") == nf.ERR
    rig.driver.negotiate()
    assert rig.driver.config(0, 6) == MAC, "the next driver finds the card's own address"


@pytest.mark.parametrize(("readable", "writable"), [([b"\0"], [1]), ([b"\0\0\1"], []), ([], [1])])
def test_what_is_no_command_breaks_the_rules(rig, readable, writable):
    rig.driver.queue(CTRL).add(readable, writable)
    rig.driver.kick(CTRL)
    assert until(lambda: rig.driver.needs_reset)


# -- what the user writes ---------------------------------------------------------------------------------


def test_options():
    user = Net.parse("user,forward=tcp:8080:80,forward=udp:5353:53,mtu=1400")
    assert (user.mode, user.tap, user.mtu) == ("user", None, 1400)
    assert user.forward == ("tcp:8080:80", "udp:5353:53")
    tap = Net.parse("tap=tap0,mac=52:54:00:12:34:56,vhost=off")
    assert (tap.mode, tap.tap, tap.vhost) == (None, "tap0", "off")
    assert Net.from_table(tap.to_table()).to_table() == tap.to_table()
    assert user.to_table() == {
        "mode": "user", "mtu": 1400, "forward": ["tcp:8080:80", "udp:5353:53"],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "neither user nor tap"),
        ("user,tap=tap0", "both user and tap"),
        ("passt", "mode=passt: unknown"),
        ("tap=", "neither user nor tap"),
        ("tap=a/b", "tap=a/b: not the name of an interface"),
        ("tap=sixteen_letters_", "not the name"),
        ("tap=tap0,mac=52:54:00:12:34", "not an address"),
        ("tap=tap0,mac=01:54:00:12:34:56", "multicast"),
        ("tap=tap0,mac=00:00:00:00:00:00", "nor none"),
        ("tap=tap0,mtu=67", "mtu=67"),
        ("tap=tap0,mtu=65521", "mtu=65521"),
        ("tap=tap0,mtu=big", "mtu"),
        ("tap=tap0,forward=tcp:1:2", "only --net user forwards ports"),
        ("user,vhost=on", "only with tap"),
        ("tap=tap0,vhost=maybe", "vhost=maybe: unknown"),
        ("user,forward=tcp:x:80", "not a port to forward"),
        ("user,forward=tcp:80:1,forward=tcp:80:2", "port 80 is forwarded already"),
        ("user,foward=tcp:80:1", "perhaps you mean 'forward'"),
    ],
)
def test_options_that_make_no_sense(text, complaint):
    with pytest.raises(UsageError) as error:
        Net.parse(text)
    assert complaint in error.value.message
    assert error.value.hint and "\n" not in error.value.message


def test_made_up_addresses_stay_and_differ():
    addresses = [Net.parse(text)._address(name) for text, name in (
        ("user", "net0"), ("user", "net1"), ("tap=tap0", "net0"), ("tap=tap1", "net0"),
    )]  # fmt: skip
    assert len(set(addresses)) == 4
    assert addresses[0] == Net.parse("user")._address("net0")
    for address in addresses:
        assert len(address) == 6 and address[0] & 3 == 2, "not an address administered locally"
    assert Net.parse("user,mac=52:54:00:00:00:01")._address("net0") == b"\x52\x54\0\0\0\1"


def test_passt_missing(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HostError) as error:
        Net.parse("user").check()
    assert "passt" in error.value.message and "install" in error.value.hint
