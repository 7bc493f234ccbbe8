#!/usr/bin/env python3
"""Make a sample AgentOS store, to try the backfill on.

    python3 benchmarks/sample_store.py demo.db --rows 100000

The store has the table and the indexes of migration v21, neighbours as they are
in stores of today, and rows like those of a real one: mostly decisions of the
Supervisor, among them every variant of payload that the backfill knows, some rows
that are already filled, a few that are malformed and a few with an odd created_at.
The same seed makes the same rows.

The tests and the benchmark take their schema from here.
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 - before the imports that older ones do not have
    sys.exit("sample_store.py needs Python 3.11 or later: run it with a newer one")

import argparse
import contextlib
import json
import os
import random
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

TABLE = """
CREATE TABLE task_audits (
    audit_id INTEGER PRIMARY KEY AUTOINCREMENT,
    task_id TEXT NOT NULL,
    level TEXT DEFAULT 'info',
    event_type TEXT NOT NULL,
    payload TEXT,
    created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP,
    decision_id TEXT,
    source_event_ts TEXT,
    supervisor_processed_at TEXT,
    verdict_id TEXT,
    repo_id TEXT
);
CREATE TABLE schema_version (
    version TEXT PRIMARY KEY,
    applied_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP
);
"""

V21_INDEXES = """
CREATE INDEX idx_task_audits_source_event_ts
    ON task_audits (source_event_ts) WHERE source_event_ts IS NOT NULL;
CREATE INDEX idx_task_audits_decision_lag
    ON task_audits (source_event_ts, supervisor_processed_at)
    WHERE source_event_ts IS NOT NULL AND supervisor_processed_at IS NOT NULL;
CREATE INDEX idx_task_audits_event_source_ts
    ON task_audits (event_type, source_event_ts) WHERE source_event_ts IS NOT NULL;
"""

OTHER_INDEXES = """
CREATE INDEX idx_task_audits_lag ON task_audits (supervisor_processed_at);
CREATE INDEX idx_task_audits_task ON task_audits (task_id);
CREATE INDEX idx_task_audits_level ON task_audits (level);
CREATE INDEX idx_task_audits_event ON task_audits (event_type);
CREATE INDEX idx_task_audits_created ON task_audits (created_at DESC);
CREATE INDEX idx_task_audits_task_ts ON task_audits (task_id, created_at);
CREATE INDEX idx_task_audits_event_created ON task_audits (event_type, created_at DESC);
CREATE INDEX idx_task_audits_task_event_type
    ON task_audits (task_id, event_type, created_at DESC);
CREATE INDEX idx_task_audits_repo ON task_audits (repo_id);
CREATE INDEX idx_task_audits_task_repo ON task_audits (task_id, repo_id);
CREATE INDEX idx_task_audits_repo_created ON task_audits (repo_id, created_at DESC);
"""

SCHEMA = TABLE + V21_INDEXES + OTHER_INDEXES
VERSIONS = [f"0.{minor}.0" for minor in (1, *range(4, 22))]

# What stands beside the table in a store of today: JSON in an index, a CHECK, a generated
# column, a view and a trigger, a search index, and versions in other spellings.
NEIGHBOURS = """
CREATE TABLE tasks (
    task_id TEXT PRIMARY KEY,
    metadata TEXT CHECK (metadata IS NULL OR json_valid(metadata)),
    priority TEXT GENERATED ALWAYS AS (json_extract(metadata, '$.priority')) VIRTUAL
);
CREATE INDEX idx_tasks_route ON tasks (json_extract(metadata, '$.route'));
CREATE VIEW blocked_tasks AS
    SELECT task_id, json_extract(payload, '$.reason') AS reason
      FROM task_audits WHERE event_type = 'SUPERVISOR_BLOCKED' AND json_valid(payload);
CREATE TABLE task_events (task_id TEXT, seen_at TEXT);
CREATE TRIGGER trg_tasks_metadata AFTER UPDATE OF metadata ON tasks BEGIN
    INSERT INTO task_events VALUES (new.task_id, json_extract(new.metadata, '$.at'));
END;
"""
SEARCH_INDEX = "CREATE VIRTUAL TABLE tasks_fts USING fts5(task_id, metadata)"
ODD_VERSIONS = ["49", "v66", "0.99.0-v99"]

INSERT_ROW = """
INSERT INTO task_audits (task_id, level, event_type, payload, created_at, decision_id,
                         source_event_ts, supervisor_processed_at)
VALUES (?, ?, ?, ?, ?, ?, ?, ?)
"""

OTHER_EVENTS = ["TASK_CREATED", "GUARDIAN_VERDICT_APPLIED", "tool_invocation_start"]
DECISIONS = {
    "allow": "SUPERVISOR_ALLOWED",
    "pause": "SUPERVISOR_PAUSED",
    "block": "SUPERVISOR_BLOCKED",
    "retry": "SUPERVISOR_RETRY_RECOMMENDED",
    "decide": "SUPERVISOR_DECISION",
    "apply": "SUPERVISOR_DECISION_APPLIED",
}
# AgentOS writes letters that are not ASCII as they are.
REASONS = ["no findings — allowed", "risk gate: “high”", "策略 matched"]
FIRST_DAY = datetime(2026, 1, 5, 8, tzinfo=UTC)


def iso(moment: datetime) -> str:
    """The Supervisor's own form: microseconds and `Z`."""
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def sqlite_time(moment: datetime) -> str:
    """The form of SQLite's CURRENT_TIMESTAMP: UTC, seconds, no offset."""
    return moment.strftime("%Y-%m-%d %H:%M:%S")


def epoch_ms(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)


def epoch(moment: datetime) -> float:
    return moment.timestamp()


# What a payload says of its two moments: {field: (which moment, how it is written)}.
Variant = dict[str, tuple[str, Callable[[datetime], object]]]
BOTH_FIELDS: Variant = {
    "source_event_ts": ("event", str),
    "supervisor_processed_at": ("done", iso),
}
# And how often it is so: (weight, variant).
VARIANTS: list[tuple[int, Variant]] = [
    (55, {"timestamp": ("done", iso)}),
    (14, BOTH_FIELDS),
    (6, {"source_ts": ("event", iso), "processed_at": ("done", iso)}),
    (6, {"event_timestamp": ("event", iso), "timestamp": ("done", iso)}),
    (5, {"task_created_at": ("event", sqlite_time), "timestamp": ("done", iso)}),
    (5, {"source_event_ts": ("event", epoch_ms), "supervisor_processed_at": ("done", epoch)}),
    (3, {"source_event_ts": ("event", lambda _moment: ""), "source_ts": ("event", iso)}),
    (3, {"processed_at": ("done", lambda _moment: {}), "source_ts": ("event", lambda _moment: 7)}),
    (3, {}),
]
WEIGHTS = [weight for weight, _fields in VARIANTS]


def make_rows(count: int, seed: int) -> Iterator[tuple[object, ...]]:
    """Yield `count` rows in the order of INSERT_ROW's columns, in the order of time."""
    chance = random.Random(seed)
    now = FIRST_DAY
    for number in range(count):
        now += timedelta(milliseconds=chance.randint(100, 20_000))
        created_at: object = iso(now) if chance.random() < 0.85 else sqlite_time(now)
        task_id = f"01J{chance.randrange(10**6):023d}"
        if chance.random() < 0.15:
            event_type = chance.choice(OTHER_EVENTS)
            yield (
                task_id,
                "info",
                event_type,
                '{"note": "not the Supervisor\'s"}',
                created_at,
                None,
                None,
                None,
            )
            continue

        done = now - timedelta(milliseconds=chance.randint(5, 900))
        event = done - timedelta(milliseconds=round(chance.lognormvariate(7, 1)))
        kind = chance.choice(list(DECISIONS))
        decision_id = f"decision_{chance.getrandbits(48):012x}"
        moments = {"event": event, "done": done}
        variant = chance.choices(VARIANTS, WEIGHTS)[0][1]
        source_event_ts = supervisor_processed_at = None
        oddity = chance.random()
        if oddity < 0.04:  # filled already, or half filled
            variant = BOTH_FIELDS
            supervisor_processed_at = iso(done)
            source_event_ts = str(event) if oddity < 0.03 else None
        times = {name: write(moments[which]) for name, (which, write) in variant.items()}
        text = json.dumps(
            {
                "decision_id": decision_id,
                "decision_type": kind,
                "reason": chance.choice(REASONS),
                "findings": [
                    {
                        "finding_id": f"finding_{chance.getrandbits(48):012x}",
                        "category": "risk",
                        "severity": chance.choice(["low", "high", "critical"]),
                        "description": f"evaluator finding {chance.getrandbits(48):012x}",
                        "evidence": [f"{chance.getrandbits(48):012x}"],
                        "source": "evaluator",
                    }
                    for _finding in range(chance.randint(0, 3))
                ],
                "actions": [
                    {"action_type": "write_audit", "target": task_id, "params": {"n": number % 7}}
                ],
                **times,
            },
            ensure_ascii=False,
        )
        payload: str | None = text
        if 0.04 <= oddity < 0.044:
            payload = chance.choice([text[: len(text) // 2], "{'single': 'quotes'}", "oops"])
        elif 0.044 <= oddity < 0.06:
            payload = chance.choice([None, "", "  ", "{}", "[]", "42"])
        elif 0.06 <= oddity < 0.065:
            created_at = chance.choice([epoch_ms(now), iso(now)[:10], "yesterday", None])
        yield (
            task_id,
            "info",
            DECISIONS[kind],
            payload,
            created_at,
            None,
            source_event_ts,
            supervisor_processed_at,
        )


def make_store(
    path: str | os.PathLike[str], rows: int = 10_000, seed: int = 1, journal_mode: str = "wal"
) -> None:
    """Write a new store with `rows` rows to `path`.

    Raises FileExistsError where there is a file already.
    """
    Path(path).touch(exist_ok=False)
    store = sqlite3.connect(path)
    try:
        store.execute(f"PRAGMA journal_mode = {journal_mode}")
        store.execute("PRAGMA synchronous = OFF")
        # Indexes after the rows: many times faster, and the same result.
        store.executescript(TABLE)
        with store:
            store.executemany(
                "INSERT INTO schema_version (version) VALUES (?)",
                [(version,) for version in VERSIONS + ODD_VERSIONS],
            )
            store.executemany(INSERT_ROW, make_rows(rows, seed))
        store.executescript(V21_INDEXES + OTHER_INDEXES + NEIGHBOURS)
        with contextlib.suppress(sqlite3.OperationalError):  # a SQLite built without FTS5
            store.execute(SEARCH_INDEX)
    finally:
        store.close()


def _row_count(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of rows")
    return int(text)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Make a sample AgentOS store.")
    parser.add_argument("path", metavar="PATH", help="the file to make; it must not exist yet")
    parser.add_argument(
        "--rows",
        metavar="N",
        type=_row_count,
        default=10_000,
        help="how many rows (default %(default)s)",
    )
    parser.add_argument(
        "--seed",
        metavar="S",
        type=int,
        default=1,
        help="the same seed makes the same rows (default %(default)s)",
    )
    args = parser.parse_args(argv)
    try:
        make_store(args.path, args.rows, args.seed)
    except FileExistsError:
        print(f"sample_store: {args.path} exists already: name a new file", file=sys.stderr)
        return 1
    except (OSError, sqlite3.Error) as error:
        print(f"sample_store: cannot make {args.path}: {error}", file=sys.stderr)
        return 1
    print(f"{args.path}: {args.rows:,} rows")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
