"""The score of a mutation run: how many of the changes made the tests fail.  For scripts/mutation.

``mutation_score.py DUMP``: what ``cosmic-ray dump`` printed.  Exit code 1 if a change survived that is not known to
change nothing, 2 if the run is not complete.
"""

from __future__ import annotations

import collections
import json
import sys

#: Changes that no test can notice: the line after the change, and why it says the same.
EQUIVALENT = {
    "if phoff > FILE_OFFSET_MAX ^ size:": "FILE_OFFSET_MAX is 2**63 - 1, all ones: taking away is flipping",
    "if len(data) != _EHDR.size:": "a read gives no more than it was asked for",
    "if len(data) != size:": "the same",
    "machine = elf_machine(number, 65)": "everything but 32 bits has the one name",
    "machine = elf_machine(number, 63)": "everything but 32 bits has the one name",
    "if not TYPE_CHECKING:": "imports for annotations, which are not evaluated; test_start_up counts imports",
    "TYPE_CHECKING = True": "the same",
}


def changed_line(diff: str) -> str:
    """What the line says after the change."""
    added = [line[1:] for line in diff.splitlines() if line.startswith("+") and not line.startswith("+++")]
    return " ".join(" ".join(added).split())


def main(path: str) -> int:
    outcomes: collections.Counter[str] = collections.Counter()
    survivors: list[str] = []
    with open(path, encoding="utf-8") as file:
        for item, result in map(json.loads, file):
            mutation = item["mutations"][0]
            if result is None:
                outcomes["not run"] += 1
            elif result["worker_outcome"] == "skipped":
                outcomes["left out"] += 1
            elif result["worker_outcome"] not in ("normal", "timeout"):
                outcomes["not run"] += 1
            elif result["test_outcome"] != "survived":
                outcomes["noticed"] += 1
            elif changed_line(result["diff"] or "") in EQUIVALENT:
                outcomes["equivalent"] += 1
            else:
                outcomes["survived"] += 1
                where = f"{mutation['module_path']}:{mutation['start_pos'][0]}"
                survivors.append(f"{where}: {changed_line(result['diff'] or mutation['operator_name'])}")
    for survivor in sorted(survivors):
        print(survivor)
    counted = outcomes["noticed"] + outcomes["survived"]
    print(
        f"{outcomes['noticed']} of {counted} changes noticed ({outcomes['noticed'] / max(counted, 1):.1%});"
        f" not counted: {outcomes['equivalent']} that change nothing, {outcomes['left out']} left out"
    )
    if outcomes["not run"] or not counted:
        print(f"{outcomes['not run']} were not run", file=sys.stderr)
        return 2
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
