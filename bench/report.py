"""Figures as tables, as JSON, and as the two generated parts of the README."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench import cases

SECTIONS = {
    "bandwidth": "Bandwidth fraction: input bytes per second over those of `numpy.dot`, same bytes, same threads",
    "sweep": "No cliff in K: time per element over that at K=128",
    "layouts": "No cliff in layout: time per element over the contiguous case",
    "overhead": "Small calls and the import",
    "threads": "Threads: speed-up of two over one",
    "memory": "Memory beyond inputs and output, over 16 MiB + 1 MiB a thread",
    "peers": "Peers: their time over that of fastkl's default call, all threads, the same rows in the same run",
    "errors": "Peers: worst error against the exact value of what each one computes, ulp of the input type",
    "accuracy": "Accuracy: worst error against the exact value",
    "gaussian": "Gaussians: input bytes per second over those of `numpy.dot`, same bytes, same threads",
    "gaussian peers": "Gaussians: the time of the usual lines over that of fastkl's default call, all threads",
    "logits": "Logits: input bytes per second over those of `numpy.dot`, same bytes, same threads",
    "logits peers": "Logits: the time of others over that of fastkl's default call, all threads",
    "logits errors": "Logits: worst error of KL against the exact value, ulp of float32",
    "gaussian full": "Full covariances: the time of the usual lines over that of fastkl's default call, all threads",
    "drop-ins": "Drop-ins: the original's time over that of its drop-in, the same call, all threads",
}


@dataclass
class Figure:
    """One number with all that is needed to read it; ``value`` is None where there was nothing to measure."""

    section: str
    case: str
    value: float | None
    unit: str
    variant: str = ""
    level: str | None = None
    threads: int | None = None
    median: float | None = None
    counts: bool = True
    detail: dict = field(default_factory=dict)

    def record(self) -> dict:
        target = cases.target_for(self.section, self.case, self.variant)
        bound = target.at(self.level) if target else None
        return {
            "section": self.section,
            "case": self.case,
            "variant": self.variant,
            "level": self.level,
            "threads": self.threads,
            "value": self.value,
            "median": self.median,
            "unit": self.unit,
            "target": bound,
            "sense": target.sense if bound is not None else None,
            "verdict": self._verdict(target, bound),
            "detail": self.detail,
        }

    def _verdict(self, target: cases.Target | None, bound: float | None) -> str:
        if self.value is None:
            return "absent"
        if bound is None:
            return ""
        if not self.counts:
            return "not counting"
        return "pass" if target.holds(self.value, self.level) else "short"


def to_json(machine: dict, settings: dict, records: Sequence[dict]) -> str:
    """Strict JSON: infinities and NaNs, which are results here, are written as strings."""
    return json.dumps(_plain({"machine": machine, "settings": settings, "figures": records}), indent=1) + "\n"


def from_json(text: str) -> tuple[dict, dict, list[dict]]:
    document = json.loads(text)
    for record in document["figures"]:
        for key in ("value", "median"):
            if isinstance(record[key], str):
                record[key] = float(record[key])
    return document["machine"], document["settings"], document["figures"]


def _plain(value):
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    return value


def number(value: float | None) -> str:
    """Three significant digits, without an exponent where that is readable."""
    if value is None:
        return "absent"
    if isinstance(value, str):
        return value
    if not math.isfinite(value):
        return "wrong"
    if value == 0:
        return "0"
    if not 1e-3 <= abs(value) < 1e5:
        return f"{value:.1e}"
    decimals = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{decimals}f}"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    rows = [list(header), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    padded = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    lines = ["| " + " | ".join(row) + " |" for row in padded]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def describe_machine(machine: dict, settings: dict) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    caches = ", ".join(f"{name} {size}" for name, size in machine["caches"].items())
    return (
        f"{machine['cpu']}, {machine['cores']} cores ({caches}), {machine['memory GiB']} GiB, {machine['system']}; "
        f"level {machine['level']}, {machine['threads']} threads; {versions}; commit {machine['commit'] or 'unknown'}; "
        f"{machine['date']}; {settings['size_mib']:g} MiB of input."
    )


def full_report(machine: dict, settings: dict, records: Sequence[dict]) -> str:
    parts = [describe_machine(machine, settings)]
    if settings["size_mib"] < cases.COUNTING_MIB:
        parts.append(f"Not counting: figures of arrays are taken with at least {cases.COUNTING_MIB} MiB of input.")
    for section, title in SECTIONS.items():
        mine = [record for record in records if record["section"] == section]
        if mine:
            parts += [f"## {title}", _full_table(mine)]
    parts.append(_summary(records))
    return "\n\n".join(parts) + "\n"


def _full_table(records: Sequence[dict]) -> str:
    """Every record with every column that at least one of them has something in."""
    columns: dict[str, Callable[[dict], str]] = {
        "case": lambda r: r["case"],
        "variant": lambda r: r["variant"],
        "level": lambda r: r["level"] or "",
        "threads": lambda r: str(r["threads"] or ""),
        "figure": lambda r: number(r["value"]),
        "median": lambda r: "" if r["median"] is None else number(r["median"]),
        "target": lambda r: "" if r["target"] is None else f"{r['sense']} {r['target']:g}",
        "verdict": lambda r: r["verdict"],
    }
    for name in dict.fromkeys(name for record in records for name in record["detail"]):
        columns[name] = lambda r, name=name: number(r["detail"][name]) if name in r["detail"] else ""
    filled = {title: [column(record) for record in records] for title, column in columns.items()}
    filled = {title: cells for title, cells in filled.items() if any(cells)}
    unit = records[0]["unit"]
    units = f"Figures are {unit}.\n\n" if all(record["unit"] == unit for record in records) else ""
    return units + _table(list(filled), zip(*filled.values(), strict=True))


def _summary(records: Sequence[dict]) -> str:
    verdicts = [record["verdict"] for record in records]
    short = [
        f"- {r['section']}: {r['case']} {r['variant']} {r['level'] or ''} {r['threads'] or ''}: "
        f"{number(r['value'])}, target {r['sense']} {r['target']:g}"
        for r in records
        if r["verdict"] == "short"
    ]
    counted = f"{verdicts.count('pass')} of {verdicts.count('pass') + len(short)} figures with a target reach it."
    return "\n".join([counted, *short])


def _pivot(
    records: Sequence[dict],
    section: str,
    columns: Callable[[dict], str],
    corner: str,
    rows: Callable[[dict], str] = lambda record: record["case"],
) -> str:
    """One row a case, those with targets first, one column a ``columns`` value; the worst figure of several.

    A figure that misses its target stands in bold.
    """
    cells: dict[tuple[str, str], dict] = {}
    targeted = {record["case"] for record in records if record["section"] == section and record["target"] is not None}
    for record in sorted(records, key=lambda record: record["case"] not in targeted):
        if record["section"] == section:
            key = rows(record), columns(record)
            if key not in cells or _worse(record, cells[key]):
                cells[key] = record
    titles = list(dict.fromkeys(column for _, column in cells))
    table = [
        [row, *(_cell(cells.get((row, title))) for title in titles)] for row in dict.fromkeys(row for row, _ in cells)
    ]
    return _table([corner, *titles], table) if table else "Not measured."


def _worse(a: dict, b: dict) -> bool:
    if a["value"] is None or b["value"] is None:
        return a["value"] is None
    return a["value"] < b["value"] if b["sense"] == cases.AT_LEAST else a["value"] > b["value"]


def _cell(record: dict | None) -> str:
    if record is None:
        return ""
    text = number(record["value"])
    if record["verdict"] == "short":
        text = f"**{text}**"
    return text if record["target"] is None else f"{text} ({record['sense']} {record['target']:g})"


def _level_and_threads(record: dict) -> str:
    return f"{record['level']}, {record['threads']} thread" + ("s" if record["threads"] > 1 else "")


def readme_parts(machine: dict, settings: dict, records: Sequence[dict]) -> dict[str, str]:
    """The generated parts of the README by the name of their markers."""
    where = describe_machine(machine, settings)
    bold = "In brackets the target; in bold what misses it."
    if settings["size_mib"] < cases.COUNTING_MIB:
        bold += f" A quick run that does not count: {settings['size_mib']:g} MiB of input."
    speed = [
        f"Measured by `python -m bench` on: {where}",
        f"Input bytes per second as a fraction of what `numpy.dot` reads with as many threads in the same run. {bold}",
        _pivot(records, "bandwidth", _level_and_threads, "kernel"),
        "How many times as long others take for the same rows (all threads that each can use, K=128):",
        _pivot(records, "peers", lambda r: r["case"], "peer", lambda r: r["variant"]),
        "The same for Gaussians, as *scale, prior, type*:",
        _pivot(records, "gaussian", _level_and_threads, "kernel", lambda r: f"{r['case']}, {r['variant']}"),
        "How many times as long the usual lines take for these, K=128:",
        _pivot(records, "gaussian peers", lambda r: r["case"], "kernel", lambda r: r["variant"]),
        "The same for logits, and how many times as long others take for these:",
        _pivot(records, "logits", _level_and_threads, "kernel"),
        _pivot(records, "logits peers", lambda r: r["case"], "kernel", lambda r: r["variant"]),
        "How many times as long others take for full covariances:",
        _pivot(records, "gaussian full", lambda r: r["detail"]["peer"], "pairs", lambda r: r["variant"]),
        "How many times as long a drop-in's original takes (`fastkl.torch`: the way through NumPy; `fastkl.jax`: XLA):",
        _pivot(records, "drop-ins", lambda r: r["variant"], "call"),
        "Time per element over that at K=128, worst of all levels and thread counts:",
        _pivot(records, "sweep", lambda r: r["variant"], "kernel"),
        "Time over the contiguous case, worst of all levels and thread counts:",
        _pivot(records, "layouts", lambda r: r["variant"], "kernel"),
        "Speed-up of two threads over one, worst of all levels:",
        _pivot(records, "threads", lambda r: r["variant"], "kernel"),
        "Small calls:",
        _pivot(records, "overhead", lambda r: r["unit"], "call"),
        "Memory beyond inputs and output:",
        _pivot(records, "memory", lambda r: r["unit"], "call"),
    ]
    accuracy = [
        f"Measured by `python -m bench` on: {where}",
        f"Worst error in ulp of the result over all levels, kinds of rows and K of `bench/accuracy.py`. {bold}",
        _pivot(records, "accuracy", lambda r: r["case"].rsplit(" ", 1)[1], "function",
               lambda r: r["case"].rsplit(" ", 1)[0]),
        "The same of others, in ulp of the input type (*wrong*: infinity, NaN or 0 in place of a number, or for it):",
        _pivot(records, "errors", lambda r: r["variant"], "function, peer"),
        "KL from float32 logits, q's being p's with more and less noise, in ulp of float32:",
        _pivot(records, "logits errors", lambda r: r["variant"], "peer"),
    ]
    return {"speed": "\n\n".join(speed), "accuracy": "\n\n".join(accuracy)}


def rewrite_readme(path: Path, parts: dict[str, str]) -> None:
    """Replace what stands between ``<!-- bench:NAME -->`` and ``<!-- /bench:NAME -->``."""
    text = path.read_text(encoding="utf-8")
    for name, part in parts.items():
        text = _markers(name).sub(lambda match, part=part: f"{match[1]}\n\n{part}\n\n{match[2]}", text)
    path.write_text(text, encoding="utf-8")


def missing_markers(path: Path) -> list[str]:
    """The names of the generated parts that do not stand in the file exactly once."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [name for name in ("speed", "accuracy") if len(_markers(name).findall(text)) != 1]


def _markers(name: str) -> re.Pattern[str]:
    return re.compile(rf"(<!-- bench:{name} -->).*?(<!-- /bench:{name} -->)", re.DOTALL)
