#!/usr/bin/env python3
"""Write to a store as AgentOS's processes do, and tell how long that had to wait.

    python3 benchmarks/writer.py store.db

Every few milliseconds it inserts a row of the Supervisor's and fills one column of a row
that is still NULL, in one transaction, with SQLite's own timeout of 5 seconds. It ends when
its standard input is closed, and then prints what it did as one JSON object: `waits`
(milliseconds for each transaction, from BEGIN to the end of COMMIT), `refused` (transactions
that SQLite gave up), `inserted` (audit_ids) and `filled` ([audit_id, column, value]).
"""

from __future__ import annotations

import argparse
import json
import random
import select
import sqlite3
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

OWN_TIMEOUT = 5.0  # seconds, as sqlite3.connect() has it by default
INSERT = """
    INSERT INTO task_audits (task_id, event_type, payload, created_at)
    VALUES ('writer', 'SUPERVISOR_DECISION', '{}', '2026-01-05T08:00:11.347000Z')
"""
FILL = {
    column: f"UPDATE task_audits SET {column} = ? WHERE audit_id = ? AND {column} IS NULL"
    for column in ("source_event_ts", "supervisor_processed_at")
}


def start(path: Path, seed: int) -> subprocess.Popen[str]:
    """Start a writer as a process of its own; it is at work when this returns."""
    process = subprocess.Popen(
        [sys.executable, __file__, path, "--seed", str(seed)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.readline()
    return process


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    """End a writer that start() has started; return what it did."""
    done: dict[str, Any] = json.loads(process.communicate(timeout=30)[0])
    return done


def write(path: str, seed: int) -> dict[str, Any]:
    """Write until standard input ends; return what became of it."""
    chance = random.Random(seed)
    store = sqlite3.connect(path, timeout=OWN_TIMEOUT, isolation_level=None)
    highest = store.execute("SELECT max(audit_id) FROM task_audits").fetchone()[0]
    done: dict[str, Any] = {"waits": [], "refused": 0, "inserted": [], "filled": []}
    print("ready", flush=True)
    while not select.select([sys.stdin], [], [], chance.uniform(0.001, 0.005))[0]:
        audit_id = chance.randint(1, highest)
        column = chance.choice(list(FILL))
        value = f"2026-01-01T00:00:00.{chance.randrange(10**6):06}Z"
        begun = time.monotonic()
        try:
            store.execute("BEGIN IMMEDIATE")
            inserted = store.execute(INSERT).lastrowid
            filled = store.execute(FILL[column], (value, audit_id)).rowcount
            store.execute("COMMIT")
        except sqlite3.OperationalError:
            done["refused"] += 1
            if store.in_transaction:
                store.execute("ROLLBACK")
            continue
        done["waits"].append((time.monotonic() - begun) * 1000)
        done["inserted"].append(inserted)
        if filled:
            done["filled"].append((audit_id, column, value))
    store.close()
    return done


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write to a store until standard input ends.")
    parser.add_argument("path", metavar="PATH", help="the store")
    parser.add_argument("--seed", metavar="S", type=int, default=1)
    args = parser.parse_args(argv)
    json.dump(write(args.path, args.seed), sys.stdout)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
