#!/usr/bin/env python3
"""Writes the tables of docs/results: FILE.md beside each FILE.json of measurement records.

    python3 tests/bench/results_tables.py [--check]

A record is {name, value, unit, ours_ms, peer_ms, samples, run_id, settings, device, date, commit,
command}; both times come from one run. Ratios in the tables are computed here from the two times.
--check writes nothing and fails where a table is not what its records give.
"""
import glob
import json
import os
import sys

# These are written with their tables, by the studies in tests/quality and pruning_throughput.py.
OWN_TABLES = ("pruning_study", "pruning_throughput", "sltrain_quality", "topology_rules")
RESULTS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "docs", "results")
FIELDS = ("name", "value", "unit", "ours_ms", "peer_ms", "samples", "run_id", "settings", "device",
          "date", "commit", "command")


def number(value, digits):
    return "" if value is None else f"{value:,.{digits}f}"


def detail(settings):
    return ", ".join(f"{key} {value}" for key, value in settings.items())


def rows(records):
    for r in records:
        missing = [field for field in FIELDS if field not in r]
        if missing:
            raise SystemExit(f"{r.get('name', '?')}: no {', '.join(missing)}")
        ratio = r["peer_ms"] / r["ours_ms"] if r["ours_ms"] and r["peer_ms"] else None
        value = number(r["value"], 3) + " " + r["unit"] if r["unit"] != "ratio" else ""
        yield (f"| {r['name']} | {number(r['ours_ms'], 3)} | {number(r['peer_ms'], 3)} | "
               f"{number(ratio, 3 if 'efficiency' in r['name'] else 2)} | {value} | {detail(r['settings'])} |")


def table(title, records):
    lines = [f"# {title}", "", "Generated from the records beside it by "
             "`tests/bench/results_tables.py`. Times are medians, in milliseconds; a ratio over 1 is "
             "faster than the peer of the same run.", ""]
    for run_id in dict.fromkeys(r["run_id"] for r in records):
        run = [r for r in records if r["run_id"] == run_id]
        first = run[0]
        lines += [f"## {first['device']}, {first['date']}, run {run_id}", "",
                  f"Commit {first['commit']}, {first['samples']} samples"
                  + (", copied from the console to its last digit:"
                     if all("read_from" in r["settings"] for r in run) else ":"), ""]
        lines += [f"    {command}" for command in dict.fromkeys(r["command"] for r in run)]
        lines += ["", "| record | ours ms | peer ms | ratio | value | settings |",
                  "|---|---|---|---|---|---|", *rows(run), ""]
    return "\n".join(lines)


def main():
    check = "--check" in sys.argv[1:]
    stale = []
    for path in sorted(glob.glob(os.path.join(RESULTS, "*.json"))):
        with open(path, encoding="utf-8") as file:
            records = json.load(file)
        name = os.path.basename(path)[:-len(".json")]
        if name in OWN_TABLES:
            continue
        text = table(name.replace("_", " "), records)
        target = path[:-len(".json")] + ".md"
        if check:
            if not os.path.exists(target) or open(target, encoding="utf-8").read() != text:
                stale.append(target)
            continue
        with open(target, "w", encoding="utf-8") as file:
            file.write(text)
    if stale:
        raise SystemExit("not what the records give, run tests/bench/results_tables.py: "
                         + ", ".join(map(os.path.relpath, stale)))


if __name__ == "__main__":
    main()
