"""Print the JSON lines of peers.py as a Markdown table: one row per case, dtype and thread count.

A cell holds the median and, in parentheses, the best rate: GFLOP/s, or GB/s of K and V for decode
cases. Of several lines for the same system and row, the last one counts.
"""

import argparse
import json
import sys


def cell(record: dict | None, unit: str) -> str:
    """The median and best rate of one record."""
    if record is None:
        return "-"
    key = "gbps" if unit == "GB/s" else "gflops"
    digits = 1 if unit == "GB/s" else 0
    return f"{record[key]:.{digits}f} ({record['best_' + key]:.{digits}f})"


def main() -> None:
    """Read the lines and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "file",
        nargs="?",
        type=argparse.FileType("r"),
        default=sys.stdin,
        help="default: standard input",
    )
    records = [
        json.loads(line) for line in parser.parse_args().file if line.startswith("{")
    ]

    systems = list(dict.fromkeys(record["system"] for record in records))
    rows: dict[tuple, dict[str, dict]] = {}
    for record in records:
        row = (record["case"], record["dtype"], record["threads"])
        rows.setdefault(row, {})[record["system"]] = record

    print("| case | dtype | threads | unit | " + " | ".join(systems) + " |")
    print("|" + "---|" * (len(systems) + 4))
    for (case, dtype, threads), by_system in rows.items():
        unit = "GB/s" if case.startswith("dec") else "GFLOP/s"
        cells = " | ".join(cell(by_system.get(system), unit) for system in systems)
        print(f"| {case} | {dtype} | {threads} | {unit} | {cells} |")


if __name__ == "__main__":
    main()
