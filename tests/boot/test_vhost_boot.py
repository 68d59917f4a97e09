"""Devices whose data never passes through pyvmm, under a stock kernel's drivers: shared directories and vsock.

One boot has them all; the other ends of the sockets are in a program beside pyvmm, where KVM is real.
"""

# ruff: noqa: F401, F811  (fixtures)
from __future__ import annotations

import json
import os
from pathlib import Path

import lab_programs
import pytest
from conftest import cannot
from guest_initrd import initrd
from lab_boot import Boot, Host, check_device_exits, kernel, lab, platform

pytestmark = [pytest.mark.boot, pytest.mark.timeout(900)]

CID, GUEST_PORT, HOST_PORT = 4242, 1024, 7

#: The guest's program: "serve PORT N" echoes N connections, "call PORT TEXT" asks the host and prints the answer.
VSOCK_PROGRAM = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include <linux/vm_sockets.h>

static char buffer[65536];

int main(int argc, char **argv)
{
    struct sockaddr_vm address = { .svm_family = AF_VSOCK, .svm_port = atoi(argv[2]) };
    int fd = socket(AF_VSOCK, SOCK_STREAM, 0);
    ssize_t size;
    if (argc != 4 || fd < 0)
        return perror("socket"), 1;
    if (strcmp(argv[1], "call") == 0) {
        address.svm_cid = VMADDR_CID_HOST;
        if (connect(fd, (struct sockaddr *)&address, sizeof address))
            return perror("connect"), 1;
        if (write(fd, argv[3], strlen(argv[3])) < 0 || shutdown(fd, SHUT_WR))
            return perror("write"), 1;
        while ((size = read(fd, buffer, sizeof buffer)) > 0)
            fwrite(buffer, 1, size, stdout);
        return 0;
    }
    address.svm_cid = VMADDR_CID_ANY;
    if (bind(fd, (struct sockaddr *)&address, sizeof address) || listen(fd, 8))
        return perror("bind"), 1;
    for (int left = atoi(argv[3]); left > 0; left--) {
        int connection = accept(fd, NULL, NULL);
        while ((size = read(connection, buffer, sizeof buffer)) > 0)
            for (ssize_t done = 0; done < size;) {
                ssize_t now = write(connection, buffer + done, size - done);
                if (now < 0)
                    return perror("write"), 1;
                done += now;
            }
        close(connection);
    }
    return 0;
}
"""

SCRIPT = f"""\
mkdir /data /fixed
mount -t virtiofs data /data || exit 8
mount -t virtiofs fixed /fixed || exit 9
cat /data/hello
echo "from the guest" > /data/answer
mkdir /data/folder && mv /data/answer /data/folder/
dd if=/data/large of=/data/copy bs=1M 2>/dev/null
cat /fixed/hello
touch /fixed/made 2>&1
umount /data
/vsock serve {GUEST_PORT} 2
/vsock call {HOST_PORT} "a question"
/vsock call 9999 "nobody" 2>&1
"""

#: Runs pyvmm with the rest of its arguments beside it and, when that has ended, says on standard error what it saw.
BESIDE = r"""
import json, os, socket, subprocess, sys, threading, time

cid, guest_port, host_port, folder = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
seen = {"large": os.urandom(1 << 20).hex()}
for name in ("data", "fixed"):
    os.makedirs(f"{folder}/{name}", exist_ok=True)
    with open(f"{folder}/{name}/hello", "w") as file:
        file.write(f"{name} from the host\n")
with open(f"{folder}/data/large", "w") as file:
    file.write(seen["large"])
deadline = time.monotonic() + 150
path = f"{folder}/vm"


def program_of_the_host():
    with socket.socket(socket.AF_UNIX) as listener:
        try:
            os.unlink(f"{path}_{host_port}")
        except OSError:
            pass
        listener.bind(f"{path}_{host_port}")
        listener.listen(1)
        connection, _ = listener.accept()
        with connection:
            question = b""
            while part := connection.recv(4096):
                question += part
            seen["question"] = question.decode()
            connection.sendall(b"an answer to " + question + b"\n")


def echoed(sock, data):
    sender = threading.Thread(target=lambda: (sock.sendall(data), sock.shutdown(socket.SHUT_WR)))
    sender.start()
    back = b""
    while part := sock.recv(1 << 16):
        back += part
    sender.join()
    return back == data


def direct():
    sock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    sock.connect((cid, guest_port))
    sock.settimeout(60)
    with sock:
        return echoed(sock, os.urandom(1 << 20))


def bridged():
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(path)
    sock.settimeout(60)
    with sock:
        sock.sendall(b"CONNECT %d\n" % guest_port)
        line = b""
        while not line.endswith(b"\n"):
            part = sock.recv(1)
            if not part:
                raise OSError("hung up")
            line += part
        seen["greeting"] = line.decode()
        return echoed(sock, os.urandom(1 << 18))


def ask():
    for name, how in (("direct", direct), ("bridged", bridged)):
        while name not in seen and time.monotonic() < deadline:
            try:
                seen[name] = how()
            except OSError as error:
                seen[f"{name} failed"] = str(error)
                time.sleep(0.2)


threading.Thread(target=program_of_the_host, daemon=True).start()
asking = threading.Thread(target=ask, daemon=True)
asking.start()
child = subprocess.Popen([sys.executable, "-m", "pyvmm", *sys.argv[5:]])
code = child.wait()
deadline = 0
asking.join(5)
seen = dict(seen)
for name in ("answer", "copy"):
    try:
        with open(f"{folder}/data/" + ("folder/answer" if name == "answer" else name)) as file:
            seen[name] = file.read()
    except OSError as error:
        seen[name] = str(error)
seen["same"] = seen.pop("copy") == seen.pop("large")
seen["fixed"] = sorted(os.listdir(f"{folder}/fixed"))
seen["socket left"] = os.path.exists(path)
time.sleep(0.5)
names = []
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        with open(f"/proc/{pid}/comm") as comm, open(f"/proc/{pid}/stat") as stat:
            if comm.read().strip() == "virtiofsd" and stat.read().rpartition(")")[2].split()[0] != "Z":
                names.append(pid)
    except OSError:
        pass
seen["virtiofsd left"] = names
print("beside: " + json.dumps(seen), file=sys.stderr)
sys.exit(code)
"""


@pytest.fixture(scope="module")
def seen(platform, lab, kernel, tmp_path_factory) -> tuple[Boot, dict]:
    """One boot with two shares and a vsock: how it ended, and what the program beside it saw."""
    folder: Path = tmp_path_factory.mktemp("vhost")
    daemon = lab_programs.find("virtiofsd", platform)
    if lab is None and not os.path.exists("/dev/vhost-vsock"):
        cannot("there is no /dev/vhost-vsock: modprobe vhost_vsock")
    vsock = platform.compile(VSOCK_PROGRAM, folder / "vsock")
    image, beside, place = folder / "initrd.cpio", folder / "beside.py", folder / "place"
    beside.write_text(BESIDE)
    wanted = ["virtio_mmio", "virtiofs", "vmw_vsock_virtio_transport"]
    image.write_bytes(initrd(wanted, SCRIPT, platform.kernel, files={"vsock": vsock}))
    done = Host(platform, lab, folder).run(
        beside, CID, GUEST_PORT, HOST_PORT, place,
        "boot", kernel, "--initrd", image, "--cmdline", platform.quiet, "--timeout", "170",
        "--share", f"{place}/data:data", "--share", f"{place}/fixed:fixed,ro",
        "--vsock", f"{CID},socket={place}/vm,port={HOST_PORT}",
        carry=daemon.carry, env=daemon.env,
    )  # fmt: skip
    lines = [line for line in done.error.splitlines() if line.startswith("beside: ")]
    return done, json.loads(lines[0].removeprefix("beside: ")) if lines else {}


def test_shared_directories(seen):
    done, beside = seen
    assert done.code == 0 and "script: exit" in done.console, done
    assert "data from the host" in done.console
    assert beside["answer"] == "from the guest\n"
    assert beside["same"], "2 MiB through the guest and back"
    assert "fixed from the host" in done.console
    assert "Read-only file system" in done.console
    assert beside["fixed"] == ["hello"]
    assert beside["virtiofsd left"] == []


def test_vsock(seen):
    done, beside = seen
    assert beside.get("direct") is True, (beside, done)
    assert beside.get("bridged") is True, (beside, done)
    assert beside["greeting"].startswith("OK ")
    assert beside["question"] == "a question"
    assert "an answer to a question" in done.console
    assert "connect: Connection reset by peer" in done.console, "a port that nobody has"
    assert not beside["socket left"]


def test_they_cost_few_exits(platform, seen):
    """Registers at the start, and nothing for a request."""
    done, _ = seen
    check_device_exits(platform, done, "share0", "share1", "vsock0")
    assert done.result["exits"]["unhandled"] == {}, done.result["exits"]
