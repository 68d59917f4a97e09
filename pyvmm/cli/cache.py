"""``pyvmm cache``: the kernels taken out of bzImages, listed or removed."""

from __future__ import annotations

import sys

from pyvmm import kernel_cache
from pyvmm.cli.arguments import Parser

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

MIB = 1 << 20


def parser() -> Parser:
    """The command line of ``pyvmm cache``."""
    parser = Parser(
        "pyvmm cache",
        "List the kernels that pyvmm boot has taken out of bzImages, so that guests need not unpack themselves; or "
        "remove them with 'pyvmm cache clear'. They can always be made again. Those used longest ago are removed when "
        "the cache grows too large.",
    )
    parser.add_argument("action", nargs="?", default="list", choices=("list", "clear"), help="default: list")
    parser.add_argument("--json", action="store_true", help="machine-readable")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run ``pyvmm cache`` with these arguments; returns the exit code."""
    options = parser().parse_args(list(arguments))
    if options.action == "clear":
        return _clear(options.json)
    return _list(options.json)


def _list(as_json: bool) -> int:
    import os
    import time

    from pyvmm.kernel_cache_fill import SIZE_LIMIT

    folder = kernel_cache.directory()
    found = kernel_cache.entries()
    total = sum(entry.size for entry in found)
    if as_json:
        _print_json(
            {
                "directory": folder,
                "limit_bytes": SIZE_LIMIT,
                "total_bytes": total,
                "kernels": [
                    {
                        "release": entry.release,
                        "key": entry.key,
                        "bytes": entry.size,
                        "made": entry.stamp,
                        "last_used": int(entry.used),
                        "path": os.path.join(folder, entry.name),
                    }
                    for entry in found
                ],
            }
        )
        return 0
    for entry in found:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used))
        print(f"{entry.key[:12]}  {entry.size / MIB:7.1f} MiB  used {used}  {entry.release}")
    print(
        f"{len(found)} kernel{'' if len(found) == 1 else 's'}, {total / MIB:.1f} of at most {SIZE_LIMIT // MIB} MiB,"
        f" in {folder}"
    )
    return 0


def _clear(as_json: bool) -> int:
    from pyvmm.kernel_cache_fill import clear

    count, size = clear()
    if as_json:
        _print_json({"removed": count, "removed_bytes": size})
    else:
        print(f"{count} kernel{'' if count == 1 else 's'} removed, {size / MIB:.1f} MiB")
    return 0


def _print_json(value: object) -> None:
    import json

    sys.stdout.write(json.dumps(value, indent=2) + "\n")
