"""Attachments: from an option's text or a file's table to values, and back; the command line's options of KINDS."""

from __future__ import annotations

import pytest

from pyvmm.cli import boot
from pyvmm.errors import UsageError
from pyvmm.machine import virtio
from pyvmm.machine.attachments import KINDS, attachment
from pyvmm.machine.attachments.base import Attachment, Key, size, split
from pyvmm.machine.attachments.rng import Rng
from pyvmm.machine.spec import MachineSpec


class Thing(Attachment):
    KIND = "thing"
    POSITIONAL = "path"
    KEYS = {
        "path": Key(str, required=True, help="where it is"),
        "ro": Key(bool, help="only to read"),
        "cache": Key(str, default="auto", choices=("auto", "never")),
        "num-queues": Key(int, default=1),
        "limit": Key(size),
        "forward": Key(str, many=True),
    }
    path: str
    ro: bool
    cache: str
    num_queues: int
    limit: int | None
    forward: tuple[str, ...]


def values(thing: Thing) -> tuple:
    return (thing.path, thing.ro, thing.cache, thing.num_queues, thing.limit, thing.forward)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.img", ("a.img", False, "auto", 1, None, ())),
        ("path=a.img", ("a.img", False, "auto", 1, None, ())),
        ("a.img,ro", ("a.img", True, "auto", 1, None, ())),
        ("ro", ("ro", False, "auto", 1, None, ())),  # the first word is the path, whatever it is
        ("a,,b.img,ro=off,cache=never", ("a,b.img", False, "never", 1, None, ())),
        ("k=v.img", ("k=v.img", False, "auto", 1, None, ())),
        ("a,num-queues=0x10,limit=64k", ("a", False, "auto", 16, 65536, ())),
        ("a,limit=4096", ("a", False, "auto", 1, 4096, ())),
        ("a,forward=x=1,forward=y,,z", ("a", False, "auto", 1, None, ("x=1", "y,z"))),
        ("a,ro=yes", ("a", True, "auto", 1, None, ())),
    ],
)
def test_parse(text, expected):
    assert values(Thing.parse(text)) == expected


@pytest.mark.parametrize(
    ("text", "words", "hint"),
    [
        ("", "thing without path", "give path: where it is"),
        ("path=a,roo", "thing has no 'roo'; perhaps you mean 'ro'", "path, ro, cache"),
        ("a,cach=auto", "thing has no 'cach'; perhaps you mean 'cache'", "path, ro, cache"),
        ("a,xyzzy=1", "thing has no 'xyzzy'", "path, ro, cache"),
        ("a,", "thing has no ''", "path, ro, cache"),
        ("a,cache=neve", "cache=neve: unknown; perhaps you mean 'never'", "choose one of auto, never"),
        ("a,cache", "cache has no value", "write cache=..."),
        ("a,ro=perhaps", "ro=perhaps: neither on nor off", "write ro or ro=off"),
        ("a,num-queues=many", "num-queues=many: not a number", "give num-queues a whole number"),
        ("a,limit=big", "limit=big: 'big' is not a size", "a number and a unit"),
        ("ro,path=b", "path is given twice", "give path once"),
        ("a,ro,ro", "ro is given twice", "give ro once"),
    ],
)
def test_parse_refuses(text, words, hint):
    with pytest.raises(UsageError) as caught:
        Thing.parse(text)
    assert words in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize("text", ["a", "a,ro,cache=never,num-queues=3,limit=1M,forward=x,forward=y", "a,,b"])
def test_tables_and_texts_say_the_same(text):
    thing = Thing.parse(text)
    table = thing.to_table()
    assert values(Thing.from_table(table)) == values(thing)
    assert "cache" not in Thing.parse("a").to_table(), "defaults are left out"


def test_from_table_in_the_types_of_a_file():
    thing = Thing.from_table({"path": "a", "limit": "2G", "forward": ["x", "y"], "num-queues": 2, "ro": True})
    assert values(thing) == ("a", True, "auto", 2, 2 << 30, ("x", "y"))
    assert Thing.from_table({"path": "a", "limit": 512}).limit == 512
    assert Thing.from_table({"path": "a", "forward": "x"}).forward == ("x",)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({}, "thing without path"),
        ({"path": 5}, "path: 5 is not text"),
        ({"path": "a", "ro": 1}, "ro: 1 is not true or false"),
        ({"path": "a", "num-queues": True}, "num-queues: True is not a whole number"),
        ({"path": "a", "num-queues": "2"}, "num-queues: '2' is not a whole number"),
        ({"path": "a", "limit": 1.5}, "limit: 1.5 is not a whole number"),
        ({"path": "a", "forward": [1]}, "forward: 1 is not text"),
        ({"path": "a", "forwards": []}, "thing has no 'forwards'; perhaps you mean 'forward'"),
        ({"path": "a", "cache": "x"}, "cache=x: unknown"),
    ],
)
def test_from_table_refuses(table, words):
    with pytest.raises(UsageError) as caught:
        Thing.from_table(table)
    assert words in caught.value.message


def test_split():
    assert split("a,b,,c,,,d,") == ["a", "b,c,", "d", ""]


def test_rng_has_no_settings():
    assert Rng.parse("").to_table() == {}
    with pytest.raises(UsageError, match="rng has no 'source'"):
        Rng.parse("source=x")


@pytest.mark.parametrize("kind", [kind for kind, *_ in KINDS])
def test_every_kind_has_its_module(kind):
    cls = attachment(kind)
    assert kind == cls.KIND
    assert cls.POSITIONAL is None or cls.POSITIONAL in cls.KEYS
    for name, key in cls.KEYS.items():
        assert key.help, f"{kind}: {name} without a help text"


def test_names_count_by_kind():
    assert virtio.names([Rng(), Thing(path="a"), Rng()]) == ["rng0", "thing0", "rng1"]


def test_options_keep_their_order(monkeypatch):
    seen: list[tuple[str, str]] = []

    class Fake:
        def __init__(self, kind: str) -> None:
            self.kind = kind

        def parse(self, text: str) -> str:
            seen.append((self.kind, text))
            return self.kind

    monkeypatch.setattr(boot, "attachment", Fake)
    words = ["kernel", "--rng", "--disk", "a,ro", "--net", "user", "--disk", "b"]
    spec: MachineSpec = boot._spec(boot.parser().parse_args(words))
    assert seen == [("rng", ""), ("disk", "a,ro"), ("net", "user"), ("disk", "b")]
    assert spec.attachments == ("rng", "disk", "net", "disk")


def test_without_devices_none_is_made():
    for known in (boot.parser(), boot.parser(["kernel"])):
        assert boot._spec(known.parse_args(["kernel"])).attachments == ()


def test_the_lab_gets_the_files_and_gives_back_what_the_guest_changed(monkeypatch, tmp_path):
    """Under the same names; the options are handed on as they are."""
    kernel, disk, extra = (tmp_path / name for name in ("kernel", "disk", "extra"))
    for path in (kernel, disk, extra):
        path.touch()

    class Carried(Thing):
        def files(self) -> list[str]:
            return [self.path, str(extra)]

        def changed_files(self) -> list[str]:
            return [self.path]

    seen: dict[str, object] = {}

    def run(lab, command, *, carry_in, carry_out, timeout, env) -> int:
        seen.update(command=command, carry_in=carry_in, carry_out=carry_out)
        return 7

    monkeypatch.setattr(boot, "attachment", lambda kind: Carried)
    monkeypatch.setattr("pyvmm.lab.foreground.run_in_foreground", run)
    words = [str(kernel), "--disk", f"{disk},ro", "--lab"]
    assert boot.main(words) == 7
    assert seen["command"] == ["pyvmm", "boot", *words[:-1], "--no-extract"]
    assert seen["carry_in"] == [str(kernel), str(disk), str(extra)]
    assert seen["carry_out"] == [str(disk)]
    disk.unlink()
    with pytest.raises(UsageError, match="no such file"):
        boot.main(words)


@pytest.mark.parametrize("words", [["--rng"], ["--disk=a"], ["-h"], ["--help"]])
def test_the_options_that_are_used_are_known(words):
    known = boot.parser(["kernel", *words]).format_usage()
    for _, option, _, _ in KINDS:
        used = words[0].partition("=")[0] in (option, "-h", "--help")
        assert (f"[{option} " in known or f"[{option}]" in known) == used, option


@pytest.mark.parametrize("text", ["foo", "tap", "foo,mtu=1500"])
def test_a_card_of_an_unknown_mode_is_told_of_both(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        attachment("net").parse(text)
    assert caught.value.hint == "write --net user or --net tap=NAME"
