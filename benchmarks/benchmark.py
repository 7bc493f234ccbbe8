#!/usr/bin/env python3
"""Measure the backfill on stores from sample_store.py.

    python3 benchmarks/benchmark.py            # under two minutes
    python3 benchmarks/benchmark.py --full     # up to 1,000,000 rows
    python3 benchmarks/benchmark.py --json
    python3 benchmarks/benchmark.py --beside OLD.py    # another version of the tool, too

What is compared is measured alternately in one run, and the median of the rounds counts:
compare ratios, not seconds from different machines. README.md beside this file says how to
read the tables.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import io
import itertools
import json
import os
import platform
import resource
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import sample_store  # noqa: E402
import writer  # noqa: E402

import backfill_audit_decision_fields as backfill  # noqa: E402

TOOL = HERE.parent / "backfill_audit_decision_fields.py"
VERIFY = HERE.parent / "verify_backfill.sql"
JOURNAL_MODES = ("wal", "delete")
BATCH_SIZE = 1000  # the tool's default

# What a user would type instead: fast, but without the rules for what is usable and for pairs.
BARE_UPDATE = """
    UPDATE task_audits
       SET source_event_ts = coalesce(source_event_ts,
               json_extract(payload, '$.source_event_ts'), json_extract(payload, '$.source_ts'),
               json_extract(payload, '$.event_timestamp'),
               json_extract(payload, '$.task_created_at'), created_at),
           supervisor_processed_at = coalesce(supervisor_processed_at,
               json_extract(payload, '$.supervisor_processed_at'),
               json_extract(payload, '$.processed_at'), json_extract(payload, '$.timestamp'),
               created_at)
     WHERE event_type LIKE '%SUPERVISOR%' AND json_valid(payload)
       AND (source_event_ts IS NULL OR supervisor_processed_at IS NULL)
"""
PAIR_UPDATE = """
    UPDATE task_audits SET source_event_ts = ?, supervisor_processed_at = ? WHERE audit_id = ?
"""
# The tool as a script runs it, but without the thread.
WITHOUT_THREAD = """
import gc, sys, backfill_audit_decision_fields as backfill
gc.disable()
backfill.ReadAhead.begin = lambda *_: None
sys.exit(backfill.main())
"""
# The same candidates for sqlite-utils, which hands over the payload alone, without created_at.
CONVERT = f"""
import json
try:
    fields = json.loads(value)
except (TypeError, ValueError):
    fields = {{}}
if not isinstance(fields, dict):
    fields = {{}}
return {{
    column: next((str(fields[name]) for name in names if fields.get(name)), None)
    for column, names in {backfill.FIELDS}.items()
}}
"""

# The 95th percentile of the decision lag, from the payloads and from the columns.
FROM_PAYLOADS = """
    SELECT source, (julianday(processed) - julianday(source)) * 86400 AS lag
      FROM (SELECT coalesce(json_extract(payload, '$.source_event_ts'),
                            json_extract(payload, '$.source_ts'),
                            json_extract(payload, '$.event_timestamp'),
                            json_extract(payload, '$.task_created_at'), created_at) AS source,
                   coalesce(json_extract(payload, '$.supervisor_processed_at'),
                            json_extract(payload, '$.processed_at'),
                            json_extract(payload, '$.timestamp'), created_at) AS processed
              FROM task_audits
             WHERE event_type LIKE '%SUPERVISOR%' AND json_valid(payload))
"""
FROM_COLUMNS = """
    SELECT source_event_ts AS source,
           (julianday(supervisor_processed_at) - julianday(source_event_ts)) * 86400 AS lag
      FROM task_audits
     WHERE source_event_ts IS NOT NULL AND supervisor_processed_at IS NOT NULL
"""
P95 = """
    WITH lags AS (SELECT lag FROM ({}) {})
    SELECT lag FROM lags ORDER BY lag
     LIMIT 1 OFFSET (SELECT (count(*) * 95 + 99) / 100 - 1 FROM lags)
"""
ONE_DAY = "WHERE source >= '2026-01-06' AND source < '2026-01-07'"


class Bench:
    """Makes stores in a folder, each once, and hands out copies."""

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self.folder = folder
        self.say = say

    def store(self, rows: int, journal_mode: str = "wal", change: str = "") -> Path:
        """Return a fresh copy of a sample store, its pages written to disk."""
        original = self.folder / f"{rows}-{journal_mode}-{abs(hash(change))}.db"
        if not original.exists():
            sample_store.make_store(original, rows, journal_mode=journal_mode)
            with contextlib.closing(sqlite3.connect(original)) as store:
                store.executescript(change)
        copy = self.folder / "store.db"
        for leftover in self.folder.glob("store.db*"):
            leftover.unlink()
        shutil.copy(original, copy)
        os.sync()
        return copy


def watch_tool(
    path: Path, *options: str, program: Sequence[str | Path] = (TOOL,)
) -> tuple[dict[str, Any], resource.struct_rusage]:
    """Run the tool as a process; return its summary and what it used of the machine."""
    process = subprocess.Popen(
        [sys.executable, *program, "--db-path", path, "--json", "--quiet", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=TOOL.parent,
    )
    assert process.stdout is not None
    summary: dict[str, Any] = json.loads(process.stdout.read())
    return summary, os.wait4(process.pid, 0)[2]


def run_tool(path: Path, *options: str) -> tuple[dict[str, Any], float]:
    """Run the tool as a process; return its summary and its peak memory in MB."""
    summary, usage = watch_tool(path, *options)
    return summary, usage.ru_maxrss / 1024


def seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def sqlite_shell(path: Path, sql: str) -> None:
    subprocess.run(["sqlite3", "-cmd", ".timeout 30000", path, sql], check=True)


# --- The measurements ------------------------------------------------------------------


def whole_runs(bench: Bench, *, full: bool) -> list[dict[str, Any]]:
    """1. Whole runs at several sizes and batch sizes."""
    cases = [(1000, 1000), (10_000, 1000), (10_000, 5000), (100_000, 10_000)]
    if full:
        cases.append((1_000_000, 10_000))
    table = []
    for rows, batch_size in cases:
        bench.say(f"whole run: {rows:,} rows, batches of {batch_size:,}")
        summary, megabytes = run_tool(bench.store(rows), "--batch-size", str(batch_size))
        table.append(
            {
                "rows": rows,
                "batch size": batch_size,
                "filled": summary["filled"],
                "seconds": summary["elapsed_seconds"],
                "rows/s": summary["rows_per_second"],
                "peak MB": round(megabytes, 1),
            }
        )
    return table


def side_by_side(bench: Bench, rows: int, rounds: int, other: Path | None) -> list[dict[str, Any]]:
    """2. The tool beside what else fills the columns, alternating."""
    store = backfill.Store(bench.store(rows), backfill.Patience(5, 0), read_only=True)
    with contextlib.closing(store.connection):
        ready = [
            (*plan.values, plan.audit_id)
            for plan in backfill.read_rows(store, 1, rows)
            if plan.values != backfill.NOTHING
        ]

    def tool(path: Path) -> float:
        elapsed: float = run_tool(path)[0]["elapsed_seconds"]
        return elapsed

    def tool_without_thread(path: Path) -> float:
        elapsed: float = watch_tool(path, program=("-c", WITHOUT_THREAD))[0]["elapsed_seconds"]
        return elapsed

    def bare(path: Path) -> float:
        return seconds(lambda: sqlite_shell(path, BARE_UPDATE))

    def bare_in_batches(path: Path) -> float:
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as store:
            store.execute("PRAGMA synchronous = NORMAL")
            sql = f"{BARE_UPDATE} AND audit_id BETWEEN ? AND ?"
            return seconds(
                lambda: [
                    store.execute(sql, (first, first + BATCH_SIZE - 1))
                    for first in range(1, rows + 1, BATCH_SIZE)
                ]
            )

    def floor(path: Path) -> float:
        size = BATCH_SIZE
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as store:
            store.execute("PRAGMA synchronous = NORMAL")

            def write() -> None:
                for start in range(0, len(ready), size):
                    store.execute("BEGIN IMMEDIATE")
                    store.executemany(PAIR_UPDATE, ready[start : start + size])
                    store.execute("COMMIT")

            return seconds(write)

    ways: dict[str, Callable[[Path], float]] = {
        "the tool": tool,
        "the same, reading nothing ahead": tool_without_thread,
        "bare UPDATE, all at once": bare,
        "bare UPDATE, in batches": bare_in_batches,
        "write floor": floor,
    }
    if not shutil.which("sqlite3"):
        del ways["bare UPDATE, all at once"]
    if other is not None:
        ways[f"the tool of {other.name}"] = lambda path: float(
            watch_tool(path, program=(other,))[0]["elapsed_seconds"]
        )
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(1, rounds + 1):
        bench.say(f"side by side: {rows:,} rows, round {number} of {rounds}")
        for name, way in ways.items():
            times[name].append(way(bench.store(rows)))
    medians = {name: statistics.median(measured) for name, measured in times.items()}
    return [
        {
            "way": name,
            "seconds": round(median, 2),
            "rows/s": round(len(ready) / median),
            "tool's time / its time": round(medians["the tool"] / median, 2),
        }
        for name, median in medians.items()
    ]


def beside_sqlite_utils(bench: Bench, rows: int) -> list[dict[str, Any]]:
    """2b. The tool beside `sqlite-utils convert --multi`, where that is installed."""
    try:
        version = importlib.metadata.version("sqlite-utils")
    except importlib.metadata.PackageNotFoundError:
        return []
    bench.say(f"sqlite-utils: {rows:,} rows")
    summary, _ = run_tool(bench.store(rows))
    path = bench.store(rows)
    command = [sys.executable, "-m", "sqlite_utils", "convert", str(path), "task_audits",
               "payload", CONVERT, "--multi", "--silent"]  # fmt: skip
    theirs = seconds(lambda: subprocess.run(command, check=True))
    ours = summary["elapsed_seconds"]
    return [
        {"way": "the tool", "seconds": ours, "ratio": 1.0},
        {"way": f"sqlite-utils {version} convert", "seconds": round(theirs, 2),
         "ratio": round(theirs / ours, 1)},
    ]  # fmt: skip


def other_writers(bench: Bench, rows: int, other: Path | None) -> list[dict[str, Any]]:
    """3. How long two other processes wait while the store is filled."""
    table = []
    ways: dict[str, Callable[[Path], object]] = {"the tool": run_tool}
    if other is not None:
        ways[f"the tool of {other.name}"] = lambda path: watch_tool(path, program=(other,))
    if shutil.which("sqlite3"):
        ways["bare UPDATE"] = lambda path: sqlite_shell(path, BARE_UPDATE)
    for mode in JOURNAL_MODES:
        for name, work in ways.items():
            bench.say(f"other writers: {name}, {mode}")
            path = bench.store(rows, mode)
            writers = [writer.start(path, seed) for seed in (1, 2)]
            elapsed = seconds(lambda path=path, work=work: work(path))  # type: ignore[misc]
            done = [writer.finish(process) for process in writers]
            waits = sorted(wait for their in done for wait in their["waits"])
            table.append(
                {
                    "beside": name,
                    "journal": mode,
                    "run s": round(elapsed, 1),
                    "transactions": len(waits),
                    "p50 ms": round(waits[len(waits) // 2], 1),
                    "p99 ms": round(waits[len(waits) * 99 // 100], 1),
                    "max ms": round(waits[-1], 1),
                    "refused": sum(their["refused"] for their in done),
                }
            )
    return table


def lock_times(bench: Bench, rows: int) -> list[dict[str, Any]]:
    """3b. How long a batch of a run without company holds the write lock."""
    table = []
    for mode, batch_size in itertools.product(JOURNAL_MODES, (100, 1000, 10_000)):
        bench.say(f"write lock: {mode}, batches of {batch_size:,}")
        path = bench.store(rows, mode)
        held: list[float] = []
        transaction = backfill.Store.transaction

        @contextlib.contextmanager
        def timing(self: backfill.Store) -> Iterator[None]:
            with transaction(self):  # noqa: B023 - used up before the next round of the loop
                begun = time.perf_counter()
                yield
            held.append(time.perf_counter() - begun)  # noqa: B023

        out = io.StringIO()
        with (
            mock.patch.object(backfill.Store, "transaction", timing),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            backfill.main(["--db-path", str(path), "--batch-size", str(batch_size), "--json"])
        summary = json.loads(out.getvalue())
        table.append(
            {
                "journal": mode,
                "batch size": batch_size,
                "rows/s": round(summary["rows_per_second"]),
                "median ms": round(statistics.median(held) * 1000, 1),
                "longest ms": round(max(held) * 1000, 1),
                "share of the run": round(sum(held) / summary["elapsed_seconds"], 2),
            }
        )
    return table


def disk_use(bench: Bench, rows: int) -> list[dict[str, Any]]:
    """6. What a run takes of the disk."""
    bench.say(f"disk use: {rows:,} rows")
    path = bench.store(rows)
    wal = Path(f"{path}-wal")
    before, largest = path.stat().st_size, 0
    process = subprocess.Popen(
        [sys.executable, TOOL, "--db-path", path, "--quiet"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while process.poll() is None:
        with contextlib.suppress(FileNotFoundError):
            largest = max(largest, wal.stat().st_size)
        time.sleep(0.005)
    row = {
        "rows": rows,
        "store MB before": round(before / 1e6),
        "store MB after": round(path.stat().st_size / 1e6),
        "largest WAL MB": round(largest / 1e6),
    }
    return [row]


def verification(bench: Bench, rows: int) -> list[dict[str, Any]]:
    """7. The verification beside the run that it checks, and how long a writer waits for it."""
    if not shutil.which("sqlite3"):
        return []

    def verify(path: Path) -> None:
        with VERIFY.open("rb") as script:  # exit code 1 where the writer's own rows fail a check
            subprocess.run(["sqlite3", path], check=False, stdin=script, capture_output=True)

    row: dict[str, Any] = {"rows": rows}
    for mode in JOURNAL_MODES:
        bench.say(f"verification: {rows:,} rows, {mode}")
        path = bench.store(rows, mode)
        summary, _ = run_tool(path)
        elapsed = seconds(lambda path=path: verify(path))  # type: ignore[misc]
        if mode == "wal":
            row["run s"] = summary["elapsed_seconds"]
            row["verification s"] = round(elapsed, 1)
            row["ratio"] = round(elapsed / summary["elapsed_seconds"], 2)
        beside = writer.start(path, 1)
        verify(path)
        done = writer.finish(beside)
        row[f"longest wait ms, {mode}"] = round(max(done["waits"]))
        row[f"refused, {mode}"] = done["refused"]
    return [row]


def growth(bench: Bench, sizes: Sequence[int]) -> list[dict[str, Any]]:
    """4. Time against rows, against the share that stays NULL, and a second run."""
    table = []

    def add(what: str, summary: dict[str, Any], rows: int) -> None:
        elapsed = summary["elapsed_seconds"]
        table.append(
            {"store": what, "to fill": summary["to_fill"], "filled": summary["filled"],
             "seconds": elapsed, "µs per table row": round(elapsed / rows * 1e6, 1)}
        )  # fmt: skip

    for rows in sizes:
        bench.say(f"growth: {rows:,} rows")
        measured = sorted(
            (run_tool(bench.store(rows))[0] for _ in range(3)),
            key=lambda summary: float(summary["elapsed_seconds"]),
        )
        add(f"{rows:,} rows", measured[1], rows)
    rows = sizes[0] if len(sizes) == 1 else sizes[1]
    for tenths in (5, 10):
        bench.say(f"growth: {tenths * 10} % malformed")
        spoil = f"UPDATE task_audits SET payload = 'oops' WHERE audit_id % 10 < {tenths}"
        summary, _ = run_tool(bench.store(rows, change=spoil))
        add(f"{rows:,} rows, {tenths * 10} % malformed", summary, rows)
    path = bench.store(rows)
    run_tool(path)
    add(f"{rows:,} rows, second run", run_tool(path)[0], rows)
    return table


def lag_query(bench: Bench, rows: int) -> list[dict[str, Any]]:
    """5. A decision-lag query through the payloads, and through the columns."""
    bench.say(f"lag query: {rows:,} rows")
    path = bench.store(rows)
    run_tool(path)
    table = []
    with contextlib.closing(sqlite3.connect(path)) as store:
        for name, where in (("one day", ONE_DAY), ("everything", "")):
            times: dict[str, list[float]] = {FROM_PAYLOADS: [], FROM_COLUMNS: []}
            for _ in range(3):
                for query, measured in times.items():
                    sql = P95.format(query, where)
                    measured.append(seconds(lambda sql=sql: store.execute(sql).fetchone()))  # type: ignore[misc]
            before = statistics.median(times[FROM_PAYLOADS])
            after = statistics.median(times[FROM_COLUMNS])
            table.append(
                {"p95 of the lag over": name, "payloads ms": round(before * 1000, 1),
                 "columns ms": round(after * 1000, 1), "ratio": round(before / after, 1)}
            )  # fmt: skip
    return table


def scheduled_runs(bench: Bench, rows: int) -> list[dict[str, Any]]:
    """8. The usual run: over a filled store in which 1,000 rows are new."""
    bench.say(f"scheduled run: {rows:,} rows")
    path = bench.store(rows)
    run_tool(path)
    table = []
    for name in ("not in memory", "in memory"):
        with contextlib.closing(sqlite3.connect(path)) as store, store:
            store.execute(
                "UPDATE task_audits SET source_event_ts = NULL, supervisor_processed_at = NULL"
                " WHERE audit_id > ?",
                (rows - 1000,),
            )
        with path.open("rb") as file:
            os.fsync(file.fileno())
            if name == "not in memory":
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        summary, usage = watch_tool(path)
        table.append(
            {
                "store": f"{rows:,} rows, {path.stat().st_size / 1e6:,.0f} MB",
                "the file is": name,
                "filled": summary["filled"],
                "seconds": summary["elapsed_seconds"],
                "MB read": round(usage.ru_inblock * 512 / 1e6),
            }
        )
    return table


# --- The report ------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    return {
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "Python": platform.python_version(),
        "SQLite": sqlite3.sqlite_version,
    }


def format_table(title: str, rows: Sequence[dict[str, Any]]) -> str:
    """Write rows as a Markdown table under its title."""
    if not rows:
        return f"{title}\n\n(not measured: what it compares with is not installed)\n"
    cells = [list(rows[0]), *([_cell(value) for value in row.values()] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    lines = [
        "| "
        + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        + " |"
        for line in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return f"{title}\n\n" + "\n".join(lines) + "\n"


def _cell(value: object) -> str:
    return f"{value:,}" if isinstance(value, (int, float)) else str(value)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Measure the backfill.")
    parser.add_argument("--full", action="store_true", help="go up to 1,000,000 rows")
    parser.add_argument("--json", action="store_true", help="print the tables as one JSON object")
    parser.add_argument(
        "--beside",
        metavar="FILE",
        type=Path,
        help="another version of the tool, for tables 2 and 3",
    )
    args = parser.parse_args(argv)
    full, other = args.full, args.beside and args.beside.resolve()
    with tempfile.TemporaryDirectory(prefix="backfill-benchmark-") as folder:
        bench = Bench(Path(folder), lambda text: print(text, file=sys.stderr, flush=True))
        sizes = [10_000, 100_000, 1_000_000] if full else [10_000, 30_000]
        middle = 100_000 if full else 30_000
        large = 220_000 if full else 50_000
        tables = {
            "1. Whole runs": whole_runs(bench, full=full),
            "2. Side by side": side_by_side(bench, large, 5 if full else 3, other),
            "2b. Beside sqlite-utils": beside_sqlite_utils(bench, large if full else 5000),
            "3. Other writers' waiting times": other_writers(bench, middle, other),
            "3b. How long a batch holds the write lock": lock_times(bench, middle),
            "4. Growth": growth(bench, sizes),
            "5. What it is for": lag_query(bench, large),
            "6. Disk": [row for size in sizes[1:] for row in disk_use(bench, size)],
            "7. The verification beside the run": [
                row
                for size in ([100_000, 300_000, 1_000_000] if full else [30_000])
                for row in verification(bench, size)
            ],
            "8. A run on a schedule": scheduled_runs(bench, sizes[-1]),
        }
    if args.json:
        print(json.dumps({"machine": machine(), "tables": tables}))
    else:
        print(", ".join(f"{name} {value}" for name, value in machine().items()), end="\n\n")
        print("\n".join(format_table(title, rows) for title, rows in tables.items()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
