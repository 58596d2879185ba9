"""``python -m bench``: measure, print the tables, and write JSON and the README's generated parts on request."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import fastkl
from bench import (
    accuracy,
    bandwidth,
    cases,
    dropins,
    gaussian,
    gaussian_full,
    layouts,
    logits,
    machine,
    memory,
    overhead,
    peers,
    report,
    sweep,
    threads,
)
from bench.timing import Settings, usable_levels

README = machine.ROOT / "README.md"

SECTIONS: dict[str, Callable[[Settings], Iterator[report.Figure]]] = {
    "bandwidth": bandwidth.measure,
    "sweep": sweep.measure,
    "layouts": layouts.measure,
    "overhead": overhead.measure,
    "threads": threads.measure,
    "memory": memory.measure,
    "peers": peers.measure,
    "errors": peers.measure_errors,
    "accuracy": accuracy.measure,
    "gaussian": gaussian.measure,
    "gaussian peers": gaussian.measure_peers,
    "logits": logits.measure,
    "logits peers": logits.measure_peers,
    "logits errors": logits.measure_errors,
    "gaussian full": gaussian_full.measure,
    "drop-ins": dropins.measure,
}


def main(arguments: list[str] | None = None) -> int:
    options = _parse(arguments)
    if options.read:
        stamp, settings, records = report.from_json(options.read.read_text(encoding="utf-8"))
    else:
        stamp, settings, records = _run(options)
    sys.stdout.write(report.full_report(stamp, settings, records))
    if options.json and options.read:
        options.json.write_text(report.to_json(stamp, settings, records), encoding="utf-8")
    if options.readme:
        report.rewrite_readme(README, report.readme_parts(stamp, settings, records))
    return 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--only", action="append", choices=SECTIONS, metavar="SECTION",
                        help=f"measure this section alone (may be repeated): {', '.join(SECTIONS)}")
    parser.add_argument("--size", type=float, default=cases.COUNTING_MIB, metavar="MIB",
                        help=f"MiB of input, p and q together; less than {cases.COUNTING_MIB} does not count")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds per figure")
    parser.add_argument("--level", action="append", metavar="LEVEL", help="this level alone (may be repeated)")
    parser.add_argument("--threads", type=int, action="append", metavar="N",
                        help="this many threads (may be repeated); by default one and all")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON, after every section")
    parser.add_argument("--read", type=Path, metavar="FILE", help="measure nothing, take the figures from this JSON")
    parser.add_argument("--readme", action="store_true", help="rewrite the generated parts of README.md")
    options = parser.parse_args(arguments)
    if options.readme and options.only and not options.read:
        parser.error("--readme needs all sections: leave --only out, or --read a JSON of a full run")
    if options.readme and (missing := report.missing_markers(README)):
        markers = ", ".join(f"<!-- bench:{name} -->" for name in missing)
        parser.error(f"{README} must hold these markers once: {markers}")
    if unusable := set(options.level or ()) - set(usable_levels()):
        parser.error(f"levels that this build or CPU does not have: {', '.join(sorted(unusable))}")
    return options


def _run(options: argparse.Namespace) -> tuple[dict, dict, list[dict]]:
    settings = Settings(
        size_mib=options.size,
        rounds=options.rounds,
        levels=tuple(options.level or usable_levels()),
        threads=tuple(options.threads or sorted({1, fastkl.get_num_threads()})),
    )
    named = {
        "size_mib": settings.size_mib,
        "rounds": settings.rounds,
        "levels": settings.levels,
        "threads": settings.threads,
    }
    stamp, records, begun = machine.stamp(), [], time.monotonic()
    for section in options.only or SECTIONS:
        for figure in _figures(section, settings):
            record = figure.record()
            records.append(record)
            if sys.stderr.isatty():
                print(
                    f"{time.monotonic() - begun:6.0f} s  {section}: {record['case']} {record['variant']} "
                    f"{record['level'] or ''} {record['threads'] or ''}: {report.number(record['value'])} "
                    f"{record['verdict']}",
                    file=sys.stderr,
                )
        stamp["seconds"] = round(time.monotonic() - begun, 1)
        if options.json:  # after every section: a run takes long, and may be cut short
            options.json.write_text(report.to_json(stamp, named, records), encoding="utf-8")
    return stamp, named, records


def _figures(section: str, settings: Settings) -> Iterator[report.Figure]:
    """The figures of a section; one that says why there are none, where a package that measures it is absent."""
    try:
        yield from SECTIONS[section](settings)
    except ModuleNotFoundError as error:
        yield report.Figure(section, "all", None, "", detail={"note": str(error)})


if __name__ == "__main__":
    sys.exit(main())
