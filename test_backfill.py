#!/usr/bin/env python3
"""Tests of the backfill: python3 test_backfill.py

Nothing but Python is needed. The stores are made in a temporary folder and removed.
"""

from __future__ import annotations

import ast
import contextlib
import fcntl
import io
import json
import math
import os
import pty
import random
import re
import shutil
import signal
import sqlite3
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
import unittest
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE / "benchmarks")]

import sample_store  # noqa: E402
import writer  # noqa: E402

import backfill_audit_decision_fields as backfill  # noqa: E402

SCRIPT = HERE / "backfill_audit_decision_fields.py"
COLUMNS = ("source_event_ts", "supervisor_processed_at")
CREATED = "2026-01-05T08:00:11.347000Z"
EVENT = "2026-01-05T08:00:01.000000Z"
DONE = "2026-01-05T08:00:09.500000Z"
SOUND = json.dumps({"source_event_ts": EVENT, "supervisor_processed_at": DONE})
MALFORMED = "{'not': json}"


def read_as_agentos(text: str) -> datetime:
    """What AgentOS's readers do with a column."""
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


class Result(NamedTuple):
    """What a run of the tool left behind."""

    code: int | None
    out: str
    err: str

    @property
    def summary(self) -> dict[str, Any]:
        summary: dict[str, Any] = json.loads(self.out)
        return summary


def run(*arguments: object) -> Result:
    """Run the tool in this process."""
    out, err = io.StringIO(), io.StringIO()
    code: int | None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = backfill.main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else None
    return Result(code, out.getvalue(), err.getvalue())


def figures(summary: Mapping[str, Any]) -> dict[str, Any]:
    """A summary without what differs between a run and a dry run."""
    return {
        key: value
        for key, value in summary.items()
        if key not in ("dry_run", "elapsed_seconds", "rows_per_second")
    }


class StoreTest(unittest.TestCase):
    """Gives each test a folder and a store in it."""

    def setUp(self) -> None:
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.path = self.folder / "store.db"

    def connect(self, path: Path | None = None) -> sqlite3.Connection:
        connection = sqlite3.connect(path or self.path, isolation_level=None, timeout=5)
        self.addCleanup(connection.close)
        return connection

    def make(
        self,
        rows: Iterable[Mapping[str, object]] = (),
        *,
        path: Path | None = None,
        journal_mode: str = "delete",
        extra: str = "",
    ) -> None:
        """Make a store with the v21 schema; a row's columns default to a sound, open one."""
        with contextlib.closing(sqlite3.connect(path or self.path)) as store:
            store.execute(f"PRAGMA journal_mode = {journal_mode}")
            store.execute("PRAGMA synchronous = OFF")
            store.executescript(sample_store.SCHEMA + extra)
            with store:
                store.executemany(
                    "INSERT INTO schema_version (version) VALUES (?)",
                    [(version,) for version in sample_store.VERSIONS],
                )
                self.insert(store, rows)

    @staticmethod
    def insert(store: sqlite3.Connection, rows: Iterable[Mapping[str, object]]) -> None:
        store.executemany(
            """INSERT INTO task_audits (audit_id, task_id, event_type, payload, created_at,
                                        source_event_ts, supervisor_processed_at)
               VALUES (:audit_id, 'task', :event_type, :payload, :created_at,
                       :source_event_ts, :supervisor_processed_at)""",
            [
                {
                    "audit_id": None,
                    "event_type": "SUPERVISOR_ALLOWED",
                    "payload": SOUND,
                    "created_at": CREATED,
                    "source_event_ts": None,
                    "supervisor_processed_at": None,
                    **row,
                }
                for row in rows
            ],
        )

    def tool(self, *options: object) -> Result:
        return run("--db-path", self.path, *options)

    def fill(self, *options: object) -> dict[str, Any]:
        """Run the tool to its end and return the JSON summary."""
        result = self.tool("--json", *options)
        self.assertEqual(result.code, 0, result.err)
        return result.summary

    def columns(self, path: Path | None = None) -> list[tuple[Any, Any]]:
        return self.query(
            "SELECT source_event_ts, supervisor_processed_at FROM task_audits ORDER BY audit_id",
            path,
        )

    def query(self, sql: str, path: Path | None = None) -> list[Any]:
        with contextlib.closing(sqlite3.connect(path or self.path)) as store, store:
            return store.execute(sql).fetchall()

    def files(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.folder.iterdir()}


# --- Extraction -----------------------------------------------------------------

# What is usable as a timestamp, as a JSON value or as created_at: (id, value, written).
TIMESTAMPS: list[tuple[str, object, str | None]] = [
    ("Z", "2026-01-05T08:00:11.347000Z", "2026-01-05T08:00:11.347000Z"),
    ("offset", "2026-01-05T10:00:11+02:00", "2026-01-05T10:00:11+02:00"),
    ("no offset", "2026-01-05T08:00:11", "2026-01-05T08:00:11"),
    ("SQLite's form", "2026-01-05 08:00:11", "2026-01-05 08:00:11"),
    ("a date", "2026-01-05", "2026-01-05"),
    ("a date without hyphens", "20260105", "20260105"),
    ("a week", "2026-W02-1", "2026-W02-1"),
    ("odd separator", "2026-01-05_08:00", "2026-01-05_08:00"),
    ("epoch seconds", 1769940000, "2026-02-01T10:00:00.000Z"),
    ("epoch seconds with a fraction", 1769940000.123, "2026-02-01T10:00:00.123Z"),
    ("epoch milliseconds", 1769940000123, "2026-02-01T10:00:00.123Z"),
    ("epoch milliseconds as a float", 1769940000123.0, "2026-02-01T10:00:00.123Z"),
    ("the first second of 2000", 946684800, "2000-01-01T00:00:00.000Z"),
    ("the last second of 2099", 4102444799, "2099-12-31T23:59:59.000Z"),
    ("before 2000", 946684799, None),
    ("after 2099", 4133980801, None),
    ("milliseconds before 2000", 946684799999, None),
    ("zero", 0, None),
    ("negative", -1769940000, None),
    ("huge", 10**400, None),
    ("infinite", float("inf"), None),
    ("not a number", float("nan"), None),
    ("true", True, None),
    ("false", False, None),
    ("null", None, None),
    ("empty text", "", None),
    ("blank text", "  ", None),
    ("a word", "yesterday", None),
    ("a thirteenth month", "2026-13-01T00:00:00Z", None),
    ("blank around it", " 2026-01-05T08:00:11Z", None),
    ("a small z", "2026-01-05T08:00:11z", None),
    ("not ASCII", "2026-01-05\N{EM DASH}08:00:11", None),
    ("digits that are not ASCII", "２０２６-01-05T08:00:11Z", None),
    ("a number as text", "1769940000", None),
    ("a Z that readers would break", "2026-01-05Z08:00:11", None),
    ("an object", {"$date": 1769940000}, None),
    ("a list", [1769940000], None),
]

# What is no object, so that only created_at is left: (id, payload).
WITHOUT_FIELDS: list[tuple[str, object]] = [
    ("NULL", None),
    ("empty", ""),
    ("blank", " \t\r\n"),
    ("an empty BLOB", b""),
    ("an empty object", "{}"),
    ("a list", "[]"),
    ("a list of objects", '[{"timestamp": "2026-01-05T08:00:11Z"}]'),
    ("a number", "42"),
    ("a text", '"2026-01-05T08:00:11Z"'),
    ("true", "true"),
    ("null", "null"),
]

NOT_JSON: list[tuple[str, object]] = [
    ("a word", "oops"),
    ("single quotes", "{'timestamp': '2026-01-05T08:00:11Z'}"),
    ("cut off", '{"timestamp": "2026-01-05T08:00:11Z"'),
    ("something behind it", '{"timestamp": "2026-01-05T08:00:11Z"} x'),
    ("NUL behind it", '{"timestamp": "2026-01-05T08:00:11Z"}\0'),
    ("a byte order mark", "\ufeff{}"),
    ("a control character in a text", '{"timestamp": "\x1b"}'),
    ("too deep", "[" * 200_000 + "]" * 200_000),
    ("UTF-8 that is none", b'{"timestamp": "\xff"}'),
    ("a BLOB that does not parse", b"\x00\x01\x02"),
    ("UTF-16", '{"timestamp": 1769940000}'.encode("utf-16")),
]


class ExtractTimestampsTest(unittest.TestCase):
    def extract(self, payload: object, created_at: object = CREATED) -> tuple[Any, Any]:
        found = backfill.extract_timestamps(payload, created_at)
        self.assertEqual(list(found), list(COLUMNS))
        return found["source_event_ts"], found["supervisor_processed_at"]

    def test_a_candidate_is_taken_to_the_letter_or_counts_as_missing(self) -> None:
        for name, value, written in TIMESTAMPS:
            with self.subTest(name):
                payload = json.dumps({"source_event_ts": value, "supervisor_processed_at": value})
                expected = CREATED if written is None else written
                self.assertEqual(self.extract(payload), (expected, expected))

    def test_created_at_goes_by_the_same_rule(self) -> None:
        for name, value, written in TIMESTAMPS:
            with self.subTest(name):
                self.assertEqual(self.extract("{}", value), (written, written))

    def test_each_field_wins_over_those_behind_it_and_over_created_at(self) -> None:
        for column, names in backfill.FIELDS.items():
            for position, name in enumerate(names):
                with self.subTest(column=column, field=name):
                    fields = {
                        later: f"2026-01-0{day}T00:00:00Z"
                        for day, later in enumerate(names[position:], 1)
                    }
                    found = backfill.extract_timestamps(json.dumps(fields), CREATED)
                    self.assertEqual(found[column], "2026-01-01T00:00:00Z")

    def test_the_order_of_fields_is_the_documented_one(self) -> None:
        self.assertEqual(
            backfill.FIELDS,
            {
                "source_event_ts": (
                    "source_event_ts",
                    "source_ts",
                    "event_timestamp",
                    "task_created_at",
                ),
                "supervisor_processed_at": (
                    "supervisor_processed_at",
                    "processed_at",
                    "timestamp",
                ),
            },
        )

    def test_an_unusable_field_makes_way_for_the_next(self) -> None:
        payload = json.dumps(
            {
                "source_event_ts": "",
                "source_ts": {},
                "event_timestamp": True,
                "task_created_at": EVENT,
                "supervisor_processed_at": 7,
                "processed_at": None,
                "timestamp": DONE,
            }
        )
        self.assertEqual(self.extract(payload), (EVENT, DONE))

    def test_a_field_of_one_column_says_nothing_of_the_other(self) -> None:
        self.assertEqual(self.extract(json.dumps({"timestamp": DONE})), (CREATED, DONE))
        self.assertEqual(self.extract(json.dumps({"source_ts": EVENT})), (EVENT, CREATED))

    def test_the_payloads_own_created_at_is_no_candidate(self) -> None:
        self.assertEqual(self.extract(json.dumps({"created_at": EVENT}), None), (None, None))

    def test_a_payload_without_fields_leaves_created_at(self) -> None:
        for name, payload in WITHOUT_FIELDS:
            with self.subTest(name):
                self.assertEqual(self.extract(payload), (CREATED, CREATED))

    def test_a_payload_that_is_not_json_yields_nothing_and_a_reason(self) -> None:
        for name, payload in NOT_JSON:
            with self.subTest(name):
                self.assertEqual(self.extract(payload), (None, None))
                self.assertTrue(backfill.extract_timestamps(payload, CREATED).malformed)

    def test_json_in_a_blob_and_blanks_around_json_are_read(self) -> None:
        self.assertEqual(self.extract(SOUND.encode()), (EVENT, DONE))
        self.assertEqual(self.extract(f"\r\n\t {SOUND} \n"), (EVENT, DONE))

    def test_an_integer_longer_than_python_converts_is_still_json(self) -> None:
        payload = f'{{"n": {"9" * 5000}, "source_ts": "{EVENT}", "timestamp": {"9" * 5000}}}'
        self.assertEqual(self.extract(payload), (EVENT, CREATED))

    def test_the_last_of_duplicate_keys_counts(self) -> None:
        payload = f'{{"timestamp": "{EVENT}", "timestamp": "{DONE}"}}'
        self.assertEqual(self.extract(payload), (CREATED, DONE))

    def test_it_says_which_field_each_value_came_from(self) -> None:
        found = backfill.extract_timestamps(json.dumps({"processed_at": DONE}), CREATED)
        self.assertEqual(found.sources, ("created_at", "processed_at"))
        found = backfill.extract_timestamps("{}", None)
        self.assertEqual(found.sources, (None, None))

    def test_whatever_it_finds_agentos_can_read(self) -> None:
        chance = random.Random(3)
        usable = 0
        for _ in range(20_000):
            text = "2026-01-05T08:00:11.347Z"
            for _edit in range(chance.randint(0, 3)):
                at = chance.randrange(len(text) + 1)
                text = (
                    text[:at] + chance.choice("Z+-:. T0129W,z") + text[at + chance.randint(0, 1) :]
                )
            value, _ = self.extract(json.dumps({"source_ts": text}), None)
            if value is not None:
                usable += 1
                self.assertEqual(value, text)
                self.assertEqual(read_as_agentos(value), datetime.fromisoformat(value))
        self.assertGreater(usable, 5000)


# (id, source_event_ts, supervisor_processed_at: the payload's; then what stands; then
# what is expected)
PAIRS: list[tuple[str, tuple[Any, Any], tuple[Any, Any], tuple[Any, Any]]] = [
    (
        "ours without offset, ours with",
        ("2026-01-05 08:00:01", DONE),
        (None, None),
        ("2026-01-05T08:00:01Z", DONE),
    ),
    (
        "ours with offset, ours without",
        (EVENT, "2026-01-05T08:00:09.5"),
        (None, None),
        (EVENT, "2026-01-05T08:00:09.500000Z"),
    ),
    (
        "ours without offset beside one that stands with",
        ("2026-01-05", None),
        (None, "2026-01-05T09:00:00+01:00"),
        ("2026-01-05T00:00:00Z", "2026-01-05T09:00:00+01:00"),
    ),
    (
        "ours with offset beside one that stands without",
        ("2026-01-05T10:30:00.25+02:00", None),
        (None, "2026-01-05 08:31:00"),
        ("2026-01-05T08:30:00.250000", "2026-01-05 08:31:00"),
    ),
    (
        "the same for the other column",
        (None, DONE),
        ("2026-01-05T08:00:00", None),
        ("2026-01-05T08:00:00", "2026-01-05T08:00:09.500000"),
    ),
    (
        "both without offset stay so",
        ("2026-01-05 08:00:01", "2026-01-05T08:00:02"),
        (None, None),
        ("2026-01-05 08:00:01", "2026-01-05T08:00:02"),
    ),
    (
        "offsets may differ",
        ("2026-01-05T10:00:00+02:00", DONE),
        (None, None),
        ("2026-01-05T10:00:00+02:00", DONE),
    ),
    (
        "beside rubbish, ours is as extracted",
        ("2026-01-05 08:00:01", None),
        (None, "rubbish"),
        ("2026-01-05 08:00:01", "rubbish"),
    ),
    (
        "beside a BLOB, ours is as extracted",
        (None, "2026-01-05 08:00:01"),
        (b"\xff", None),
        (b"\xff", "2026-01-05 08:00:01"),
    ),
    (
        "what readers can read beside it counts, though we would not write it",
        (EVENT, None),
        (None, "2026-01-05\N{EM DASH}08:00"),
        ("2026-01-05T08:00:01", "2026-01-05\N{EM DASH}08:00"),
    ),
    (
        "what has no instant in UTC is not written",
        ("0001-01-01T00:00:00+14:00", None),
        (None, "2026-01-05 08:00:00"),
        (None, "2026-01-05 08:00:00"),
    ),
]


class PairTest(StoreTest):
    """Rule 5: a pair can always be subtracted, and what stands is never changed."""

    def test_pairs(self) -> None:
        self.make(
            {
                "payload": json.dumps(
                    {"source_event_ts": found[0], "supervisor_processed_at": found[1]}
                ),
                "source_event_ts": standing[0],
                "supervisor_processed_at": standing[1],
            }
            for _name, found, standing, _expected in PAIRS
        )
        self.fill()
        for (name, _found, _standing, expected), columns in zip(PAIRS, self.columns(), strict=True):
            with self.subTest(name):
                self.assertEqual(columns, expected)

    def test_every_pair_the_tool_makes_can_be_subtracted(self) -> None:
        forms = ["2026-01-05", "2026-01-05 08:00:00", "2026-01-05T08:00:00Z", 1769940000, None,
                 "2026-01-05T08:00:00-03:00", "20260105T080000"]  # fmt: skip
        written = [form for form in forms if isinstance(form, str)]
        rows = [
            {
                "payload": json.dumps({"source_ts": source, "processed_at": processed}),
                "created_at": created_at,
                **standing,
            }
            for source in forms
            for processed in forms
            for created_at in written
            for standing in (
                {},
                *({"source_event_ts": text} for text in written),
                *({"supervisor_processed_at": text} for text in written),
            )
        ]
        self.make(rows)
        summary = self.fill()
        self.assertEqual(summary["filled"], len(rows))
        for source, processed in self.columns():
            read_as_agentos(processed) - read_as_agentos(source)


# --- Runs -----------------------------------------------------------------------------


class ScenarioTest(StoreTest):
    """The six scenarios that were asked for."""

    def test_scenario_1_standard_payload_with_all_fields(self) -> None:
        self.make([{"payload": SOUND}])
        summary = self.fill()
        self.assertEqual(self.columns(), [(EVENT, DONE)])
        self.assertEqual(summary["filled"], 1)
        self.assertEqual(summary["sources"]["source_event_ts"]["source_event_ts"], 1)
        self.assertEqual(
            summary["sources"]["supervisor_processed_at"]["supervisor_processed_at"], 1
        )

    def test_scenario_2_alternate_field_names(self) -> None:
        sources = ["source_ts", "event_timestamp", "task_created_at"]
        processed = ["processed_at", "timestamp"]
        pairs = [(a, b) for a in sources for b in processed]
        self.make({"payload": json.dumps({a: EVENT, b: DONE})} for a, b in pairs)
        summary = self.fill()
        self.assertEqual(self.columns(), [(EVENT, DONE)] * len(pairs))
        for name in sources:
            self.assertEqual(summary["sources"]["source_event_ts"][name], 2)
        for name in processed:
            self.assertEqual(summary["sources"]["supervisor_processed_at"][name], 3)

    def test_scenario_3_missing_fields_fall_back_to_created_at(self) -> None:
        self.make(
            [{"payload": '{"reason": "no findings"}'}, {"payload": f'{{"timestamp": "{DONE}"}}'}]
        )
        summary = self.fill()
        self.assertEqual(self.columns(), [(CREATED, CREATED), (CREATED, DONE)])
        self.assertEqual(summary["sources"]["source_event_ts"]["created_at"], 2)
        self.assertEqual(summary["sources"]["supervisor_processed_at"]["created_at"], 1)

    def test_scenario_4_empty_payload_falls_back_to_created_at(self) -> None:
        self.make({"payload": payload} for payload in (None, "", "   ", "{}", "[]", b""))
        self.assertEqual(self.fill()["filled"], 6)
        self.assertEqual(self.columns(), [(CREATED, CREATED)] * 6)

    def test_scenario_5_invalid_json_is_logged_and_left_null_and_the_run_goes_on(self) -> None:
        self.make([{}, {"payload": MALFORMED}, {}])
        result = self.tool("--json")
        self.assertEqual(result.code, 0)
        self.assertEqual(self.columns(), [(EVENT, DONE), (None, None), (EVENT, DONE)])
        self.assertEqual(result.summary["filled"], 2)
        self.assertEqual(result.summary["left_null"]["malformed_json"], 1)
        self.assertRegex(result.err, r"warning: audit_id 2: .*not JSON: Expecting property name")

    def test_scenario_6_events_that_are_not_the_supervisors_are_untouched(self) -> None:
        others = ["TASK_CREATED", "GUARDIAN_VERDICT_APPLIED", "tool_invocation_start", "SUPERVISE"]
        ours = ["SUPERVISOR_ALLOWED", "SUPERVISOR_ERROR", "X_SUPERVISOR", "supervisor_paused"]
        self.make({"event_type": event_type} for event_type in others + ours)
        summary = self.fill()
        self.assertEqual(self.columns(), [(None, None)] * 4 + [(EVENT, DONE)] * 4)
        self.assertEqual(summary["supervisor_rows"], 4)


class RunTest(StoreTest):
    def test_a_value_that_stands_is_never_changed_column_by_column(self) -> None:
        stands = "2020-02-02T02:02:02Z"
        self.make(
            [
                {"source_event_ts": stands},
                {"supervisor_processed_at": stands},
                {"source_event_ts": stands, "supervisor_processed_at": stands},
                {"source_event_ts": ""},
                {"supervisor_processed_at": "rubbish", "payload": MALFORMED},
            ]
        )
        summary = self.fill()
        self.assertEqual(
            self.columns(),
            [(stands, DONE), (EVENT, stands), (stands, stands), ("", DONE), (None, "rubbish")],
        )
        self.assertEqual(summary["already_filled"], 1)
        self.assertEqual(summary["filled"], 3)
        self.assertEqual(summary["sources"]["source_event_ts"]["source_event_ts"], 1)
        self.assertEqual(
            summary["sources"]["supervisor_processed_at"]["supervisor_processed_at"], 2
        )

    def test_nothing_else_in_the_table_is_touched(self) -> None:
        sample_store.make_store(self.path, rows=500)
        others = """SELECT audit_id, task_id, level, event_type, payload, created_at, decision_id,
                           verdict_id, repo_id FROM task_audits ORDER BY audit_id"""
        before = self.query(others)
        self.fill()
        self.assertEqual(self.query(others), before)

    def test_more_malformed_rows_than_a_batch_holds_do_not_stop_the_run(self) -> None:
        self.make([*[{"payload": MALFORMED}] * 25, {}, *[{"payload": MALFORMED}] * 25, {}])
        summary = self.fill("--batch-size", 10)
        self.assertEqual(summary["filled"], 2)
        self.assertEqual(summary["left_null"]["malformed_json"], 50)
        self.assertEqual(summary["batches"], 6)

    def test_any_batch_size_comes_to_the_same_and_counts_its_batches(self) -> None:
        expected = None
        for size, batches in ((1, 23), (7, 4), (22, 2), (23, 1), (24, 1), (10**30, 1)):
            with self.subTest(size):
                path = self.folder / f"{size}.db"
                self.make(
                    ({"payload": SOUND if n % 5 else MALFORMED} for n in range(23)), path=path
                )
                result = run("--db-path", path, "--json", "--batch-size", size)
                self.assertEqual(result.summary["batches"], batches)
                expected = expected or self.columns(path)
                self.assertEqual(self.columns(path), expected)

    def test_a_batch_is_a_transaction_of_its_own(self) -> None:
        self.make([{}] * 10)
        commits = []
        write = backfill.backfill_batch

        def watch(store: sqlite3.Connection, batch: Any, *rest: Any) -> float:
            held = write(store, batch, *rest)
            commits.append((len(batch), sum(None not in pair for pair in self.columns())))
            return held

        with mock.patch.object(backfill, "backfill_batch", watch):
            self.fill("--batch-size", 4)
        self.assertEqual(commits, [(4, 4), (4, 8), (2, 10)])

    def test_audit_ids_may_be_negative_sparse_and_extreme(self) -> None:
        ids = [-(2**63), -5, -1, 0, 1, 7, 10**6, 2**40, 2**63 - 1]
        self.make({"audit_id": audit_id} for audit_id in ids)
        for size in (1, 2, 1000):
            with self.subTest(size):
                path = self.folder / f"{size}.db"
                self.make(({"audit_id": audit_id} for audit_id in ids), path=path)
                self.assertEqual(run("--db-path", path, "--batch-size", size).code, 0)
                self.assertEqual(self.columns(path), [(EVENT, DONE)] * len(ids))

    def test_a_table_of_many_pages_is_filled_to_its_last_row(self) -> None:
        rows = 2 * backfill.PAGE_ROWS + 1
        self.make(
            {"event_type": "SUPERVISOR_ERROR" if n % 3 == 0 else "TASK_CREATED"}
            for n in range(rows)
        )
        summary = self.fill("--batch-size", 300)
        self.assertEqual(summary["filled"], len(range(0, rows, 3)))
        self.assertEqual(summary["supervisor_rows"], len(range(0, rows, 3)))

    def test_an_empty_table_is_done_at_once(self) -> None:
        self.make()
        summary = self.fill()
        self.assertEqual((summary["status"], summary["to_fill"]), ("completed", 0))
        self.assertEqual(summary["coverage_after_pct"], 100.0)

    def test_a_second_run_writes_nothing(self) -> None:
        for mode in ("delete", "wal"):
            with self.subTest(mode):
                path = self.folder / f"{mode}.db"
                sample_store.make_store(path, rows=2000, journal_mode=mode)
                first = run("--db-path", path, "--json").summary
                before = path.read_bytes()
                second = run("--db-path", path, "--json").summary
                self.assertEqual(path.read_bytes(), before)
                self.assertEqual(second["filled"], 0)
                self.assertEqual(second["to_fill"], sum(first["left_null"].values()))
                self.assertEqual(second["left_null"], first["left_null"])

    def test_a_dry_run_leaves_every_byte_and_foretells_the_run(self) -> None:
        for mode in ("delete", "wal"):
            with self.subTest(mode):
                path = self.folder / f"{mode}.db"
                sample_store.make_store(path, rows=1500, journal_mode=mode)
                before = path.read_bytes()
                dry = run("--db-path", path, "--json", "--dry-run", "--batch-size", 70)
                self.assertEqual(path.read_bytes(), before)
                wet = run("--db-path", path, "--json", "--batch-size", 70)
                self.assertEqual(figures(dry.summary), figures(wet.summary))
                self.assertGreater(wet.summary["left_null"]["malformed_json"], 0)
                self.assertGreater(wet.summary["left_null"]["no_timestamp"], 0)

    def test_the_summary_tells_what_is_in_the_file(self) -> None:
        sample_store.make_store(self.path, rows=3000)
        ours = "FROM task_audits WHERE event_type LIKE '%SUPERVISOR%'"
        both = f"{ours} AND source_event_ts NOT NULL AND supervisor_processed_at NOT NULL"
        rows = self.query(f"SELECT count(*) {ours}")[0][0]
        before = self.query(f"SELECT count(*) {both}")[0][0]
        values = "SELECT count(source_event_ts), count(supervisor_processed_at) FROM task_audits"
        values_before = self.query(values)[0]
        summary = self.fill()
        after = self.query(f"SELECT count(*) {both}")[0][0]
        self.assertEqual(summary["supervisor_rows"], rows)
        self.assertEqual(summary["already_filled"], before)
        self.assertEqual(summary["to_fill"], rows - before)
        self.assertEqual(summary["filled"], after - before)
        self.assertEqual(summary["to_fill"], summary["filled"] + sum(summary["left_null"].values()))
        self.assertAlmostEqual(summary["coverage_before_pct"], 100 * before / rows, places=3)
        self.assertAlmostEqual(summary["coverage_after_pct"], 100 * after / rows, places=3)
        for column, count_before, count_after in zip(
            COLUMNS, values_before, self.query(values)[0], strict=True
        ):
            self.assertEqual(sum(summary["sources"][column].values()), count_after - count_before)

    def test_a_row_with_one_usable_value_gets_it_and_counts_as_left_null(self) -> None:
        self.make([{"payload": f'{{"timestamp": "{DONE}"}}', "created_at": "yesterday"}])
        result = self.tool("--json")
        self.assertEqual(self.columns(), [(None, DONE)])
        self.assertEqual(result.summary["left_null"]["no_timestamp"], 1)
        self.assertEqual(result.summary["sources"]["supervisor_processed_at"]["timestamp"], 1)
        self.assertIn("audit_id 1: source_event_ts NULL: no usable timestamp", result.err)

    def test_a_numeric_created_at_is_an_epoch(self) -> None:
        self.make([{"payload": "{}", "created_at": 1769940000123}])
        self.fill()
        self.assertEqual(self.columns(), [("2026-02-01T10:00:00.123Z",) * 2])

    def test_rows_that_come_while_it_runs_are_left_to_the_next_run(self) -> None:
        self.make([{}] * 5)
        other = self.connect()
        survey = backfill.survey_store

        def survey_and_insert(*arguments: Any) -> backfill.Survey:
            result = survey(*arguments)
            self.insert(other, [{}] * 3)
            return result

        with mock.patch.object(backfill, "survey_store", survey_and_insert):
            summary = self.fill("--batch-size", 1)
        self.assertEqual((summary["to_fill"], summary["filled"]), (5, 5))
        self.assertEqual(self.columns()[5:], [(None, None)] * 3)


class OtherWriterTest(StoreTest):
    """What another process writes between our reading of a row and our writing of it."""

    def fill_after(self, *statements: str) -> dict[str, Any]:
        other = self.connect()
        write = backfill.backfill_batch

        def others_first(*arguments: Any) -> float:
            for statement in statements:
                other.execute(statement)
            return write(*arguments)

        with mock.patch.object(backfill, "backfill_batch", others_first):
            return self.fill()

    def test_its_value_stays_and_ours_is_matched_to_it(self) -> None:
        self.make([{}, {}])
        summary = self.fill_after(
            "UPDATE task_audits SET source_event_ts = '2026-01-01 00:00:00' WHERE audit_id = 1",
            "UPDATE task_audits SET supervisor_processed_at = 'theirs' WHERE audit_id = 2",
        )
        self.assertEqual(
            self.columns(),
            [("2026-01-01 00:00:00", "2026-01-05T08:00:09.500000"), (EVENT, "theirs")],
        )
        self.assertEqual(summary["filled"], 2)
        self.assertEqual(sum(summary["sources"]["source_event_ts"].values()), 1)
        self.assertEqual(sum(summary["sources"]["supervisor_processed_at"].values()), 1)

    def test_a_row_it_filled_counts_as_filled_but_not_as_written_by_us(self) -> None:
        self.make([{}, {}])
        summary = self.fill_after(
            "UPDATE task_audits SET source_event_ts = 'x', supervisor_processed_at = 'y'"
            " WHERE audit_id = 1"
        )
        self.assertEqual(self.columns()[0], ("x", "y"))
        self.assertEqual((summary["filled"], summary["coverage_after_pct"]), (2, 100.0))
        self.assertEqual(sum(summary["sources"]["source_event_ts"].values()), 1)

    def test_a_row_it_deleted_does_not_disturb(self) -> None:
        self.make([{}, {}, {}])
        self.fill_after("DELETE FROM task_audits WHERE audit_id = 2")
        self.assertEqual(self.columns(), [(EVENT, DONE)] * 2)

    def test_a_row_that_is_no_longer_the_supervisors_is_left_alone(self) -> None:
        self.make([{}, {}])
        self.fill_after(
            "UPDATE task_audits SET event_type = 'TASK', source_event_ts = 'x' WHERE audit_id = 1"
        )
        self.assertEqual(self.columns(), [("x", None), (EVENT, DONE)])


# --- The command line ---------------------------------------------------------------------


class UsageTest(StoreTest):
    def test_wrong_usage_exits_with_2_and_names_the_option(self) -> None:
        for arguments, words in (
            (["--batch-size", "0"], "--batch-size: '0' is not a whole number from 1 up"),
            (["--batch-size", "-3"], "--batch-size"),
            (["--batch-size", "many"], "--batch-size: 'many' is not"),
            (["--busy-timeout", "-1"], "--busy-timeout: '-1' is not a number of seconds"),
            (["--busy-timeout", "nan"], "--busy-timeout"),
            (["--pause", "inf"], "--pause"),
            (["--pause", "soon"], "--pause"),
            (["--db-path", ""], "--db-path: a path is needed"),
            (["--db-path"], "--db-path"),
            (["--db-path", "~nobody-of-that-name/store.db"], "names no home folder here"),
            (["--dry"], "unrecognized arguments: --dry"),
            (["store.db"], "unrecognized arguments: store.db"),
        ):
            with self.subTest(arguments):
                result = run(*arguments)
                self.assertEqual((result.code, result.out), (2, ""))
                self.assertIn(words, result.err)

    def test_version_and_help_go_to_stdout(self) -> None:
        self.assertEqual(
            run("--version").out, f"backfill_audit_decision_fields.py {backfill.__version__}\n"
        )
        result = run("--help")
        self.assertEqual((result.code, result.err), (0, ""))
        for option in ("--db-path", "--batch-size", "--dry-run", "--backup", "--busy-timeout",
                       "--pause", "--log-file", "--json", "--quiet", "--version"):  # fmt: skip
            self.assertIn(option, result.out)

    def test_the_default_store_is_the_agents_own(self) -> None:
        (self.folder / ".agentos").mkdir()
        self.make([{}], path=self.folder / ".agentos" / "store.db")
        with mock.patch.dict(os.environ, {"HOME": str(self.folder)}):
            self.assertEqual(run().code, 0)
        self.assertEqual(self.columns(self.folder / ".agentos" / "store.db"), [(EVENT, DONE)])


class BadStoreTest(StoreTest):
    """What cannot be used ends with exit code 1 and one line that says what to do next."""

    def refuse(self, words: str, *options: object) -> None:
        before = self.files()
        for dry in ([], ["--dry-run"]):
            result = self.tool(*options, *dry)
            self.assertEqual((result.code, result.out), (1, ""))
            self.assertRegex(result.err, r"\Aerror: .*\n\Z")
            self.assertIn(words, result.err)
            self.assertEqual(self.files(), before)
        self.assertEqual(self.tool("--json", *options).summary["status"], "failed")

    def test_a_mistyped_path_makes_no_file(self) -> None:
        self.refuse("there is no file")
        self.refuse("--db-path")

    def test_a_folder(self) -> None:
        self.path.mkdir()
        result = self.tool()
        self.assertEqual(result.code, 1)
        self.assertIn("is no file", result.err)

    def test_an_empty_file(self) -> None:
        self.path.touch()
        self.refuse("is empty")

    def test_a_file_that_is_no_database(self) -> None:
        self.path.write_text("not a database, whatever its name says\n" * 100)
        self.refuse("not a SQLite database")

    def test_a_database_without_the_table(self) -> None:
        self.query("CREATE TABLE t (a)")
        self.refuse("no table task_audits")

    def test_a_table_without_the_columns_of_v21(self) -> None:
        self.query(
            "CREATE TABLE task_audits (audit_id INTEGER PRIMARY KEY, event_type, payload,"
            " created_at)"
        )
        self.refuse("no column source_event_ts, supervisor_processed_at")

    def test_a_table_whose_audit_id_is_not_the_rowid(self) -> None:
        for key, constraint in (
            ("INTEGER", ""),
            ("TEXT PRIMARY KEY", ""),
            ("INT PRIMARY KEY", ""),
            ("INTEGER", ", PRIMARY KEY (audit_id, event_type)"),
        ):
            with self.subTest(key, constraint=constraint):
                self.path.unlink(missing_ok=True)
                self.query(
                    f"CREATE TABLE task_audits (audit_id {key}, event_type, payload, created_at,"
                    f" source_event_ts, supervisor_processed_at{constraint})"
                )
                self.query(
                    "INSERT INTO task_audits VALUES ('a', 'SUPERVISOR_ERROR', '{}', 1, 2, 3)"
                )
                self.refuse("audit_id is not the INTEGER PRIMARY KEY")

    def test_a_view_or_a_virtual_table_by_that_name(self) -> None:
        columns = ("audit_id", "event_type", "payload", "created_at", *COLUMNS)
        self.query("CREATE VIEW task_audits AS SELECT " + ", ".join(f"1 AS {c}" for c in columns))
        self.refuse("is a view or a virtual table")
        self.query("DROP VIEW task_audits")
        self.query(f"CREATE VIRTUAL TABLE task_audits USING fts5({', '.join(columns)})")
        self.refuse("is a view or a virtual table")

    def test_versions_compare_as_numbers(self) -> None:
        for versions, accepted in (
            (["0.9.0"], False),
            (["0.1.0", "0.9.0", "0.20.0"], False),
            (["0.20.99"], False),
            (["0.9.0", "0.21.0"], True),
            (["0.21"], True),
            (["0.9.0", "0.100.0"], True),
            (["1.0.0"], True),
            (["0.9.0", "latest", "0.24.0"], True),
            (["latest"], True),
            ([], True),
        ):
            with self.subTest(versions):
                path = self.folder / f"{len(list(self.folder.iterdir()))}.db"
                self.make([{}], path=path)
                with contextlib.closing(sqlite3.connect(path)) as store, store:
                    store.execute("DELETE FROM schema_version")
                    store.executemany(
                        "INSERT INTO schema_version (version) VALUES (?)", [(v,) for v in versions]
                    )
                result = run("--db-path", path)
                self.assertEqual(result.code, 0 if accepted else 1, result.err)
                if not accepted:
                    self.assertIn("apply AgentOS's migration v21 first", result.err)
                    self.assertEqual(self.columns(path), [(None, None)])

    def test_a_store_without_a_readable_schema_version_is_judged_by_its_columns(self) -> None:
        for change in (
            "DROP TABLE schema_version",
            "ALTER TABLE schema_version RENAME COLUMN version TO v",
            "DROP TABLE schema_version; CREATE VIEW schema_version AS SELECT '0.1.0' AS version",
        ):
            with self.subTest(change):
                self.path.unlink(missing_ok=True)
                self.make([{}])
                self.connect().executescript(change)
                self.fill()
                self.assertEqual(self.columns(), [(EVENT, DONE)])

    def test_only_the_needed_columns_in_any_order_are_enough(self) -> None:
        self.query(
            "CREATE TABLE task_audits (supervisor_processed_at, created_at, payload,"
            " audit_id INTEGER PRIMARY KEY, source_event_ts, event_type)"
        )
        with contextlib.closing(self.connect()) as store:
            store.execute(
                "INSERT INTO task_audits (event_type, payload) VALUES ('SUPERVISOR_ERROR', ?)",
                (SOUND,),
            )
        self.fill()
        self.assertEqual(self.columns(), [(EVENT, DONE)])


class OutputTest(StoreTest):
    def test_any_path_works(self) -> None:
        for name in ("with space.db", "what?.db", "a#b.db", "50%20.db", "ümläut.db", "'quoted'.db"):
            with self.subTest(name):
                path = self.folder / name
                self.make([{}], path=path)
                result = run("--db-path", path)
                self.assertEqual(result.code, 0, result.err)
                self.assertEqual(self.columns(path), [(EVENT, DONE)])
                self.assertEqual(run("--db-path", path, "--json").summary["db_path"], str(path))
        self.assertEqual(len(list(self.folder.iterdir())), 6)

    def test_the_json_summary_has_the_documented_keys(self) -> None:
        self.make([{}])
        for options in ([], ["--dry-run"]):
            summary = self.fill(*options)
            self.assertEqual(
                list(summary),
                ["status", "db_path", "dry_run", "batch_size", "batches", "supervisor_rows",
                 "already_filled", "to_fill", "filled", "left_null", "sources",
                 "coverage_before_pct", "coverage_after_pct", "elapsed_seconds",
                 "rows_per_second"],
            )  # fmt: skip
            self.assertEqual(
                list(summary["left_null"]), ["malformed_json", "no_timestamp", "refused"]
            )
            self.assertEqual(
                {column: list(names) for column, names in summary["sources"].items()},
                {column: [*names, "created_at"] for column, names in backfill.FIELDS.items()},
            )
            self.assertEqual(summary["dry_run"], bool(options))

    def test_the_report_shows_the_same_facts(self) -> None:
        sample_store.make_store(self.path, rows=1000)
        report = self.tool("--dry-run").out
        summary = self.fill("--dry-run")
        for label, figure in (
            ("Supervisor rows", summary["supervisor_rows"]),
            ("already filled", summary["already_filled"]),
            ("to fill", summary["to_fill"]),
            ("would be filled", summary["filled"]),
            *((f"left NULL, {key}", number) for key, number in summary["left_null"].items()),
        ):
            self.assertRegex(report, rf"(?m)^ *{label} +{figure:,}\b")
        for names in summary["sources"].values():
            for name, number in names.items():
                self.assertRegex(report, rf"(?m)^ +{name} +{number:,}$")

    def test_a_dry_run_previews_the_first_rows(self) -> None:
        self.make(
            [
                {"audit_id": 7, "payload": f'{{"timestamp": "{DONE}"}}'},
                {"audit_id": 8, "payload": MALFORMED},
                {"audit_id": 9, "source_event_ts": EVENT, "event_type": "SUPERVISOR_\x1b[2J"},
                *[{}] * 10,
            ]
        )
        for size in (1, 1000):
            out = self.tool("--dry-run", "--batch-size", size).out
            preview = re.split("\n(?=  audit_id )", out.partition("\nDry run of")[0])[1:]
            self.assertEqual(len(preview), backfill.PREVIEW_ROWS)
            self.assertIn("audit_id 7  SUPERVISOR_ALLOWED", preview[0])
            self.assertRegex(preview[0], rf"source_event_ts +{CREATED}  from created_at")
            self.assertRegex(preview[0], rf"supervisor_processed_at +{DONE}  from timestamp")
            self.assertIn("NULL  (payload is not JSON", preview[1])
            self.assertIn(r"SUPERVISOR_\x1b[2J", preview[2])
            self.assertRegex(preview[2], rf"source_event_ts +{EVENT}  \(stands already\)")

    def test_the_terminal_shows_20_warnings_and_the_log_file_all(self) -> None:
        self.make([{"payload": MALFORMED}] * 30)
        log_file = self.folder / "run.log"
        result = self.tool("--log-file", log_file)
        self.assertEqual(len(re.findall(r"(?m)^warning: audit_id", result.err)), 20)
        self.assertRegex(result.err, r"and 10 more like these; .*run\.log has them all\n")
        lines = log_file.read_text().splitlines()
        self.assertEqual(len(lines), 30)
        for audit_id, line in enumerate(lines, 1):
            self.assertRegex(line, rf"^\d{{4}}-\S+Z WARNING audit_id {audit_id}: .*not JSON")
        self.assertIn("10 more like these; --log-file PATH keeps them all\n", self.tool().err)

    def test_fall_backs_are_a_line_each_in_the_log_file_and_one_per_column_here(self) -> None:
        self.make([{"payload": "{}"}, {"payload": f'{{"timestamp": "{DONE}"}}'}, {}])
        log_file = self.folder / "run.log"
        result = self.tool("--log-file", log_file)
        self.assertEqual(
            [line.split(" ", 2)[2] for line in log_file.read_text().splitlines()],
            [
                "audit_id 1: source_event_ts and supervisor_processed_at from created_at",
                "audit_id 2: source_event_ts from created_at",
            ],
        )
        self.assertEqual(
            [line for line in result.err.splitlines() if "created_at" in line],
            [
                "note: 2 values of source_event_ts come from created_at",
                "note: 1 values of supervisor_processed_at come from created_at",
            ],
        )

    def test_a_log_file_that_cannot_be_written_is_said_before_anything_is_done(self) -> None:
        self.make([{}])
        result = self.tool("--log-file", self.folder / "nowhere" / "run.log")
        self.assertEqual(result.code, 1)
        self.assertRegex(result.err, r"\Aerror: the log file .* cannot be written: .*--log-file\n")
        self.assertEqual(self.columns(), [(None, None)])

    def test_the_store_cannot_be_its_own_log_file(self) -> None:
        self.make([{}])
        before = self.path.read_bytes()
        self.assertEqual(self.tool("--log-file", self.path).code, 1)
        self.assertEqual(self.path.read_bytes(), before)

    def test_a_log_file_that_fails_ends_the_run_with_a_sentence(self) -> None:
        if not Path("/dev/full").exists():
            self.skipTest("this system has no /dev/full")
        self.make([{}, {"payload": MALFORMED}])
        result = self.tool("--log-file", "/dev/full", "--json")
        self.assertEqual(result.code, 1)
        self.assertRegex(result.err, "(?m)^error: the log file cannot be written")
        self.assertEqual((result.summary["status"], result.summary["filled"]), ("failed", 1))
        self.assertEqual(self.columns()[0], (EVENT, DONE))

    def test_progress_elsewhere_is_plain_lines_that_end_at_100_percent(self) -> None:
        self.make([{}] * 50)
        with mock.patch.object(backfill, "PLAIN_SECONDS", 0.0):
            lines = self.tool("--batch-size", 10).err.splitlines()
        shares = [float(share) for share in re.findall(r"Filling +([\d.]+) %", "\n".join(lines))]
        self.assertEqual(shares, [20.0, 40.0, 60.0, 80.0, 100.0])
        self.assertRegex(lines[-1], r"50/50 rows  [\d,]+ rows/s$")
        self.assertEqual([line for line in self.tool().err.splitlines() if "rows/s" in line], [])

    def test_quiet_shows_no_progress_but_warnings(self) -> None:
        self.make([{}, {"payload": MALFORMED}])
        err = self.tool("--quiet").err
        self.assertNotIn("%", err)
        self.assertIn("audit_id 2", err)

    def test_on_a_terminal_progress_is_one_line_of_at_most_its_width(self) -> None:
        sample_store.make_store(self.path, rows=3000)
        screen = self.on_a_terminal("--batch-size", "100", columns=80)
        self.assertIn("\r\x1b[K[", screen)
        drawn = [part for part in re.split(r"\r\n|\r\x1b\[K", screen) if "rows/s" in part]
        self.assertTrue(drawn)
        for part in drawn:
            self.assertLess(len(part), 80)
        self.assertRegex(drawn[-1], r"^\[#+\] Filling  100\.0 %")
        self.assertEqual(len(re.findall(r"rows/s\r\n", screen)), 1)

    def on_a_terminal(self, *options: str, columns: int) -> str:
        """Run the tool with stderr on a real terminal and return all that it wrote there."""
        screen, terminal = pty.openpty()
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": str(columns)}
        process = subprocess.Popen(
            [sys.executable, SCRIPT, "--db-path", self.path, *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=terminal,
            env=environment,
        )
        os.close(terminal)
        written = b""
        with contextlib.suppress(OSError):  # a terminal whose last writer has gone says EIO
            while chunk := os.read(screen, 65536):
                written += chunk
        os.close(screen)
        self.assertEqual(process.wait(), 0)
        return written.decode()

    def test_streams_that_are_closed_disturb_nothing(self) -> None:
        for closed in (">&-", "2>&-", ">&- 2>&-"):
            with self.subTest(closed):
                self.path.unlink(missing_ok=True)
                self.make([{}, {"payload": MALFORMED}])
                command = f'"{sys.executable}" "{SCRIPT}" --db-path "{self.path}" {closed}'
                process = subprocess.run(command, check=False, shell=True, capture_output=True)
                self.assertEqual(process.returncode, 0, process.stderr)
                self.assertNotIn(b"warning", process.stdout)
                self.assertEqual(self.columns()[0], (EVENT, DONE))

    def test_output_that_nobody_reads_ends_without_a_traceback(self) -> None:
        self.make([{}])
        for stream in ("stdout", "stderr"):
            with self.subTest(stream):
                reader, writer = os.pipe()
                os.close(reader)
                process = subprocess.run(
                    [sys.executable, SCRIPT, "--db-path", self.path, "--dry-run"],
                    check=False,
                    stdout=writer if stream == "stdout" else subprocess.PIPE,
                    stderr=writer if stream == "stderr" else subprocess.PIPE,
                )
                os.close(writer)
                self.assertEqual(process.returncode, 1)
                self.assertNotIn(b"Traceback", (process.stdout or b"") + (process.stderr or b""))


class HostileTest(StoreTest):
    """A store whose text was made to do harm."""

    def make_hostile(self, seed: int, count: int) -> None:
        self.make(hostile_rows(seed, count))
        for column in ("payload", "created_at", *COLUMNS):  # text that is not UTF-8
            self.query(
                f"UPDATE task_audits SET {column} = CAST({column} AS TEXT)"
                f" WHERE typeof({column}) = 'blob' AND audit_id % 2"
            )

    def columns(self, path: Path | None = None) -> list[tuple[Any, Any]]:
        with contextlib.closing(sqlite3.connect(path or self.path)) as store:
            store.text_factory = backfill.decode_text
            return store.execute(
                f"SELECT {', '.join(COLUMNS)} FROM task_audits ORDER BY audit_id"
            ).fetchall()

    def test_nothing_raises_and_no_control_character_gets_out(self) -> None:
        self.make_hostile(seed=11, count=1500)
        before = self.columns()
        log_file = self.folder / "run.log"
        result = self.tool("--log-file", log_file)
        self.assertEqual(result.code, 0, result.err)
        dry = self.tool("--dry-run")
        self.assertEqual(dry.code, 0, dry.err)
        text = result.out + result.err + dry.out + dry.err + log_file.read_text()
        self.assertEqual(set(re.findall(r"[^\x20-\x7e\n]", text)), set())
        self.assertNotIn("Traceback", text)
        for stood, (source, processed) in zip(before, self.columns(), strict=True):
            if None in stood and isinstance(source, str) and isinstance(processed, str):
                with contextlib.suppress(ValueError):  # rubbish that stood there already
                    read_as_agentos(processed) - read_as_agentos(source)

    def test_what_stood_in_a_hostile_store_stands_after_the_run(self) -> None:
        self.make_hostile(seed=12, count=1000)
        before = self.columns()
        self.fill()
        for old, new in zip(before, self.columns(), strict=True):
            for old_value, new_value in zip(old, new, strict=True):
                if old_value is not None:
                    self.assertEqual(new_value, old_value)

    def test_printable_keeps_what_is_harmless_and_escapes_what_is_not(self) -> None:
        for text, written in (
            ("plain", "plain"),
            ("Größe 漢字", "Größe 漢字"),
            ("\x1b[31m", r"\x1b[31m"),
            ("a\nb\tc\0", r"a\nb\tc\x00"),
            ("\u202eevil", r"\u202eevil"),
            ("\ud800", r"\ud800"),
            (b"\xff", r"b'\xff'"),
            ("x" * 300, "x" * 197 + "..."),
        ):
            with self.subTest(written):
                self.assertEqual(backfill.printable(text), written)


# --- A store in use ---------------------------------------------------------------------------

HEAVY = bool(os.environ.get("BACKFILL_HEAVY"))
JOURNAL_MODES = ("wal", "delete")
# Runs a command and prints its peak resident memory in kB.
MEASURE = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


class ProcessTest(StoreTest):
    """Runs the tool as a process of its own, beside others."""

    def start(self, *options: object, path: Path | None = None) -> subprocess.Popen[str]:
        """Start the tool as a process of its own, with --json."""
        arguments = [str(option) for option in options]
        process = subprocess.Popen(
            [
                sys.executable,
                str(SCRIPT),
                "--db-path",
                str(path or self.path),
                "--json",
                *arguments,
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.addCleanup(process.communicate)
        self.addCleanup(process.kill)
        return process

    def finish(self, process: subprocess.Popen[str]) -> Result:
        out, err = process.communicate(timeout=60)
        self.assertNotIn("Traceback", err)
        return Result(process.returncode, out, err)

    def wait_until_filled(self, rows: int, path: Path | None = None) -> None:
        """Return once the tool has committed at least so many rows."""
        give_up = time.monotonic() + 30
        while self.count_filled(path) < rows:
            self.assertLess(time.monotonic(), give_up, "the tool fills nothing")
            time.sleep(0.005)

    def count_filled(self, path: Path | None = None) -> int:
        with contextlib.closing(sqlite3.connect(path or self.path, timeout=30)) as store:
            count: int = store.execute(
                "SELECT count(*) FROM task_audits"
                " WHERE source_event_ts NOT NULL AND supervisor_processed_at NOT NULL"
            ).fetchone()[0]
            return count

    def assert_whole(self, path: Path | None = None) -> None:
        self.assertEqual(self.query("PRAGMA integrity_check", path), [("ok",)])

    def filled_without_a_break(self, path: Path) -> list[tuple[Any, Any]]:
        """What the columns of a copy of the store hold after one run."""
        copy = path.with_suffix(".copy")
        shutil.copy(path, copy)
        self.assertEqual(run("--db-path", copy, "--quiet").code, 0)
        return self.columns(copy)

    @contextlib.contextmanager
    def writers(self, number: int, path: Path) -> Iterator[list[dict[str, Any]]]:
        """Let processes write to the store meanwhile; afterwards the list says what they did."""
        done: list[dict[str, Any]] = []
        processes = [writer.start(path, seed) for seed in range(number)]
        try:
            yield done
        finally:
            done += map(writer.finish, processes)


class LiveTest(ProcessTest):
    """Tests with other processes, real signals and real kills.

    BACKFILL_HEAVY=1 makes them longer and adds those that need room or root.
    """

    def test_a_killed_run_leaves_the_store_whole_and_the_next_goes_on(self) -> None:
        kills = 24 if HEAVY else 2
        chance = random.Random(4)
        for mode in JOURNAL_MODES:
            with self.subTest(mode):
                path = self.folder / f"{mode}.db"
                sample_store.make_store(path, rows=10_000 if HEAVY else 1500, journal_mode=mode)
                before = self.columns(path)
                expected = self.filled_without_a_break(path)
                progress = []
                for _ in range(kills):
                    process = self.start("--batch-size", 10, "--pause", 0.002, path=path)
                    self.wait_until_filled(self.count_filled(path) + 1, path)
                    time.sleep(chance.uniform(0, 0.03))
                    process.kill()
                    process.communicate()
                    self.assert_whole(path)
                    progress.append(self.count_filled(path))
                    for old, now, end in zip(before, self.columns(path), expected, strict=True):
                        self.assertIn(now, (old, end))
                self.assertLess(progress[0], progress[-1])
                self.assertLess(progress[-1], sum(None not in pair for pair in expected))
                self.assertEqual(run("--db-path", path, "--quiet").code, 0)
                self.assertEqual(self.columns(path), expected)

    def test_a_signal_ends_the_run_after_the_batch_at_hand(self) -> None:
        # More than one signal must change nothing.
        for signum, code, times in (
            (signal.SIGINT, 130, 1),
            (signal.SIGINT, 130, 3),
            (signal.SIGTERM, 143, 1),
        ):
            with self.subTest(signum, times=times):
                path = self.folder / f"{signum}-{times}.db"
                sample_store.make_store(path, rows=1500)
                expected = self.filled_without_a_break(path)
                process = self.start("--batch-size", 50, "--pause", 0.02, path=path)
                stood = sum(None not in pair for pair in self.columns(path))
                self.wait_until_filled(stood + 100, path)
                for _ in range(times):
                    process.send_signal(signum)
                    time.sleep(0.005)
                result = self.finish(process)
                self.assertEqual(result.code, code, result.err)
                self.assertRegex(
                    result.err, f"interrupted by {signum.name}: .* run the same command again"
                )
                summary = result.summary
                self.assertEqual(summary["status"], "interrupted")
                self.assertEqual(summary["filled"], self.count_filled(path) - stood)
                self.assertLess(summary["filled"], summary["to_fill"])
                self.assertGreaterEqual(summary["batches"], 2)
                self.assertEqual(run("--db-path", path, "--quiet").code, 0)
                self.assertEqual(self.columns(path), expected)

    def test_a_signal_while_a_large_batch_is_read_waits_for_no_more_than_a_page(self) -> None:
        self.make([{}] * (3 * backfill.PAGE_ROWS))
        read_plans = backfill._read_plans
        pages: list[object] = []

        def read_and_signal(*arguments: Any) -> Any:
            pages.append(arguments)
            signal.raise_signal(signal.SIGINT)
            return read_plans(*arguments)

        self.addCleanup(signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT))
        with mock.patch.object(backfill, "_read_plans", read_and_signal):
            result = self.tool("--json", "--batch-size", 10 * backfill.PAGE_ROWS)
        self.assertEqual((result.code, len(pages)), (130, 1))
        self.assertEqual(result.summary["filled"], 0)
        self.assertEqual(set(self.columns()), {(None, None)})

    def test_a_signal_ends_the_wait_for_a_lock(self) -> None:
        self.make([{}])
        other = self.connect()
        other.execute("BEGIN EXCLUSIVE")
        process = self.start("--busy-timeout", 600)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        self.assertEqual(self.finish(process).code, 130)
        other.execute("ROLLBACK")
        self.assertEqual(self.columns(), [(None, None)])

    def test_writers_beside_a_run_are_not_refused_overwritten_or_lost(self) -> None:
        for mode in JOURNAL_MODES:
            with self.subTest(mode):
                path = self.folder / f"{mode}.db"
                rows = 60_000 if HEAVY else 2500
                sample_store.make_store(path, rows=rows, journal_mode=mode)
                with self.writers(2, path) as done:
                    result = self.finish(self.start(path=path))
                self.assertEqual(result.code, 0, result.err)
                self.assertEqual(result.summary["status"], "completed")
                found = self.query(f"SELECT audit_id, {', '.join(COLUMNS)} FROM task_audits", path)
                columns = {audit_id: (source, processed) for audit_id, source, processed in found}
                for theirs in done:
                    self.assertEqual(theirs["refused"], 0)
                    self.assertTrue(theirs["inserted"])
                    self.assertLessEqual(set(theirs["inserted"]), set(columns))
                    for audit_id, column, value in theirs["filled"]:
                        self.assertEqual(columns[audit_id][COLUMNS.index(column)], value)
                for source, processed in columns.values():
                    if source is not None and processed is not None:
                        read_as_agentos(processed) - read_as_agentos(source)
                self.assert_whole(path)

    def test_two_runs_at_once_end_as_one_does(self) -> None:
        for mode in JOURNAL_MODES:
            with self.subTest(mode):
                path = self.folder / f"{mode}.db"
                sample_store.make_store(path, rows=2000, journal_mode=mode)
                expected = self.filled_without_a_break(path)
                values = (
                    "SELECT count(source_event_ts), count(supervisor_processed_at) FROM task_audits"
                )
                before = self.query(values, path)[0]
                both = [self.start("--batch-size", 50, path=path) for _ in range(2)]
                summaries = []
                for process in both:
                    result = self.finish(process)
                    self.assertEqual(result.code, 0, result.err)
                    summaries.append(result.summary)
                self.assertEqual(self.columns(path), expected)
                after = self.query(values, path)[0]
                for at, column in enumerate(COLUMNS):
                    written = [sum(summary["sources"][column].values()) for summary in summaries]
                    self.assertEqual(sum(written), after[at] - before[at])

    def test_memory_does_not_grow_with_batch_size_times_payload_size(self) -> None:
        rows = 1500 if HEAVY else 100
        payload = json.dumps({"timestamp": DONE, "filler": "x" * 200_000})
        for mode in JOURNAL_MODES:
            with self.subTest(mode):
                path = self.folder / f"{mode}.db"
                self.make(({"payload": payload} for _ in range(rows)), path=path, journal_mode=mode)
                # A process of its own: what it counts is the tool's memory, not this test's.
                measured = subprocess.run(
                    [sys.executable, "-c", MEASURE, sys.executable, SCRIPT, "--db-path", path,
                     "--batch-size", "10000", "--json", "--quiet"],
                    check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                )  # fmt: skip
                summary, kilobytes = measured.stdout.splitlines()
                self.assertEqual(json.loads(summary)["filled"], rows)
                self.assertLess(int(kilobytes), 64 * 1024)
                path.unlink()


class LockTest(StoreTest):
    def test_a_lock_held_past_the_timeout_ends_the_run(self) -> None:
        for mode, *options in (["wal"], ["delete"], ["delete", "--dry-run"]):
            with self.subTest(mode, options=options):
                path = self.folder / f"{mode}{len(options)}.db"
                self.make([{}], path=path, journal_mode=mode)
                other = self.connect(path)
                other.execute("BEGIN EXCLUSIVE")
                result = run("--db-path", path, "--json", "--busy-timeout", 0.2, *options)
                other.execute("ROLLBACK")
                self.assertEqual(result.code, 1)
                self.assertRegex(
                    result.err,
                    r"(?m)^error: .*held its lock for over 0\.2 s: .*--busy-timeout .*locked",
                )
                self.assertEqual(result.summary["status"], "failed")
                self.assertEqual(self.columns(path), [(None, None)])

    def test_a_lock_that_comes_in_the_middle_keeps_and_counts_what_was_committed(self) -> None:
        for mode in JOURNAL_MODES:
            with self.subTest(mode):
                path = self.folder / f"{mode}.db"
                self.make([{}] * 50, path=path, journal_mode=mode)
                other = self.connect(path)
                write = backfill.backfill_batch
                batches: list[object] = []

                def lock_third(
                    *arguments: Any,
                    batches: list[object] = batches,
                    other: sqlite3.Connection = other,
                    write: Any = write,
                ) -> Any:
                    batches.append(arguments[1])
                    if len(batches) == 3:
                        other.execute("BEGIN IMMEDIATE")
                    return write(*arguments)

                with mock.patch.object(backfill, "backfill_batch", lock_third):
                    result = run("--db-path", path, "--json", "--busy-timeout", 0.2,
                                 "--batch-size", 10)  # fmt: skip
                other.execute("ROLLBACK")
                self.assertEqual(result.code, 1)
                self.assertIn("the 20 rows filled so far stay", result.err)
                summary = result.summary
                self.assertEqual(
                    (summary["status"], summary["filled"], summary["batches"]), ("failed", 20, 2)
                )
                self.assertEqual(self.columns(path), [(EVENT, DONE)] * 20 + [(None, None)] * 30)
                self.assertEqual(run("--db-path", path).code, 0)
                self.assertEqual(self.columns(path), [(EVENT, DONE)] * 50)

    def test_a_lock_that_is_let_go_in_time_is_waited_for(self) -> None:
        self.make([{}])
        other = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
        self.addCleanup(other.close)
        other.execute("BEGIN EXCLUSIVE")
        timer = threading.Timer(0.4, other.execute, ["ROLLBACK"])
        timer.start()
        self.assertEqual(self.tool().code, 0)
        timer.join()
        self.assertEqual(self.columns(), [(EVENT, DONE)])


class RefusalTest(StoreTest):
    """Rows that the database refuses stay as they are; all others are filled."""

    def check_refused(self, refused: set[int], words: str, *options: object) -> None:
        result = self.tool("--json", *options)
        self.assertEqual(result.code, 0, result.err)
        self.assertEqual(result.summary["left_null"]["refused"], len(refused))
        rows = len(self.columns())
        self.assertEqual(result.summary["filled"], rows - len(refused))
        for audit_id, columns in enumerate(self.columns(), 1):
            with self.subTest(audit_id):
                self.assertEqual(columns, (None, None) if audit_id in refused else (EVENT, DONE))
        for audit_id in sorted(refused)[: backfill.TERMINAL_WARNINGS]:
            self.assertRegex(result.err, rf"(?m)^warning: audit_id {audit_id}: .*{words}")
        other = self.connect()
        other.execute("BEGIN EXCLUSIVE")  # nobody has left a transaction open
        other.execute("ROLLBACK")

    def test_a_trigger_of_every_kind(self) -> None:
        for when in ("BEFORE", "AFTER"):
            for kind in ("ABORT", "FAIL", "ROLLBACK"):
                for batch_size in (4, 1000):
                    with self.subTest(kind, when=when, batch_size=batch_size):
                        self.path.unlink(missing_ok=True)
                        self.make(
                            [{}] * 30,
                            extra=f"""
                            CREATE TABLE traces (audit_id);
                            CREATE TRIGGER refuse {when} UPDATE ON task_audits
                            WHEN new.audit_id % 7 = 0 OR new.audit_id IN (1, 2, 30)
                            BEGIN
                                INSERT INTO traces VALUES (new.audit_id);
                                SELECT RAISE({kind}, 'no \x1b[31mway');
                            END;""",
                        )
                        self.check_refused(
                            {1, 2, 7, 14, 21, 28, 30}, r"no \\x1b\[31mway",
                            "--batch-size", batch_size,
                        )  # fmt: skip
                        self.assertEqual(self.query("SELECT * FROM traces"), [])

    def test_a_trigger_that_ignores_the_update(self) -> None:
        self.make(
            [{}] * 9,
            extra="""CREATE TRIGGER ignore BEFORE UPDATE ON task_audits
                     WHEN new.audit_id % 3 = 0 BEGIN SELECT RAISE(IGNORE); END;""",
        )
        self.check_refused({3, 6, 9}, "the update was ignored, by a trigger")

    def test_every_row_refused(self) -> None:
        self.make(
            [{}] * 40,
            extra="""CREATE TRIGGER refuse BEFORE UPDATE ON task_audits
                     BEGIN SELECT RAISE(ROLLBACK, 'read-only from today'); END;""",
        )
        self.check_refused(set(range(1, 41)), "read-only from today")

    def test_a_constraint(self) -> None:
        table = sample_store.SCHEMA.replace(
            "source_event_ts TEXT,",
            "source_event_ts TEXT CHECK (source_event_ts IS NULL OR audit_id NOT IN (2, 5)),",
        )
        with mock.patch.object(sample_store, "SCHEMA", table):
            self.make([{}] * 6)
        self.check_refused({2, 5}, "CHECK constraint failed")

    def test_a_trigger_that_would_run_unsafe_code_runs_none(self) -> None:
        self.make(
            [{}],
            extra="""CREATE TRIGGER evil AFTER UPDATE ON task_audits
                     BEGIN SELECT load_extension('/tmp/evil'); END;""",
        )
        result = self.tool("--json")
        self.assertEqual(result.summary["left_null"]["refused"], 1)
        self.assertRegex(result.err, "unsafe use of load_extension|not authorized|no such function")
        self.assertEqual(self.columns(), [(None, None)])


class StorageTest(StoreTest):
    """A failing disk or file ends the run with a sentence, and keeps what was committed."""

    def check_failed(self, result: Result, words: str) -> dict[str, Any]:
        self.assertEqual(result.code, 1, result.err)
        self.assertRegex(result.err, rf"(?m)^error: .*{words}")
        self.assertNotIn("Traceback", result.err)
        self.assertEqual(result.summary["status"], "failed")
        return result.summary

    def test_a_store_that_is_full(self) -> None:
        sample_store.make_store(self.path, rows=3000, journal_mode="delete")
        stood = sum(None not in pair for pair in self.columns())
        pages = self.query("PRAGMA page_count")[0][0]
        open_store = backfill.open_store

        def open_full(*arguments: Any, **options: Any) -> sqlite3.Connection:
            store = open_store(*arguments, **options)
            store.execute(f"PRAGMA max_page_count = {pages + 25}")
            return store

        with mock.patch.object(backfill, "open_store", open_full):
            result = self.tool("--json", "--batch-size", 50)
        summary = self.check_failed(result, "is full: make room, then run again")
        self.assertGreater(summary["filled"], 0)
        filled = sum(None not in pair for pair in self.columns()) - stood
        self.assertEqual(summary["filled"], filled)
        self.assertEqual(self.query("PRAGMA integrity_check"), [("ok",)])

    def test_checkpoints_between_the_batches_keep_the_wal_small(self) -> None:
        sizes = []
        for often in (0.0, math.inf):
            path = self.folder / f"{often}.db"
            sample_store.make_store(path, rows=8000, journal_mode="wal")
            other = self.connect(path)  # without it, the end of the run would remove the WAL
            other.execute("SELECT count(*) FROM task_audits").fetchone()
            with mock.patch.object(backfill, "CHECKPOINT_SECONDS", often):
                self.assertEqual(run("--db-path", path, "--batch-size", 100).code, 0)
            sizes.append(Path(f"{path}-wal").stat().st_size)
        self.assertLess(sizes[0], sizes[1] / 2)

    @unittest.skipUnless(HEAVY and os.geteuid() == 0, "needs BACKFILL_HEAVY=1 and root")
    def test_a_disk_that_is_full(self) -> None:
        mount = self.folder / "disk"
        mount.mkdir()
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", mount],
            check=False,
            capture_output=True,
        )
        if mounted.returncode:
            self.skipTest("this machine lets nobody mount a tmpfs")
        self.addCleanup(lambda: subprocess.run(["umount", "-l", mount], check=True))
        for mode in JOURNAL_MODES:
            with self.subTest(mode):
                path = mount / f"{mode}.db"
                sample_store.make_store(path, rows=4000, journal_mode=mode)
                stood = sum(None not in pair for pair in self.columns(path))
                room = shutil.disk_usage(mount).free
                filler = mount / "filler"
                filler.write_bytes(b"x" * max(0, room - 500_000))
                result = run("--db-path", path, "--json", "--batch-size", 100)
                self.check_failed(result, "is full: make room, then run again")
                backup = run("--db-path", path, "--json", "--backup", mount / "backup.db")
                self.check_failed(backup, "the backup .* cannot be made, so nothing was written")
                filler.unlink()
                self.assertEqual(
                    sorted(p.name for p in mount.iterdir() if not p.name.startswith(path.name)), []
                )
                self.assertEqual(
                    result.summary["filled"],
                    sum(None not in pair for pair in self.columns(path)) - stood,
                )
                for file in mount.iterdir():
                    file.unlink()

    def test_a_store_cut_off_in_the_middle(self) -> None:
        sample_store.make_store(self.path, rows=2000, journal_mode="delete")
        with self.path.open("r+b") as file:
            file.truncate(self.path.stat().st_size // 4096 // 8 * 4096)
        self.check_failed(self.tool("--json"), "it is damaged: PRAGMA integrity_check")

    def test_a_damaged_index_keeps_what_was_committed(self) -> None:
        self.make([{}] * 200 + [{"event_type": "TASK"}] * 2000)
        (root,) = self.query(
            "SELECT rootpage FROM sqlite_master WHERE name = 'idx_task_audits_lag'"
        )[0]
        write = backfill.backfill_batch
        batches: list[Any] = []

        def damage_later(store: sqlite3.Connection, *rest: Any) -> float:
            batches.append(rest)
            if len(batches) == 3:
                with self.path.open("r+b") as file:
                    file.seek((root - 1) * 4096)
                    file.write(b"\x0a\0\0\0\0\x10\0\0")  # an index without entries
                store.execute("PRAGMA shrink_memory")
                toucher = sqlite3.connect(self.path)  # so that the cache is read anew
                toucher.execute("UPDATE schema_version SET applied_at = 1")
                toucher.commit()
                toucher.close()
            return write(store, *rest)

        with mock.patch.object(backfill, "backfill_batch", damage_later):
            result = self.tool("--json", "--batch-size", 50)
        summary = self.check_failed(result, "it is damaged: .*REINDEX")
        self.assertEqual((summary["filled"], summary["batches"]), (100, 2))
        self.query("REINDEX")
        self.assertEqual(self.columns()[:200], [(EVENT, DONE)] * 100 + [(None, None)] * 100)

    def test_a_table_that_goes_away_in_the_middle(self) -> None:
        self.make([{}] * 30)
        other = self.connect()
        write = backfill.backfill_batch

        def rename_after(*arguments: Any) -> float:
            locked = write(*arguments)
            other.execute("ALTER TABLE task_audits RENAME TO elsewhere")
            return locked

        with mock.patch.object(backfill, "backfill_batch", rename_after):
            result = self.tool("--json", "--batch-size", 10)
        summary = self.check_failed(result, r"SQLite gave up: run again, .* \(no such table: task_")
        self.assertEqual((summary["filled"], summary["batches"]), (10, 1))
        other.execute("ALTER TABLE elsewhere RENAME TO task_audits")
        self.assertEqual(self.fill()["filled"], 20)

    def test_a_file_or_folder_that_cannot_be_written(self) -> None:
        for what, words in (
            ("file", "cannot be written: run as a user who may write the store"),
            ("folder", "cannot be (written|opened): check the permissions of"),
        ):
            with self.subTest(what):
                path = self.folder / f"{what}.db"
                self.make([{}], path=path)
                path.chmod(0o444 if what == "file" else 0o666)
                self.folder.chmod(0o555)
                result = as_nobody("--db-path", path, "--json")
                self.check_failed(result, words)
                self.assertEqual(as_nobody("--db-path", path, "--dry-run").code, 0)
                self.folder.chmod(0o755)
                self.assertEqual(self.columns(path), [(None, None)])

    def test_a_file_that_cannot_be_read(self) -> None:
        self.make([{}])
        self.folder.chmod(0o755)
        self.path.chmod(0o200)
        self.check_failed(as_nobody("--db-path", self.path, "--json"), "cannot be read: run as")
        self.check_failed(
            as_nobody("--db-path", self.path, "--json", "--dry-run"), "cannot be read: run as"
        )


def as_nobody(*arguments: object) -> Result:
    """Run the tool in a process that may write nothing that is not its own, root or not."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        with contextlib.suppress(PermissionError):
            os.setresuid(65534, 65534, 65534)
        with os.fdopen(writer, "w") as pipe:
            json.dump(run(*arguments), pipe)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        result = Result(*json.load(pipe))
    os.waitpid(child, 0)
    return result


class BackupTest(ProcessTest):
    def setUp(self) -> None:
        super().setUp()
        self.backup = self.folder / "backup.db"

    def test_it_is_the_store_before_the_first_change_also_with_a_writer_at_work(self) -> None:
        for mode in JOURNAL_MODES:
            with self.subTest(mode):
                path = self.folder / f"{mode}.db"
                backup = self.folder / f"{mode}.backup"
                sample_store.make_store(path, rows=1500, journal_mode=mode)
                before = self.columns(path)
                with self.writers(1, path) as done:
                    result = self.finish(self.start("--backup", backup, path=path))
                self.assertEqual(result.code, 0, result.err)
                self.assert_whole(backup)
                theirs = {
                    (audit_id, column): value for audit_id, column, value in done[0]["filled"]
                }
                changed = 0
                for audit_id, (old, kept) in enumerate(
                    zip(before, self.columns(backup), strict=False), 1
                ):
                    for column, old_value, kept_value in zip(COLUMNS, old, kept, strict=True):
                        if kept_value != old_value:
                            changed += 1
                            self.assertEqual(kept_value, theirs[audit_id, column])
                self.assertLessEqual(changed, len(theirs))
                self.assertEqual([p.name for p in self.folder.iterdir() if "partial" in p.name], [])

    def test_it_has_the_permissions_of_the_store(self) -> None:
        for mode in (0o600, 0o640, 0o644):
            with self.subTest(oct(mode)):
                self.path.unlink(missing_ok=True)
                self.backup.unlink(missing_ok=True)
                self.make([{}])
                self.path.chmod(mode)
                self.assertEqual(self.tool("--backup", self.backup).code, 0)
                self.assertEqual(self.backup.stat().st_mode & 0o777, mode)

    def test_it_goes_over_no_file_and_through_no_dangling_link(self) -> None:
        self.make([{}])
        self.backup.write_text("precious")
        link = self.folder / "link.db"
        link.symlink_to(self.folder / "nowhere.db")
        for target in (self.backup, link, self.path):
            with self.subTest(target.name):
                result = self.tool("--backup", target)
                self.assertEqual(result.code, 1)
                self.assertRegex(result.err, "^error: .* exists already: name a new file")
        self.assertEqual(self.backup.read_text(), "precious")
        self.assertFalse((self.folder / "nowhere.db").exists())
        self.assertEqual(self.columns(), [(None, None)])

    def test_a_backup_that_cannot_be_made_means_that_nothing_is_written(self) -> None:
        self.make([{}])
        before = self.files()
        result = self.tool("--backup", self.folder / "nowhere" / "backup.db")
        self.assertEqual(result.code, 1)
        self.assertRegex(result.err, "^error: the backup .* cannot be made, so nothing was written")
        full = sqlite3.OperationalError("database or disk is full")
        with mock.patch.object(backfill, "_copy_permissions", side_effect=full):
            result = self.tool("--backup", self.backup)
        self.assertEqual(result.code, 1)
        self.assertIn("database or disk is full", result.err)
        self.assertEqual(self.files(), before)

    def test_a_signal_ends_it_and_leaves_no_half_made_file(self) -> None:
        sample_store.make_store(self.path, rows=3000, journal_mode="delete")
        before = self.files()
        for signum in backfill.INTERRUPTS:  # an interrupted run keeps hold of them
            self.addCleanup(signal.signal, signum, signal.getsignal(signum))
        with (
            mock.patch.object(backfill, "BACKUP_PAGES", 10),
            mock.patch.object(
                backfill.Progress,
                "update",
                side_effect=lambda *_: signal.raise_signal(signal.SIGTERM),
            ),
        ):
            result = self.tool("--backup", self.backup)
        self.assertEqual(result.code, 143)
        self.assertEqual(self.files(), before)

    def test_it_shows_progress(self) -> None:
        sample_store.make_store(self.path, rows=2000)
        with (
            mock.patch.object(backfill, "PLAIN_SECONDS", 0.0),
            mock.patch.object(backfill, "BACKUP_PAGES", 100),
        ):
            err = self.tool("--backup", self.backup).err
        shares = [float(share) for share in re.findall(r"Backup +([\d.]+) %", err)]
        self.assertGreater(len(shares), 3)
        self.assertEqual((shares, shares[-1]), (sorted(shares), 100.0))

    def test_a_dry_run_makes_none(self) -> None:
        self.make([{}])
        self.assertEqual(self.tool("--dry-run", "--backup", self.backup).code, 0)
        self.assertFalse(self.backup.exists())


# --- verify_backfill.sql --------------------------------------------------------------------

VERIFY = HERE / "verify_backfill.sql"
SHELL = shutil.which("sqlite3")


class Verification(NamedTuple):
    """What the eight checks said."""

    text: str
    verdicts: dict[int, str]
    details: dict[int, str]


@unittest.skipIf(SHELL is None, "the sqlite3 shell is not installed")
class VerifyTest(StoreTest):
    def verify(self, path: Path | None = None) -> Verification:
        """Run the checks through the real shell; nothing may abort and nothing be written."""
        path = path or self.path
        before = path.read_bytes()
        with VERIFY.open("rb") as script:
            shell = subprocess.run(
                [str(SHELL), path], check=False, stdin=script, capture_output=True
            )
        self.assertEqual((shell.returncode, shell.stderr), (0, b""))
        self.assertEqual(path.read_bytes(), before)
        text = shell.stdout.decode()
        lines = re.findall(r"(?m)^([1-8])  (\S.*?)  (PASS|WARN|FAIL|INFO)  (\S.*)$", text)
        self.assertEqual([int(number) for number, *_ in lines], list(range(1, 9)))
        summary = text.partition("\nSummary\n")[2].split("\n")[1:-1]
        self.assertEqual(
            [line.split(None, 1)[0] for line in summary], [str(n) for n in range(1, 9)]
        )
        for line, (_number, name, verdict, detail) in zip(summary, lines, strict=True):
            self.assertRegex(line, rf"{re.escape(name)} +{verdict}  {re.escape(detail)}$")
        return Verification(
            text,
            {int(number): verdict for number, _name, verdict, _detail in lines},
            {int(number): detail for number, _name, _verdict, detail in lines},
        )

    def make_sample(self) -> None:
        sample_store.make_store(self.path, rows=1000, journal_mode="delete")

    def test_before_a_run_coverage_and_remaining_nulls_fail(self) -> None:
        self.make_sample()
        verdicts = self.verify().verdicts
        self.assertEqual({n for n, verdict in verdicts.items() if verdict == "FAIL"}, {1, 6})

    def test_after_a_run_nothing_fails(self) -> None:
        self.make_sample()
        self.fill()
        found = self.verify()
        self.assertNotIn("FAIL", found.verdicts.values(), found.text)
        self.assertRegex(found.details[2], "^0 values differ from the payload, [1-9]")
        self.assertRegex(found.details[8], r"^\d+ pairs, average [\d.]+ s, [1-9]\d* negative")

    def test_it_fits_a_terminal_100_wide(self) -> None:
        self.make_sample()
        self.fill()
        wide = [line for line in self.verify().text.splitlines() if len(line.rstrip()) > 100]
        self.assertEqual([line for line in wide if "SEARCH task_audits USING" not in line], [])

    def test_each_check_fails_on_a_store_tampered_with_for_it(self) -> None:
        sound = "json_valid(payload) AND event_type LIKE 'SUPERVISOR%'"
        ids = f"(SELECT audit_id FROM task_audits WHERE {sound} AND source_event_ts NOT NULL"
        for check, change in (
            (1, f"UPDATE task_audits SET source_event_ts = NULL WHERE audit_id IN {ids} LIMIT 60)"),
            (
                2,
                "UPDATE task_audits SET supervisor_processed_at = '2026-01-01T00:00:00Z'"
                f" WHERE audit_id IN {ids} LIMIT 4)",
            ),
            (4, "DROP INDEX idx_task_audits_source_event_ts;"
                "DROP INDEX idx_task_audits_decision_lag;"
                "DROP INDEX idx_task_audits_event_source_ts"),
            (5, "UPDATE task_audits SET source_event_ts = 'rubbish'"
                f" WHERE audit_id IN {ids} LIMIT 1)"),
            (5, "UPDATE task_audits SET source_event_ts = x'00ff'"
                f" WHERE audit_id IN {ids} LIMIT 1)"),
            (5, "UPDATE task_audits SET source_event_ts = rtrim(source_event_ts, 'Z')"
                " WHERE audit_id = (SELECT min(audit_id) FROM task_audits"
                " WHERE source_event_ts LIKE '%Z' AND supervisor_processed_at LIKE '%Z')"),
            (6, f"UPDATE task_audits SET source_event_ts = NULL WHERE audit_id IN {ids} LIMIT 1)"),
        ):  # fmt: skip
            with self.subTest(check, change=change):
                self.path.unlink(missing_ok=True)
                self.make_sample()
                self.fill()
                with contextlib.closing(sqlite3.connect(self.path)) as store:
                    store.executescript(change)
                found = self.verify()
                self.assertEqual(found.verdicts[check], "FAIL", found.text)
                if check == 2:
                    self.assertRegex(found.details[2], "^4 values differ")
                    self.assertEqual(len(re.findall("2026-01-01T00:00:00Z  ", found.text)), 3)

    def test_a_missing_index_is_named_with_the_way_to_make_it(self) -> None:
        self.make_sample()
        name = "idx_task_audits_event_source_ts"
        self.query(f"DROP INDEX {name}")
        found = self.verify()
        self.assertEqual((found.verdicts[4], found.details[4]), ("WARN", f"missing: {name}"))
        statement = re.search(rf"CREATE INDEX {name} .*;", found.text)
        assert statement is not None
        self.query(statement[0])
        self.assertEqual(self.verify().verdicts[4], "PASS")

    def test_the_future_is_worth_a_warning(self) -> None:
        self.make([{"source_event_ts": EVENT, "supervisor_processed_at": "2999-01-01T00:00:00Z"}])
        self.assertEqual(self.verify().verdicts[5], "WARN")

    def test_lags_are_counted_with_their_percentiles(self) -> None:
        self.make(
            {
                "payload": "{}",
                "source_event_ts": "2026-01-05T08:00:00Z",
                "supervisor_processed_at": f"2026-01-05T08:{n // 60:02}:{n % 60:02}+00:00",
            }
            for n in range(1, 101)
        )
        self.assertRegex(self.verify().text, r"\n100 +50\.500 +50\.000 +95\.000 +100\.000 +0 *\n")

    def test_an_empty_table_and_one_with_only_the_needed_columns(self) -> None:
        self.make()
        self.assertNotIn("FAIL", self.verify().verdicts.values())
        path = self.folder / "bare.db"
        with contextlib.closing(sqlite3.connect(path)) as store, store:
            store.execute(
                "CREATE TABLE task_audits (audit_id INTEGER PRIMARY KEY, event_type, payload,"
                " created_at, source_event_ts, supervisor_processed_at)"
            )
            store.execute(
                "INSERT INTO task_audits VALUES (1, 'SUPERVISOR_ERROR', ?, NULL, ?, ?)",
                (SOUND, EVENT, DONE),
            )
        verdicts = self.verify(path).verdicts
        self.assertEqual({n for n, verdict in verdicts.items() if verdict == "FAIL"}, {4})

    def test_the_unit_forms_of_rule_5_and_of_numbers_are_consistent(self) -> None:
        self.make(
            [
                {"payload": '{"source_ts": "2026-01-05 08:00:00", "timestamp": 1769940000.5}'},
                {"payload": '{"source_ts": "2026-01-05T10:00:00+02:00"}',
                 "supervisor_processed_at": "2026-01-05 08:00:11.347"},
            ]
        )  # fmt: skip
        self.fill()
        found = self.verify()
        self.assertEqual(found.verdicts[2], "PASS", found.text)
        self.assertEqual(
            found.details[2], "0 values differ from the payload, 4 agree, 0 not judged"
        )

    def test_rubbish_of_every_sort_aborts_nothing(self) -> None:
        self.make(hostile_rows(seed=5, count=800))
        for column in ("payload", "created_at", *COLUMNS):
            self.query(
                f"UPDATE task_audits SET {column} = CAST({column} AS TEXT)"
                f" WHERE typeof({column}) = 'blob' AND audit_id % 2"
            )
        self.assertEqual(self.verify().verdicts[5], "FAIL")
        self.fill()
        text = self.verify().text
        self.assertEqual(set(re.findall(r"[^\x20-\x7e\n]", text)), set())

    def test_what_the_tool_writes_is_never_called_inconsistent(self) -> None:
        """Ties the rules in SQL to the rules in Python, over thousands of payloads."""
        nothing = dict.fromkeys(COLUMNS)
        for seed in (1, 2, 3, 4, 5) if HEAVY else (1,):
            with self.subTest(seed):
                self.path.unlink(missing_ok=True)
                self.make({**row, **nothing} for row in hostile_rows(seed, count=3000))
                self.fill()
                found = self.verify()
                self.assertEqual(found.verdicts[2], "PASS", found.text)
                self.assertNotEqual(found.verdicts[6], "FAIL", found.text)
                agree = re.search(r", (\d+) agree", found.details[2])
                assert agree is not None
                self.assertGreater(int(agree[1]), 700)

    def test_every_timestamp_it_calls_certain_python_judges_alike(self) -> None:
        chance = random.Random(8)
        rows = []
        for _ in range(4000):
            text = chance.choice(
                ["2026-01-05T08:00:11.347Z", "2026-02-28 23:59", "2024-02-29T00:00:00+05:30"]
            )
            for _edit in range(chance.randint(0, 3)):
                at = chance.randrange(len(text) + 1)
                text = text[:at] + chance.choice("Z+-:. T0123456789") + text[at + 1 :]
            rows.append({"payload": json.dumps({"timestamp": text, "source_ts": DONE})})
        self.make(rows)
        self.fill()
        found = self.verify()
        self.assertEqual(found.verdicts[2], "PASS", found.text)
        self.assertNotEqual(found.verdicts[5], "FAIL", found.text)


# --- The documents ------------------------------------------------------------------------------

DOCUMENTS = ["README.md", "README_BACKFILL.md", "QUICKSTART.md", "benchmarks/README.md"]


class DocumentsTest(StoreTest):
    """What the documents say is what the program does."""

    def read(self, name: str) -> str:
        return (HERE / name).read_text(encoding="utf-8")

    def table(self, document: str, heading: str) -> list[list[str]]:
        """The cells of the first table under a heading."""
        section = self.read(document).partition(f"\n{heading}\n")[2]
        rows = re.search(r"(?m)^\|.*\n\|[ -|]+\n((?:\|.*\n)+)", section)
        assert rows is not None, heading
        return [
            [cell.strip() for cell in re.split(r" \| ", row.strip("| "))]
            for row in rows[1].splitlines()
        ]

    def sample(self, document: str, title: str) -> str:
        """The text of the sample that follows the comment `title`."""
        found = re.search(
            rf"<!-- {re.escape(title)} -->\n```text\n(.*?)```", self.read(document), re.S
        )
        assert found is not None, title
        return found[1]

    def demo(self, *options: str) -> str:
        """What the tool prints on stdout for demo.db, made in this test's folder."""
        if not (self.folder / "demo.db").exists():
            sample_store.make_store(self.folder / "demo.db")
        with contextlib.chdir(self.folder):
            return run("--db-path", "demo.db", *options).out

    @staticmethod
    def without_times(text: str) -> str:
        return re.sub(r"in [\d.]+ s, [\d,]+ rows/s", "in … s, … rows/s", text)

    def test_samples_are_what_the_program_prints(self) -> None:
        self.assertTrue(
            self.demo("--dry-run").startswith(
                self.sample("QUICKSTART.md", "the dry run of demo.db")
            )
        )
        self.assertEqual(
            self.without_times(self.demo()),
            self.without_times(self.sample("README.md", "the tool on demo.db")),
        )
        if SHELL is not None:
            with VERIFY.open("rb") as script:
                shell = subprocess.run(
                    [SHELL, self.folder / "demo.db"], check=True, stdin=script, capture_output=True
                )
            self.assertTrue(
                shell.stdout.decode().endswith(
                    "\n" + self.sample("README.md", "the verification of demo.db")
                )
            )

    def test_the_line_of_progress_is_one_that_the_program_draws(self) -> None:
        line = re.search(r"(?m)^    \[(#+)(-+)\] (Filling .*)$", self.read("README.md"))
        assert line is not None
        done, total = (
            int(number.replace(",", ""))
            for number in re.findall(r"([\d,]+)/([\d,]+) rows", line[3])[0]
        )
        self.assertEqual(len(line[1]), (len(line[1]) + len(line[2])) * done // total)
        speed = re.search(r"([\d,]+) rows/s", line[3])
        assert speed is not None
        elapsed = done / int(speed[1].replace(",", ""))
        self.assertEqual(line[3], backfill.format_progress("Filling", done, total, "rows", elapsed))

    def test_the_table_of_options_is_the_programs_own(self) -> None:
        documented = self.table("README_BACKFILL.md", "## Options")
        actual = []
        for action in backfill.build_parser()._actions:
            option = " ".join(filter(None, [action.option_strings[-1], action.metavar]))  # type: ignore[list-item]
            help_text = re.sub(r" \(default .*\)", "", action.help or "")
            plain = action.default is None or action.default in (True, "==SUPPRESS==")
            default = "" if plain or action.nargs == 0 else action.default
            if isinstance(default, float):
                default = f"{default:g}"
            actual.append([f"`{option}`", help_text, f"{default}"])
        own_words = {"`--version`", "`--help`"}
        self.assertEqual({row[0] for row in documented}, {row[0] for row in actual})
        for option, meaning, default in actual:
            with self.subTest(option):
                if option not in own_words:
                    row = next(row for row in documented if row[0] == option)
                    self.assertEqual(row[1], meaning)
                    self.assertEqual("".join(row[2:]).strip("`"), default)

    def test_every_option_has_an_example_that_works(self) -> None:
        section = (
            self.read("README_BACKFILL.md").partition("## Options")[2].partition("**`--dry")[0]
        )
        examples = re.findall(r"(?m)^    (python3 backfill_audit_decision_fields.py .*)$", section)
        sample_store.make_store(self.folder / "demo.db", rows=300)
        with contextlib.chdir(self.folder):
            for example in examples:
                with self.subTest(example):
                    result = run(*example.split()[2:])
                    self.assertEqual(result.code, 0, result.err)
        for action in backfill.build_parser()._actions:
            self.assertIn(action.option_strings[-1], " ".join(examples))

    def test_the_keys_of_the_json_summary_are_documented(self) -> None:
        self.make([{}])
        documented = [
            row[0].strip("`") for row in self.table("README_BACKFILL.md", "## The JSON summary")
        ]
        self.assertEqual(documented, list(self.fill()))

    def test_the_candidates_are_the_programs_own(self) -> None:
        text = self.read("README_BACKFILL.md")
        for column, names in backfill.FIELDS.items():
            listed = ", ".join(f"`{name}`" for name in names)
            self.assertIn(f"| `{column}` | payload {listed}, then the row's `created_at` |", text)

    def test_each_example_of_a_rule_comes_out_as_it_says(self) -> None:
        section = self.read("README_BACKFILL.md").partition("| rule | payload before |")[2]
        examples = re.findall(r"(?m)^\| .+? \| `(.+)` \| → (.+), (.+) \|$", section)
        self.assertEqual(len(examples), 9)
        self.make({"payload": payload, "created_at": "2026-01-05T08:00:11Z"}
                  for payload, _source, _processed in examples)  # fmt: skip
        self.fill()
        for (payload, *expected), columns in zip(examples, self.columns(), strict=True):
            with self.subTest(payload):
                self.assertEqual([f"`{value}`" if value else "NULL" for value in columns], expected)

    def test_every_message_stands_in_the_program_and_every_advice_in_the_manual(self) -> None:
        said = list(self.string_constants())
        manual = self.read("README_BACKFILL.md").partition("\n## Messages\n")[2]
        messages = re.findall(r"(?m)^\| `(.+?)` \|", manual)
        self.assertGreater(len(messages), 20)
        for message in messages:
            pattern = ".*".join(
                map(re.escape, message.removeprefix("audit_id …: … NULL: ").split("…"))
            )
            with self.subTest(message):
                self.assertTrue(any(re.search(pattern, text) for text in said))
        for advice in (*backfill.ADVICE.values(), backfill.OTHER_ADVICE):
            self.assertIn(self.as_documented(advice), manual)

    @staticmethod
    def as_documented(text: str) -> str:
        return text.replace("{options.busy_timeout:g}", "30")

    def string_constants(self) -> Iterator[str]:
        """Every string of the program, with … for what an f-string fills in."""
        for node in ast.walk(ast.parse(SCRIPT.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                yield "".join(
                    str(part.value) if isinstance(part, ast.Constant) else "…"
                    for part in node.values
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield self.as_documented(node.value)

    def test_links_lead_somewhere(self) -> None:
        for name in DOCUMENTS:
            text = self.read(name)
            for target in re.findall(r"\]\(([^)]+)\)", text):
                with self.subTest(name, target=target):
                    file, _, anchor = target.partition("#")
                    path = (HERE / name).parent / file if file else HERE / name
                    self.assertTrue(path.exists())
                    if anchor:
                        headings = re.findall(r"(?m)^#+ (.+)$", path.read_text(encoding="utf-8"))
                        anchors = [
                            re.sub(r"[^a-z0-9 _-]", "", heading.lower()).replace(" ", "-")
                            for heading in headings
                        ]
                        self.assertIn(anchor, anchors)

    def test_the_readme_has_the_two_commands_and_quotes_the_measured_tables(self) -> None:
        readme, measured = self.read("README.md"), self.read("benchmarks/README.md")
        for command in (
            "python3 benchmarks/sample_store.py demo.db &&"
            " python3 backfill_audit_decision_fields.py --db-path demo.db",
            "python3 test_backfill.py",
        ):
            self.assertRegex(readme, rf"(?m)^    {re.escape(command)}$")
        performance = readme.partition("\n## Performance\n")[2].partition("\n## ")[0]
        rows = re.findall(r"(?m)^\|.*\|$", performance)
        self.assertGreater(len(rows), 10)
        for row in rows:
            self.assertIn(row, measured)


def hostile_rows(seed: int, count: int) -> Iterator[dict[str, object]]:
    """Yield rows of every sort that a store must not hold and may hold all the same."""
    chance = random.Random(seed)
    names = [name for names in backfill.FIELDS.values() for name in names]
    values: list[object] = [value for _name, value, _written in TIMESTAMPS]
    values += ["\x1b[2J\x07", "\0", "\ud800", "\u202e", "x" * 300_000, 1e308, -0.0, 10**25]
    texts: list[object] = ["", "\0", "\x1b]0;title\x07", "rubbish", CREATED, None, b"\xff\xfe",
                           "2026-01-05 08:00:11", 1769940000, -1, 1e300]  # fmt: skip

    def payload() -> object:
        fields = {chance.choice(names): chance.choice(values) for _ in range(chance.randint(0, 4))}
        text = json.dumps(fields, ensure_ascii=chance.random() < 0.8)
        kind = chance.randrange(12)
        if kind == 0:
            return chance.choice(WITHOUT_FIELDS)[1]
        if kind == 1:
            return chance.choice(NOT_JSON)[1]
        if kind == 2:  # duplicate keys
            text = text[:-1] + (", " if fields else "") + text[1:]
        if kind == 3:  # deep nesting beside sound fields, around what parsers allow
            depth = chance.choice([100, 980, 1200, 3000])
            inner = "[" * depth + "]" * depth
            return f'{{"deep": {inner}{", " if fields else ""}{text[1:]}'.encode(
                errors="surrogatepass"
            )
        if kind == 4:
            return text.encode("utf-8", "surrogatepass")
        if kind == 5:  # cut off anywhere
            return text[: chance.randrange(len(text) + 1)].encode("utf-8", "surrogatepass")
        if kind == 6:
            return chance.randbytes(chance.randrange(40))
        if kind == 7:  # a key in other letters
            text = text.replace("timestamp", "time\\u0073tamp")
        return text.encode("utf-8", "replace").decode()

    for _ in range(count):
        yield {
            "event_type": chance.choice(["SUPERVISOR_ALLOWED", "X\x1b[1mSUPERVISOR\n", "TASK"]),
            "payload": payload(),
            "created_at": chance.choice(texts),
            "source_event_ts": chance.choice([None, None, None, None, *texts]),
            "supervisor_processed_at": chance.choice([None, None, None, None, *texts]),
        }


if __name__ == "__main__":
    unittest.main()
