"""A machine in a file: every option and every key of an attachment has its place there, and nothing else has."""

from __future__ import annotations

import argparse
import json
import os
import string

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm.cli import boot
from pyvmm.errors import UsageError
from pyvmm.machine import file
from pyvmm.machine.attachments import KINDS, attachment
from pyvmm.machine.attachments.base import size
from pyvmm.machine.schema import schema

#: What is about the file itself, and what argparse has by itself.
NOT_OF_A_MACHINE = {"machine", "dump_machine", "machine_schema", "help"}


def options(*words: object) -> argparse.Namespace:
    return boot._options([str(word) for word in words])


def machine(found: argparse.Namespace) -> tuple[dict[str, object], list[tuple[str, dict[str, object]]]]:
    """All that the options say, comparable."""
    values = {
        key: value for key, value in vars(found).items() if key not in {*NOT_OF_A_MACHINE, "attachments"}
    }
    spec = boot._spec(found)
    values |= {name: getattr(spec, name) for name in ("memory", "cpus", "poison", "timeout")}
    return values, [(each.KIND, each.to_table()) for each in spec.attachments]


def dumped(found: argparse.Namespace) -> str:
    return file.dump(vars(found), boot._spec(found).attachments)


def write(folder, text: str) -> str:
    path = folder / "vm.toml"
    path.write_text(text)
    return str(path)


def refused(folder, text: str) -> UsageError:
    with pytest.raises(UsageError) as caught:
        options("--machine", write(folder, text))
    assert "\n" not in caught.value.message
    return caught.value


def test_every_option_has_a_key_and_every_key_an_option():
    actions = boot.parser()._actions
    kinds = {option for _, option, _, _ in KINDS}
    wanted = {
        action.dest
        for action in actions
        if action.dest not in NOT_OF_A_MACHINE and not kinds & set(action.option_strings)
    }
    assert wanted == {setting.dest for setting in file.SETTINGS.values()}
    names = {
        action.dest: (action.option_strings or [action.dest])[0].removeprefix("--")
        for action in actions[::-1]
    }
    for setting in file.SETTINGS.values():
        assert names[setting.dest] == setting.name, "an option and its key have one name"
    for action in actions:
        setting = next((each for each in file.SETTINGS.values() if each.dest == action.dest), None)
        if setting is not None:
            assert (setting.kind == "flag") == (action.nargs == 0), setting.name
            assert (setting.kind == "texts") == isinstance(action, argparse._AppendAction), setting.name
            assert list(setting.choices) == list(action.choices or ()), setting.name


def test_nothing_of_it_is_imported_by_a_plain_boot():
    """tomllib is for who uses a file."""
    import subprocess
    import sys

    code = "import sys; from pyvmm.cli import boot; boot._spec(boot._options(['k'])); print('tomllib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


EXAMPLE = """\
kernel = "images/vmlinux"      # the one built last
cmdline = "console=ttyS0 quiet"
initrd = "/boot/initrd"
memory = "1G"
cpus = 2
protocol = "pvh"
timeout = 2.5
expect = ["login:", "a # \\"b\\""]
console-log = "console.txt"
poison = 0xa5
kaslr = false
no-input = true

[[disk]]
path = "system.img"
overlay = "temporary"
serial = "x"

[[rng]]

[[disk]]
path = "nbd://server/image"
format = "qcow2"

[[net]]
mode = "user"
forward = ["tcp:2222:22", "udp:5000:5000"]

[[balloon]]
target = "64M"
"""


def test_the_example(tmp_path):
    found = options("--machine", write(tmp_path, EXAMPLE))
    spec = boot._spec(found)
    assert spec.kernel == str(tmp_path / "images/vmlinux")
    assert (spec.cmdline, spec.initrd) == ("console=ttyS0 quiet", "/boot/initrd")
    assert (spec.memory, spec.cpus, spec.protocol, spec.timeout) == (1 << 30, 2, "pvh", 2.5)
    assert spec.expect == ("login:", 'a # "b"')
    assert spec.console_log == str(tmp_path / "console.txt")
    assert (spec.poison, spec.kaslr, spec.interactive) == (0xA5, False, False)
    assert [(each.KIND, each.to_table()) for each in spec.attachments] == [
        ("disk", {"path": str(tmp_path / "system.img"), "overlay": "temporary", "serial": "x"}),
        ("rng", {}),
        ("disk", {"path": "nbd://server/image", "format": "qcow2"}),
        ("net", {"mode": "user", "forward": ["tcp:2222:22", "udp:5000:5000"]}),
        ("balloon", {"target": 64 << 20}),
    ]


def test_the_command_line_wins_and_attachments_add_up(tmp_path):
    path = write(tmp_path, EXAMPLE)
    found = options(
        "other", "--machine", path, "--memory", "2G", "--kaslr", "--rng", "--expect", "more", "--timeout", "9"
    )
    spec = boot._spec(found)
    assert (spec.kernel, spec.memory, spec.kaslr, spec.timeout) == ("other", 2 << 30, True, 9)
    assert spec.expect == ("login:", 'a # "b"', "more")
    assert [each.KIND for each in spec.attachments] == ["disk", "rng", "disk", "net", "balloon", "rng"]
    assert spec.cpus == 2, "what is not said again stays"


def test_what_the_command_line_excludes_is_left_out_of_the_file(tmp_path):
    path = write(tmp_path, EXAMPLE)
    assert boot._spec(options("--machine", path, "--verify")).require
    path = write(tmp_path, 'kernel = "k"\nverify = true\n')
    assert boot._spec(options("--machine", path, "--initrd", "mine")).initrd == "mine"


def test_a_kernel_is_needed(tmp_path):
    assert "no kernel" in refused(tmp_path, "cpus = 1\n").message
    with pytest.raises(UsageError, match="no kernel"):
        options("--memory", "1G")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('kernel = "k"\nmemroy = "1G"\n', ":2: unknown key 'memroy'; perhaps you mean 'memory'"),
        ('kernel = "k"\n\n[[dsk]]\npath = "x"\n', ":3: unknown key 'dsk'; perhaps you mean 'disk'"),
        ('[[disk]]\npath = "x"\n[[disk]]\npath = "y"\nserail = "z"\n',
         ":5: disk has no key 'serail'; perhaps you mean 'serial'"),
        ('[[rng]]\nfast = true\n', ":2: rng has no key 'fast'"),
        ("cpus = true\n", ":1: cpus is True, not a whole number"),
        ('cpus = "2"\n', ":1: cpus is '2', not a whole number"),
        ("memory = 1.5\n", ":1: memory is 1.5, not a size, as \"512M\" or a whole number of MiB"),
        ('memory = "much"\n', ":1: memory: 'much' is not a size"),
        ('timeout = "1"\n', ":1: timeout is '1', not a number"),
        ('verify = "yes"\n', ":1: verify is 'yes', not true or false"),
        ('expect = "login"\n', ":1: expect is 'login', not a list of texts"),
        ("expect = [1]\n", ":1: expect is [1], not a list of texts"),
        ("kernel = 1979-05-27\n", ", not text, a path"),
        ('protocol = "pv"\n', ":1: protocol = 'pv' is unknown; perhaps you mean 'pvh'"),
        ('[disk]\npath = "x"\n', ":1: disk is a table, not an array of tables"),
        ('[[disk]]\nro = true\n', ":1: disk without path"),
        ('[[disk]]\npath = "x"\nro = "yes"\n', ":3: disk: ro: 'yes' is not true or false"),
        ('[[disk]]\npath = ["x"]\n', ":2: disk: path is ['x'], not one value"),
        ('[[disk]]\npath = "x"\nformat = "rw"\n', ":3: disk: format=rw: unknown; perhaps you mean 'raw'"),
        ('[[disk]]\npath = "x"\nro = true\noverlay = "o"\n', ":1: disk"),
        ('[[net]]\nmode = "user"\nforward = "tcp:1:1"\n', ":3: net: forward is 'tcp:1:1', not a list"),
        ('[[net]]\nmode = "user"\nmtu = "1500"\n', ":3: net: mtu: '1500' is not a whole number"),
        ('kernel = "k"\ncpus = \n', ":2: invalid value"),
        ('kernel = "k', ":1: "),
        ('cpus = 1\ncpus = 2\n', ":2: cannot overwrite a value"),
    ],
)  # fmt: skip
def test_mistakes_are_said_with_their_place(tmp_path, text, message):
    error = refused(tmp_path, text)
    assert error.message.startswith(str(tmp_path / "vm.toml")), error.message
    assert message in error.message
    assert error.hint


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UsageError, match="No such file"):
        options("--machine", tmp_path / "absent")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="not text in UTF-8"):
        options("--machine", tmp_path / "binary")


def test_tables_may_be_written_inline(tmp_path):
    found = options(
        "--machine", write(tmp_path, 'kernel = "k"\ndisk = [{path = "/a"}, {path = "/b", ro = true}]\n')
    )
    assert machine(found)[1] == [("disk", {"path": "/a"}), ("disk", {"path": "/b", "ro": True})]


def test_a_text_that_looks_like_a_header_does_not_change_the_order(tmp_path):
    text = 'kernel = "k"\ncmdline = """\n[[rng]]\n"""\n[[disk]]\npath = "/a"\n[[rng]]\n'
    assert machine(options("--machine", write(tmp_path, text)))[1] == [("disk", {"path": "/a"}), ("rng", {})]


def test_dump_and_schema_commands(pyvmm, tmp_path):
    done = pyvmm("boot", "k", "--dump-machine", "--disk", "x.img,ro", "--memory", "64M")
    assert done.returncode == 0, done
    assert f'[[disk]]\npath = "{os.getcwd()}/x.img"\nro = true\n' in done.stdout.decode()
    again = pyvmm("boot", "--machine", write(tmp_path, done.stdout.decode()), "--dump-machine")
    assert again.stdout == done.stdout
    done = pyvmm("boot", "--machine-schema")
    assert done.returncode == 0 and json.loads(done.stdout) == schema()
    done = pyvmm("boot", "--machine", write(tmp_path, "cpsu = 1\n"))
    assert done.returncode == 125
    assert "vm.toml:1: unknown key 'cpsu'; perhaps you mean 'cpus'" in done.stderr and "hint: " in done.stderr


# Texts as a command line may have them; a path has no NUL and is not empty.
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
PATHS = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12
).map(lambda text: "/tmp/x" + text.replace("/", "_"))
SIZES = st.sampled_from(["64", "512M", "1G", "3 GiB", "70000k"])
VALUES = {
    "text": TEXTS, "path": PATHS, "size": SIZES, "texts": st.lists(TEXTS, max_size=3), "flag": st.booleans(),
    "int": st.integers(1, 255).flatmap(lambda number: st.sampled_from([str(number), hex(number)])),
    "number": st.floats(0.001, 1e12).map(str),
}  # fmt: skip

#: Texts of options, beside what test_every_key_of_every_kind makes; keys depend on each other.
ATTACHMENTS = [
    ("disk", "/a.img"), ("disk", "/a,,b.img,ro,serial=s 1,cache=unsafe"), ("disk", "/a.img,overlay"),
    ("disk", "/a.img,overlay=/o\\\"x"), ("disk", "nbd://host/x,format=qcow2"),
    ("net", "user,forward=tcp:1:2,forward=udp:3:4"),
    ("net", "tap=tap0,mac=52:54:00:12:34:56,mtu=9000,vhost=off"), ("console", "hvc"), ("console", "port=org.x,file=/f"),
    ("console", "port=a,socket=/s"), ("console", "port=b,control"),
    ("rng", ""), ("vsock", "3"), ("vsock", "4,socket=/v,port=1,port=2"),
    ("balloon", "64M"), ("balloon", ""), ("share", "/dir:tag,ro,sandbox=none"),
]  # fmt: skip


def test_the_examples_use_every_key():
    used: dict[str, set[str]] = {kind: set() for kind, *_ in KINDS}
    for kind, text in ATTACHMENTS:
        used[kind] |= set(attachment(kind).parse(text).to_table())
    assert used == {kind: set(attachment(kind).KEYS) for kind, *_ in KINDS}


@st.composite
def command_lines(draw: st.DrawFn) -> dict[str, object]:
    values: dict[str, object] = {"kernel": draw(PATHS)}
    for setting in file.SETTINGS.values():
        if setting.name == "kernel" or not draw(st.booleans()):
            continue
        values[setting.dest] = draw(
            st.sampled_from(setting.choices) if setting.choices else VALUES[setting.kind]
        )
    if values.get("verify"):
        values.pop("initrd", None), values.pop("expect", None)
    values["attachments"] = draw(st.lists(st.sampled_from(ATTACHMENTS), max_size=6)) or None
    return values


@settings(deadline=None, max_examples=60)
@given(command_lines())
def test_round_trip(tmp_path_factory, values):
    found = boot.parser().parse_args(["k"])
    vars(found).update(values)
    text = dumped(found)
    path = tmp_path_factory.getbasetemp() / "vm.toml"
    path.write_text(text)
    again = options("--machine", path)
    assert machine(again) == machine(found)
    assert dumped(again) == text
    import tomllib

    jsonschema.validate(tomllib.loads(text), schema())


def test_the_schema_is_one_and_knows_every_key():
    known = schema()
    jsonschema.Draft202012Validator.check_schema(known)
    assert set(known["properties"]) == {*file.SETTINGS, *(kind for kind, *_ in KINDS)}
    for kind, *_ in KINDS:
        keys = attachment(kind).KEYS
        item = known["properties"][kind]["items"]
        assert set(item["properties"]) == set(keys)
        assert set(item["required"]) == {name for name, key in keys.items() if key.required}
        for name, key in keys.items():
            assert item["properties"][name]["description"] == key.help
            if key.type is size:
                jsonschema.validate({kind: [{name: "16M"}, {name: 16}]}, known)


@pytest.mark.parametrize(
    "table",
    [
        {"memroy": "1G"}, {"cpus": "2"}, {"cpus": True}, {"memory": "much"}, {"expect": "x"}, {"protocol": "x"},
        {"disk": [{"ro": True}]}, {"disk": {"path": "x"}}, {"disk": [{"path": "x", "y": 1}]}, {"rng": [{"x": 1}]},
        {"net": [{"mode": "usr"}]}, {"net": [{"forward": "x"}]}, {"share": [{"path": "x"}]}, {"vsock": [{"cid": "3"}]},
    ],
)  # fmt: skip
def test_the_schema_refuses(table):
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(table, schema())


def test_what_no_file_can_hold_is_said():
    found = boot.parser().parse_args(["k", "--cmdline", os.fsdecode(b"\xff")])
    with pytest.raises(UsageError, match="UTF-8"):
        dumped(found)


def test_printable_texts_stay_readable():
    found = boot.parser().parse_args(["/k", "--cmdline", string.punctuation + "äöü"])
    assert r"""!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~äöü""" in dumped(found)
