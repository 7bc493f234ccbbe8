#!/usr/bin/env python3
"""Tests of the backfill: python3 test_backfill.py

Nothing but Python is needed. The stores are made in a temporary folder and removed.
"""

from __future__ import annotations

import ast
import contextlib
import fcntl
import io
import itertools
import json
import math
import multiprocessing
import os
import pty
import random
import re
import resource
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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from functools import partial
from pathlib import Path, PureWindowsPath
from typing import Any, NamedTuple
from unittest import mock
from urllib.parse import unquote

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE / "benchmarks")]

import sample_store  # noqa: E402
import writer  # noqa: E402

import backfill_audit_decision_fields as backfill  # noqa: E402

SCRIPT = HERE / "backfill_audit_decision_fields.py"
COLUMNS = S, P = ("source_event_ts", "supervisor_processed_at")
CREATED = "2026-01-05T08:00:11.347000Z"
EVENT = "2026-01-05T08:00:01.000000Z"
DONE = "2026-01-05T08:00:09.500000Z"
NULLS, SURE = (None, None), (EVENT, DONE)
FILLED = {"source_event_ts": EVENT, "supervisor_processed_at": DONE}
SOUND = json.dumps(FILLED)
MALFORMED = "{'not': json}"
OPEN: dict[str, object] = {
    "audit_id": None, "event_type": "SUPERVISOR_ALLOWED", "payload": SOUND, "created_at": CREATED,
    "source_event_ts": None, "supervisor_processed_at": None,
}  # fmt: skip
JOURNAL_MODES = ("wal", "delete")
TIMES = ("elapsed_seconds", "rows_per_second", "started_at")
HEAVY = bool(os.environ.get("BACKFILL_HEAVY"))
IS_ROOT = os.geteuid() == 0
# A newer SQLite comes with a module of its own, which tells no extended codes and sets no limits.
OWN_MODULE = unittest.skipUnless(sqlite3.__name__ == "sqlite3", "needs Python's own sqlite3")

# A shell starts a job in the background deaf to Ctrl-C; what is tested here listens.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


class Result(NamedTuple):
    """What a run of the tool left behind."""

    code: int | None
    out: str
    err: str

    @property
    def summary(self) -> dict[str, Any]:
        return dict(json.loads(self.out))


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
    """A summary without what differs between a run and its dry run."""
    other = ("dry_run", "batches", *TIMES)
    return {key: value for key, value in summary.items() if key not in other}


def versions(*texts: str) -> str:
    return "".join(f"INSERT INTO schema_version (version) VALUES ('{text}');" for text in texts)


class StoreTest(unittest.TestCase):
    """Gives each test a folder and a store in it, and the tool, in this process or its own."""

    def setUp(self) -> None:
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.path = self.folder / "store.db"
        for signum in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGTSTP):
            self.addCleanup(signal.signal, signum, signal.getsignal(signum))

    def fresh(
        self,
        *rows: Mapping[str, object],
        journal_mode: str = "delete",
        extra: str = "",
        path: Path | None = None,
    ) -> None:
        """Make a store with the v21 schema, in place of one that is there.

        A row's columns default to a sound, open one.
        """
        path = path or self.path
        for suffix in ("", "-wal", "-shm", "-journal"):
            Path(f"{path}{suffix}").unlink(missing_ok=True)
        with contextlib.closing(sqlite3.connect(path)) as store:
            store.execute(f"PRAGMA journal_mode = {journal_mode}")
            store.execute("PRAGMA synchronous = OFF")
            made = sample_store.SCHEMA + versions(*sample_store.VERSIONS)
            store.executescript(f"BEGIN; {made} COMMIT;")
            with store:
                self.insert(store, rows)
            store.executescript(extra)

    @staticmethod
    def insert(store: sqlite3.Connection, rows: Iterable[Mapping[str, object]]) -> None:
        columns = ", ".join(OPEN)
        values = columns.replace(", ", ", :")
        sql = f"INSERT INTO task_audits (task_id, {columns}) VALUES ('task', :{values})"
        store.executemany(sql, [{**OPEN, **row} for row in rows])

    def tool(self, *options: object) -> Result:
        return run("--db-path", self.path, *options)

    def fill(self, *options: object) -> dict[str, Any]:
        """Run the tool to its end and return the JSON summary."""
        result = self.tool("--json", *options)
        self.assertEqual(result.code, 0, result.err)
        return result.summary

    @contextlib.contextmanager
    def on(self, name: str, action: Callable[[], object]) -> Iterator[None]:
        """Do something before each call of a function of the tool."""
        function = getattr(backfill, name)

        def act_first(*arguments: Any) -> Any:
            action()
            return function(*arguments)

        with mock.patch.object(backfill, name, act_first):
            yield

    @contextlib.contextmanager
    def beside(self, other: str | Callable[[], object], *, before: int = 1) -> Iterator[None]:
        """Let others commit some SQL, or do something, before the n-th batch takes the lock.

        The batch has been read and planned by then.
        """
        calls = itertools.count(1)
        action = partial(self.change, other) if isinstance(other, str) else other

        def act() -> None:
            if next(calls) == before:
                action()

        with self.on("backfill_batch", act):
            yield
        self.assertGreater(next(calls), before, "there were not so many batches")

    def connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, isolation_level=None, timeout=5)
        self.addCleanup(connection.close)
        return connection

    def columns(self, path: Path | None = None) -> list[tuple[Any, Any]]:
        return self.query(f"SELECT {S}, {P} FROM task_audits ORDER BY audit_id", path)

    def query(self, sql: str, path: Path | None = None) -> list[Any]:
        with contextlib.closing(sqlite3.connect(path or self.path, timeout=30)) as store, store:
            return store.execute(sql).fetchall()

    def change(self, sql: str, path: Path | None = None) -> None:
        with contextlib.closing(sqlite3.connect(path or self.path)) as store:
            store.executescript(sql)

    def files(self) -> dict[str, bytes | None]:
        return {
            str(path.relative_to(self.folder)): path.read_bytes() if path.is_file() else None
            for path in self.folder.rglob("*")
        }

    def start(self, *options: object, program: Sequence[object] = (SCRIPT,)) -> Any:
        """Start the tool as a process of its own, with --json."""
        command = [sys.executable, *program, "--db-path", self.path, "--json", *options]
        nowhere, pipe = subprocess.DEVNULL, subprocess.PIPE
        process = subprocess.Popen(
            list(map(str, command)), stdin=nowhere, stdout=pipe, stderr=pipe, text=True
        )
        self.addCleanup(process.communicate)
        self.addCleanup(process.kill)
        return process

    def finish(self, process: subprocess.Popen[str]) -> Result:
        out, err = process.communicate(timeout=60)
        self.assertNotIn("Traceback", err)
        return Result(process.returncode, out, err)

    def wait_until_filled(self, rows: int) -> None:
        """Return once the tool has committed at least so many rows."""
        give_up = time.monotonic() + 30
        while self.count_filled() < rows:
            self.assertLess(time.monotonic(), give_up, "the tool fills nothing")
            time.sleep(0.005)

    def count_filled(self) -> int:
        filled = self.query(f"SELECT count(*) FROM task_audits WHERE {S} || {P} NOT NULL")
        return int(filled[0][0])

    def run_beside(self, sql: str, *options: object, before: int = 1) -> Result:
        with self.beside(sql, before=before):
            return self.tool("--json", *options)

    def coverage(self, last: int = 2**62) -> float:
        rows = self.query(f"{FOUND} WHERE event_type LIKE '%SUPERVISOR%' AND audit_id <= {last}")
        return backfill.percent(sum(None not in row for row in rows), len(rows))

    def assert_sums(self, summary: Mapping[str, Any]) -> None:
        reached = summary["filled"] + sum(summary["left_null"].values()) + summary["gone"]
        self.assertEqual(reached, summary["to_fill"], summary)

    def hold(self, *statements: str) -> sqlite3.Connection:
        """Hold a lock or a read, in a connection that any thread may use."""
        other = sqlite3.connect(self.path, isolation_level=None, timeout=0, check_same_thread=False)
        self.addCleanup(other.close)
        for statement in statements:
            other.execute(statement).fetchall()
        return other

    def sample(self, rows: int, journal_mode: str) -> list[tuple[Any, Any]]:
        """Make a store like a real one, and return what one run makes of its columns."""
        copy = self.folder / "copy.db"
        for path in (self.path, copy):
            path.unlink(missing_ok=True)
            sample_store.make_store(path, rows=rows, journal_mode=journal_mode)
        self.assertEqual(run("--db-path", copy, "--quiet").code, 0)
        return self.columns(copy)

    def assert_failed(self, result: Result, *words: str, path: Path | None = None) -> str:
        """Exit code 1, and one error, on one line, that names the store; return it."""
        self.assertEqual(result.code, 1, result)
        self.assertNotIn("Traceback", result.err)
        (error,) = re.findall("(?m)^error: .*$", result.err)
        for word in (*words, re.escape(str(path or self.path))):
            self.assertRegex(error, word)
        if result.out.startswith("{"):
            self.assertEqual(result.summary["status"], "failed")
            self.assertIn(result.summary["error"], error)
        return str(error)

    def assert_cause(self, result: Result, name: str, *words: str) -> None:
        error = self.assert_failed(result, rf"\({name}\w*: [^)]+\)(?!; for its temp)", *words)
        self.assertEqual("damaged" in error, name == "SQLITE_CORRUPT", error)

    def watched(self, word: str, action: Callable[[], object], *options: object) -> Result:
        """Run the tool, and do something when it first says the word."""
        actions = iter([action])

        class Watched(io.StringIO):
            def write(self, text: str) -> int:
                if word in text:
                    next(actions, int)()
                return super().write(text)

        with mock.patch.object(io, "StringIO", Watched):
            return self.tool(*options)

    def checks(self, *statements: str) -> None:
        """Put checks of the test's own beside the script."""
        self.enterContext(mock.patch.object(backfill, "__file__", str(self.folder / "tool.py")))
        (self.folder / "verify_backfill.sql").write_text(";\n".join([*statements, ""]))

    def shell(self, line: str, *options: object) -> Result:
        """Run a line of shell in the folder, in which "$@" is the tool, with Python's buffers."""
        line = f"unset PYTHONUNBUFFERED; {line}"
        words = ["sh", "-c", line, "sh", *map(str, (sys.executable, SCRIPT, *options))]
        done = subprocess.run(words, check=False, capture_output=True, text=True, cwd=self.folder)
        self.assertNotIn("Traceback", done.stderr)
        return Result(done.returncode, done.stdout, done.stderr)


# --- Extraction: rules 2 to 4 -------------------------------------------------------------------

# What is usable as a timestamp, as a JSON value or as created_at: (id, value, written).
TIMESTAMPS: list[tuple[str, object, str | None]] = [
    # AgentOS's own form, to the letter.
    *(
        (text, text, text)
        for text in (
            "2026-01-05T08:00:11.347000Z", "2026-01-05 08:00:11", "2026-01-05T08:00",
            "2026-01-05T08:00Z", "2026-01-05T08:00:11.1+02:00",
            "2026-01-05T08:00:11.123456789-14:59", "2026-01-05 23:59:59+00:00",
            "2000-01-01T00:00:00Z", "2099-12-31T23:59:59.999999999Z", "2024-02-29T00:00:00Z",
            "2000-02-29 00:00", "2026-01-31T00:00:00Z", "2026-04-30T00:00:00Z",
        )
    ),
    # Other writers' spellings, rewritten to it.
    ("white space", " \t\r\n\v\f2026-01-05 08:00:11 \t\r\n\v\f", "2026-01-05T08:00:11"),
    ("a line feed behind it", "2026-01-05T08:00:11Z\n", "2026-01-05T08:00:11Z"),
    ("small t and z", "2026-01-05t08:00:11z", "2026-01-05T08:00:11Z"),
    ("a comma", "2026-01-05 08:00:11,347", "2026-01-05T08:00:11.347"),
    ("a comma and an offset", "2026-01-05 08:00:11,3 +0100", "2026-01-05T08:00:11.3+01:00"),
    ("a blank before Z", "2026-01-05 08:00 Z", "2026-01-05T08:00Z"),
    ("a blank before the offset", "2026-01-05T08:00:11 +02:00", "2026-01-05T08:00:11+02:00"),
    ("UTC", "2026-01-05 08:00:11 UTC", "2026-01-05T08:00:11Z"),
    ("UTC without a blank", "2026-01-05T08:00:11.5UTC", "2026-01-05T08:00:11.5Z"),
    ("an offset without a colon", "2026-01-05T08:00:11-0330", "2026-01-05T08:00:11-03:30"),
    ("an offset of hours", "2026-01-05 08:00:11+00", "2026-01-05T08:00:11+00:00"),
    ("another one", "2026-01-05 08:00:11-14", "2026-01-05T08:00:11-14:00"),
    # Numbers.
    ("seconds", 1769940000, "2026-02-01T10:00:00.000000Z"),
    *((repr(value), value, "2026-02-01T10:00:00.123000Z")
      for value in (1769940000.123, 1769940000123, 1769940000123.0, " 1769940000123\n")),
    ("microseconds", 1769940000123456, "2026-02-01T10:00:00.123456Z"),
    ("nanoseconds", 1769940000123456789, "2026-02-01T10:00:00.123457Z"),
    ("half a microsecond, to even", 1769940000123456500, "2026-02-01T10:00:00.123456Z"),
    ("another half, to even", 1769940000123457500, "2026-02-01T10:00:00.123458Z"),
    ("seconds as text", "1769940000", "2026-02-01T10:00:00.000000Z"),
    ("a fraction as text", "1769940000.25", "2026-02-01T10:00:00.250000Z"),
    *((f"{n}, the first", n, "2000-01-01T00:00:00.000000Z") for n in (
        946684800, 946684799.9999999, 946684800000, 946684800000000, 946684799999999500)),
    ("the last second", 4102444799, "2099-12-31T23:59:59.000000Z"),
    ("the last millisecond", 4102444799999, "2099-12-31T23:59:59.999000Z"),
    ("the last microsecond", 4102444799999999, "2099-12-31T23:59:59.999999Z"),
    ("the last nanosecond", 4102444799999999499, "2099-12-31T23:59:59.999999Z"),
    # Unusable.
    *(
        (str(value), value, None)
        for value in (
            946684799, 4102444800, 946684799999, 4102444800000, 946684799999999,
            4102444800000000, 946684799999999499, 4102444799999999500, 4102444799.9999999,
            0, -1769940000, 10**400, 1e308, float("inf"), float("nan"), True, False, None,
            {"$date": 1769940000}, [1769940000], "", "  ", "yesterday", "1.769940000e9",
            "+1769940000", "-1769940000", "0769940000", "1769940000.", ".1769940000", "17699400",
            "17699400001234567890", "1 769940000", "２０２６０００００",
            "2026-01-05", "2026-01-05 ", "20260105", "20260105T080000Z", "2026-W02-1",
            "2026-01-05_08:00", "2026-01-05  08:00", "2026-01-05T08", "2026-01-05T08:0",
            "2026-01-05T08:00:11.", "2026-01-05T08:00.5", "2026-01-05T08:00:11.1234567890",
            "2004-11-20T03:34:Z", "2026-01-05T08:00:11..5", "2026-01-05T08:00:11 5",
            "2026-01-05T24:00:00Z", "2026-01-05T08:60:00Z", "2026-01-05T08:00:60Z", "2026-01-05T",
            "2026-00-05T08:00Z", "2026-13-05T08:00Z", "2026-01-00T08:00Z", "2026-01-32T08:00Z",
            "2026-02-29T08:00Z", "2026-02-30T08:00Z", "2100-02-28T08:00Z", "1999-12-31T23:59Z",
            "2026-04-31T08:00Z", "2026-06-31T08:00Z", "2026-09-31T08:00Z", "2026-11-31T08:00Z",
            "2026-01-05T08:00:11+15:00", "2026-01-05T08:00:11+05:60", "2026-01-05T08:00:11+5",
            "2026-01-05T08:00:11+05:3", "2026-01-05T08:00:11+05:30:00", "2026-01-05T08:00:11  Z",
            "2026-01-05T08:00:11\tZ", "2026-01-05T08:00:11 PST", "2026-01-05T08:00:11 utc",
            "2026-01-05T08:00:11ZZ", "2026-01-05Z08:00:11", "2026-01-05T08:00:11Z\0",
            "\N{NO-BREAK SPACE}2026-01-05T08:00:11Z", "2026-01-05\N{EM DASH}08:00:11",
            "２０２６-01-05T08:00:11Z", "2026-01-05T08:00:1１Z",
        )
    ),
]  # fmt: skip

# What is no object, so that only created_at is left: (id, payload).
WITHOUT_FIELDS: list[tuple[str, object]] = [
    ("NULL", None), ("empty", ""), ("blank", " \t\r\n"), ("an empty BLOB", b""),
    ("an empty object", "{}"), ("a list", "[]"), ("a number", "42"), ("true", "true"),
    ("null", "null"), ("white space", "\v\f"), ("a text", '"2026-01-05T08:00:11Z"'),
    ("a list of objects", '[{"timestamp": "2026-01-05T08:00:11Z"}]'),
    ("500 levels", "[" * 500 + "]" * 500),
    ("brackets in a text", json.dumps(["[" * 400 + '"' + "{" * 400])),
    ("brackets side by side", "[" + "[]," * 600 + "[]]"),
]  # fmt: skip

NOT_JSON: list[tuple[str, object]] = [
    ("a word", "oops"), ("UTF-16", '{"timestamp": 1769940000}'.encode("utf-16")),
    ("a byte order mark", "\ufeff{}"), ("a control character", '{"timestamp": "\x1b"}'),
    ("cut off", '{"timestamp": "2026-01-05T08:00:11Z"'),
    ("something behind it", '{"timestamp": "2026-01-05T08:00:11Z"} x'),
    ("NUL behind it", '{"timestamp": "2026-01-05T08:00:11Z"}\0'),
    ("nested too deep", '{"a": ' * 501 + "1" + "}" * 501),
    ("nested too deep, in both ways", '{"a": [' * 250 + "[]" + "]}" * 250),
    ("nested too deep, further on", "[" + "[]," * 600 + "[" * 500 + "]" * 501),
    ("nested too deep, and not closed", "[" * 501),
    ("nested far too deep", "[" * 200_000 + "]" * 200_000),
    ("an escaped quote before the nesting", '["\\"", ' + "[" * 500 + "]" * 501),
    ("UTF-8 that is none", b'{"timestamp": "\xff"}'),
    ("single quotes", "{'timestamp': '2026-01-05T08:00:11Z'}"), ("a BLOB", b"\x00\x01\x02"),
]  # fmt: skip


class ExtractionTest(unittest.TestCase):
    def extract(self, payload: object, created_at: object = CREATED) -> tuple[Any, ...]:
        found = backfill.extract_timestamps(payload, created_at)
        self.assertEqual(list(found), list(COLUMNS))
        return tuple(found.values())

    def test_a_candidate_and_created_at_are_read_by_one_rule(self) -> None:
        for name, value, written in TIMESTAMPS:
            with self.subTest(name):
                payload = json.dumps({"source_event_ts": value, "supervisor_processed_at": value})
                self.assertEqual(self.extract(payload), (written or CREATED,) * 2)
                self.assertEqual(self.extract("{}", value), (written, written))

    def test_fields_have_an_order_and_say_nothing_of_the_other_column(self) -> None:
        order = "source_event_ts source_ts event_timestamp task_created_at"
        order += " supervisor_processed_at processed_at timestamp"
        self.assertEqual(" ".join(itertools.chain(*backfill.FIELDS.values())), order)
        for column, names in backfill.FIELDS.items():
            for at, name in enumerate(names):
                expected = {**dict.fromkeys(COLUMNS, CREATED), column: EVENT}
                for others in (dict.fromkeys(names[at:], DONE), dict.fromkeys(names[:at], "x")):
                    payload = json.dumps({**others, name: EVENT, "created_at": DONE})
                    self.assertEqual(backfill.extract_timestamps(payload, CREATED), expected)

    def test_a_payload_has_fields_or_none_or_is_malformed(self) -> None:
        twice = f'{{"source_ts": 1, "source_ts": "{EVENT}", "timestamp": "{DONE}"}}'
        many = "9" * 5000
        long = f'{{"n": -{many}, "source_ts": 1769940000123456789, "timestamp": {many}}}'
        for name, payload, expected in (
            ("a BLOB", SOUND.encode(), (EVENT, DONE)),
            ("white space", f"\r\n\t {SOUND} \n", (EVENT, DONE)),
            ("the last of two keys counts", twice, (EVENT, DONE)),
            ("long integers", long, ("2026-02-01T10:00:00.123457Z", CREATED)),
            *((name, payload, (CREATED, CREATED)) for name, payload in WITHOUT_FIELDS),
            *((name, payload, (None, None)) for name, payload in NOT_JSON),
        ):
            with self.subTest(name):
                self.assertEqual(self.extract(payload), expected)

    def test_nesting_crashes_no_thread_with_a_small_stack(self) -> None:
        code = """if True:
            import threading, backfill_audit_decision_fields as backfill
            threading.stack_size(2**20)
            texts = ["[" * 500 + "]" * 500, "[" * 10**6]
            work = lambda: [print(backfill.extract_timestamps(text, None)) for text in texts]
            threading.Thread(target=work).start()"""
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, cwd=HERE, check=False, capture_output=True)
        self.assertEqual((done.returncode, done.stdout.count(b"None")), (0, 4), done.stderr)


# --- A run: what is written ---------------------------------------------------------------------

# Rule 5: (id, what the payload says, what is there, what is there afterwards)
PAIRS: list[tuple[str, tuple[Any, Any], tuple[Any, Any], tuple[Any, Any]]] = [
    ("without, with", ("2026-01-05 08:01", DONE), NULLS, ("2026-01-05T08:01:00Z", DONE)),
    ("with, without", (EVENT, "2026-01-05 08:01"), NULLS, (EVENT, "2026-01-05T08:01:00Z")),
    ("to the microsecond", ("2026-01-05 08:00:01.123456789", DONE), NULLS,
     ("2026-01-05T08:00:01.123456Z", DONE)),
    ("-02:00 is one", ("2026-01-05 08:00-02:00", DONE), NULLS, ("2026-01-05 08:00-02:00", DONE)),
    ("both without", ("2026-01-05 08:00", "2026-01-05T08:01"), NULLS,
     ("2026-01-05 08:00", "2026-01-05T08:01")),
    ("without beside with", ("2026-01-05 00:00", None), (None, "2026-01-05T09:00+01:00"),
     ("2026-01-05T00:00:00Z", "2026-01-05T09:00+01:00")),
    ("with beside without", ("2026-01-05T10:30:00.25+02:00", None), (None, "2026-01-05 08:31"),
     ("2026-01-05T08:30:00.250000", "2026-01-05 08:31")),
    ("the other column", (None, "2026-01-05T20:30:00-05:30"), ("2026-01-05", None),
     ("2026-01-05", "2026-01-06T02:00:00")),
    ("with beside with", (None, DONE), ("2026-01-05 08:00+03:00", None),
     ("2026-01-05 08:00+03:00", DONE)),
    ("beside rubbish", ("2026-01-05 08:01", None), (None, "-"), ("2026-01-05 08:01", "-")),
    ("any separator", (EVENT, None), (None, "2026-01-05\N{EM DASH}08:00"),
     ("2026-01-05T08:00:01", "2026-01-05\N{EM DASH}08:00")),
    ("a day with Z is none", (None, "2026-01-05 08:01"), ("1999-01-05Z", None),
     ("1999-01-05Z", "2026-01-05 08:01")),
    ("any year", (None, "2026-01-05 08:01"), ("1999-01-05T00:00Z", None),
     ("1999-01-05T00:00Z", "2026-01-05T08:01:00Z")),
]  # fmt: skip


def read_as_agentos(text: str) -> datetime:
    """What AgentOS's readers do with a column."""
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


UNFILLABLE = {"payload": "{}", "created_at": "yesterday"}


def row(**fields: object) -> dict[str, object]:
    """A row with this payload."""
    return {"payload": json.dumps(fields)}


def without_zeros(figures: Iterable[Mapping[str, int]]) -> list[dict[str, int]]:
    return [{name: number for name, number in counts.items() if number} for counts in figures]


class RunTest(StoreTest):
    def test_the_six_scenarios_that_were_asked_for(self) -> None:
        others = ("source_ts", "event_timestamp", "task_created_at"), ("processed_at", "timestamp")
        pairs = list(itertools.product(*others))
        nothing = [{"payload": payload} for payload in (None, "", "   ", "{}", "[]", b"")]
        events = ["TASK_CREATED", "SUPERVISE", "X", "SUPERVISOR_X", "X_SUPERVISOR", "supervisor_x"]
        for name, rows, columns, sources in (
            ("1, all fields", [{}], [(EVENT, DONE)], [{name: 1} for name in COLUMNS]),
            ("2, other names", [row(**{a: EVENT, b: DONE}) for a, b in pairs], [(EVENT, DONE)] * 6,
             [dict.fromkeys(others[0], 2), dict.fromkeys(others[1], 3)]),
            ("3, missing fields", [row(reason="none"), row(timestamp=DONE)],
             [(CREATED, CREATED), (CREATED, DONE)],
             [{"created_at": 2}, {"timestamp": 1, "created_at": 1}]),
            ("4, no payload", nothing, [(CREATED, CREATED)] * 6, [{"created_at": 6}] * 2),
            ("5, not JSON", [{}, {"payload": MALFORMED}, {}],
             [(EVENT, DONE), (None, None), (EVENT, DONE)], [{name: 2} for name in COLUMNS]),
            ("6, others' events", [{"event_type": event} for event in events],
             [(None, None)] * 3 + [(EVENT, DONE)] * 3, [{name: 3} for name in COLUMNS]),
        ):  # fmt: skip
            with self.subTest(name):
                self.fresh(*rows)
                result = self.tool("--json")
                self.assertEqual((result.code, self.columns()), (0, columns))
                self.assertEqual(without_zeros(result.summary["sources"].values()), sources)
                malformed = re.findall("(?m)^warning: audit_id 2: .*not JSON: .*name", result.err)
                self.assertEqual(result.summary["left_null"]["malformed_json"], len(malformed))
                self.assertEqual(len(malformed), 1 if name[0] == "5" else 0)

    def test_pairs(self) -> None:
        rows = []
        for _name, found, there, _expected in PAIRS:
            payload = row(**dict(zip(COLUMNS, found, strict=True)))
            rows.append(payload | dict(zip(COLUMNS, there, strict=True)))
        self.fresh(*rows)
        self.assertEqual(self.fill()["filled"], len(PAIRS))
        for (name, _found, _there, expected), columns in zip(PAIRS, self.columns(), strict=True):
            with self.subTest(name):
                self.assertEqual(columns, expected)

    def test_only_nulls_are_filled_column_by_column(self) -> None:
        there = "2020-02-02T02:02:02Z"
        self.fresh(
            {"source_event_ts": there},
            {"supervisor_processed_at": there},
            {"source_event_ts": there, "supervisor_processed_at": there},
            {"source_event_ts": ""},
            {"supervisor_processed_at": "rubbish", "payload": MALFORMED},
            {"created_at": "yesterday", **row(timestamp=DONE)},
            {"supervisor_processed_at": there, **UNFILLABLE},
        )
        summary = self.fill()
        columns = [(there, DONE), (EVENT, there), (there, there), ("", DONE), (None, "rubbish")]
        self.assertEqual(self.columns(), [*columns, (None, DONE), (None, there)])
        written = [{"source_event_ts": 1}, {"supervisor_processed_at": 2, "timestamp": 1}]
        self.assertEqual(without_zeros(summary["sources"].values()), written)
        self.assertEqual((summary["already_filled"], summary["filled"]), (1, 3))
        left = [{"malformed_json": 1, "no_timestamp": 2}]
        self.assertEqual(without_zeros([summary["left_null"]]), left)

    def test_every_batch_size_comes_to_the_same_also_where_none_can_be_filled(self) -> None:
        sound = [-(2**63), -5, -1, 0, 7, 10**6, 2**40, 2**63 - 1]
        ids = sorted([*sound, *range(10**9, 10**9 + 15)])
        rows = [{"audit_id": n, "payload": SOUND if n in sound else MALFORMED} for n in ids]
        expected = [(EVENT, DONE) if n in sound else (None, None) for n in ids]
        for size, batches in ((1, 23), (7, 4), (22, 2), (23, 1), (24, 1), (10**17, 1)):
            with self.subTest(size):
                self.fresh(*rows, journal_mode=JOURNAL_MODES[size % 2])
                summary = self.fill("--batch-size", size)
                self.assertEqual(self.columns(), expected)
                self.assertEqual((summary["batches"], summary["batch_size"]), (batches, size))

    def test_batches_begin_with_100_rows_and_double_and_skip_ranges_with_nothing_open(self) -> None:
        closed = {"event_type": "TASK"}
        for rows, size, batches in (
            ([{}] * 100, 5000, 1), ([{}] * 101, 5000, 2), ([{}] * 3100, 5000, 5),
            ([{}] * 3101, 5000, 6), ([{}] * 700, 400, 3), ([{}] * 701, 400, 4), ([{}] * 50, 20, 3),
            ([*[closed] * 999, {}, *[closed] * 2000, {}], 200, 7), ([closed] * 4000, 1000, 0),
        ):  # fmt: skip
            with self.subTest(len(rows), size=size):
                self.fresh(*rows)
                summary = self.fill("--dry-run", "--batch-size", size)
                self.assertEqual(summary["batches"], batches)
                self.assertEqual(summary["filled"], rows.count({}))

    def test_a_dry_run_foretells_the_run_and_like_a_second_run_leaves_every_byte(self) -> None:
        others = """SELECT audit_id, task_id, level, event_type, payload, created_at, decision_id,
                           verdict_id, repo_id FROM task_audits"""
        for mode in JOURNAL_MODES:
            with self.subTest(mode):
                self.path.unlink(missing_ok=True)
                sample_store.make_store(self.path, rows=1000, journal_mode=mode)
                self.query("UPDATE task_audits SET level = 'odd', verdict_id = 7, repo_id = x'ff'")
                before, rows = self.path.read_bytes(), self.query(others)
                dry = self.fill("--dry-run", "--batch-size", 70)
                self.assertEqual((self.path.read_bytes(), dry["dry_run"]), (before, True))
                first = self.fill("--batch-size", 70)
                self.assertEqual((figures(first), self.query(others)), (figures(dry), rows))
                before = self.path.read_bytes()
                left, second = first["left_null"], self.fill()
                self.assertEqual((self.path.read_bytes(), second["filled"]), (before, 0))
                rest = second["to_fill"], second["left_null"]
                self.assertEqual(rest, (sum(left.values()), left))


# --- What is counted ----------------------------------------------------------------------------


class FiguresTest(StoreTest):
    def test_the_summary_and_its_keys(self) -> None:
        keys = """status db_path dry_run batch_size batches supervisor_rows already_filled to_fill
            filled left_null gone undone sources unusable coverage_before_pct coverage_after_pct
            elapsed_seconds rows_per_second version started_at error backup"""
        reasons = "malformed_json no_timestamp unreadable refused"
        fields = {column: [*names, "created_at"] for column, names in backfill.FIELDS.items()}
        self.fresh(*[{}] * 200)
        for option in (["--dry-run"], ["--pause", 0.3]):
            summary = self.fill("--batch-size", 100, *option)
            self.assertEqual(list(summary), keys.split())
            self.assertEqual(" ".join(summary["left_null"]), reasons)
            self.assertEqual(list(summary["unusable"]), list(COLUMNS))
            self.assertEqual({c: list(names) for c, names in summary["sources"].items()}, fields)
            about = [summary[key] for key in ("db_path", "version", "error", "backup", "undone")]
            self.assertEqual(about, [str(self.path), backfill.__version__, None, None, 0])
        self.assertGreaterEqual(summary["elapsed_seconds"], 0.3)
        rows = summary["rows_per_second"] * summary["elapsed_seconds"]
        self.assertAlmostEqual(rows, 200, delta=2)

    def test_rows_that_others_close_are_gone(self) -> None:
        close = f"""
            UPDATE task_audits SET source_event_ts = '{EVENT}', supervisor_processed_at = '{DONE}'
             WHERE audit_id = 3;
            DELETE FROM task_audits WHERE audit_id IN (4, 199, 200);
            UPDATE task_audits SET event_type = 'TASK' WHERE audit_id = 150"""
        self.fresh(*[FILLED] * 2, *[{}] * 198, {"payload": MALFORMED})
        with self.beside(close):
            out = self.tool("--batch-size", 100).out
        rows = r"\nsupervisor_rows +201\nalready_filled +2\nto_fill +199\nfilled +193\n(?s:.*)\n"
        self.assertRegex(out, rows + r"gone +5\n(?s:.*)193 of 199 .* 5 .* by others, .* 99\.4 %")

    def test_a_dry_run_shows_a_row_of_each_kind(self) -> None:
        long = "SUPERVISOR" * 20
        self.fresh(
            {"audit_id": 7, **row(timestamp=DONE)},
            {"audit_id": 8, "payload": MALFORMED, "created_at": "\x1b", "event_type": f"{long}!"},
            {"audit_id": 9, "source_event_ts": EVENT, "event_type": "SUPERVISOR_\x1b[2J"},
            {"audit_id": 10, "event_type": long, **row(timestamp=5, source_ts=EVENT)},
            *[{}] * 1000,
            *[row(timestamp=DONE)] * 5,
        )
        out = self.tool("--dry-run").out
        for lines in (
            "\n1,000 rows like audit_id 11, SUPERVISOR_ALLOWED\n",
            rf"6 rows like audit_id 7, SUPERVISOR_ALLOWED\n  created_at {CREATED}\n"
            rf"  source_event_ts {CREATED} from created_at\n  super\S+ {DONE} from timestamp\n",
            rf"1 row like audit_id 8, {long[:190]}\w+\.\.\.\n  created_at \\x1b\n"
            r"  source_event_ts left NULL\n  supervisor_\S+ left NULL\n  .*not JSON.*\n",
            rf"1 row like audit_id 9, SUPERVISOR_\\x1b\[2J\n.*\n  source_event_ts {EVENT} .*there"
            rf".*\n  supervisor_processed_at {DONE} from supervisor_processed_at\n",
            rf"1 row like audit_id 10, {long}\n(.*\n)+.*created_at.*(\n.*)?timestamp .*length 1",
        ):
            self.assertRegex(out, f"\n{lines}")


class VerdictTest(StoreTest):
    def test_it_ends_the_report_or_with_json_what_is_said_on_stderr(self) -> None:
        odd = {"payload": MALFORMED}
        half = {"created_at": "yesterday", **row(timestamp=DONE)}
        for name, rows, options, words in (
            ("done", [{}, row(), odd], [], ["completed", "2 of 3 ", "1 left", "66", "--verify"]),
            ("thousands", [{}] * 1001, [], ["completed", "1,001 of 1,001 ", r"100\.0 %"]),
            ("half a row", [half], [], ["completed", "0 of 1 ", "1 left", r" 0\.0 %"]),
            ("dry", [{}, odd, FILLED], ["--dry-run"],
             ["dry run", "1 of 2 ", "1 would", r"66\.6 %", "without --dry-run"]),
            ("all filled", [FILLED], [], ["nothing to do", "all 1 ", "--verify"]),
            ("all filled, dry", [FILLED], ["--dry-run"], ["nothing to do", "all 1 ", "--verify"]),
            ("none can be", [odd, FILLED], [], ["nothing to do", "1 left", r"50\.0 %", "--verify"]),
            ("no rows", [{"event_type": "TASK"}], [], ["nothing to do", "no rows", r"right one\?"]),
            ("an empty table", [], [], ["nothing to do", "no rows", r"right one\?"]),
        ):  # fmt: skip
            with self.subTest(name):
                self.fresh(*rows)
                plain = self.tool(*options)
                verdict = plain.out.splitlines()[-1]
                self.assertRegex(verdict, "^" + ".*".join(words))
                self.assertNotIn(verdict, plain.err)
                nothing = words[0] == "nothing to do"
                self.assertEqual("\nsources\n" in plain.out, not nothing)
                self.fresh(*rows)
                self.assertEqual(self.tool("--json", *options).err.splitlines()[-1], verdict)
                self.fresh(*rows)
                self.assertEqual(self.tool("--json", "--quiet", *options).err, "")

    def test_an_interrupted_dry_run_says_that_nothing_was_written(self) -> None:
        self.fresh(*[{}] * 50)
        stop = partial(signal.raise_signal, signal.SIGINT)
        with mock.patch.object(backfill, "PLAIN_SECONDS", 0.0):
            result = self.watched("Dry run", stop, "--dry-run", "--batch-size", 10)
        words = "\nfilled +10\n(?s:.*)\ninterrupted by SIGINT: nothing was written"
        self.assertRegex(result.out, words)

    def test_a_failed_run_says_what_stays(self) -> None:
        delete = "DELETE FROM task_audits WHERE audit_id < 11"
        undo = "UPDATE task_audits SET source_event_ts = NULL WHERE audit_id = 11"
        for sql, lines in (
            (undo, r"undone +1\n.*after_pct +99\.9.*\nfailed: .*1 row .*another process.*again"),
            ("DROP TABLE task_audits", r"after_pct +90\.8.*\nfailed: .* 990 of 1,100 .*stay"),
        ):
            self.fresh(*[{}] * 1100)
            with self.subTest(sql), self.beside(sql, before=11), self.beside(delete):
                result = self.tool("--batch-size", 100)
                self.assertEqual((result.code, result.err.count("error: ")), (1, 1))
                self.assertRegex(result.out, rf"(?s){lines}[^\n]*\n\Z")


# --- The terminal -------------------------------------------------------------------------------


class TerminalTest(StoreTest):
    def test_three_examples_of_each_reason_are_shown_and_all_counted(self) -> None:
        rows = [{"payload": MALFORMED}] * 1030 + [UNFILLABLE] * 4 + [{"source_event_ts": b"x"}]
        self.fresh(*rows, *[row(timestamp="PST", source_ts=EVENT)] * 3, row(timestamp=DONE))
        for option, where in (([], "--log-file"), (["--log-file", self.folder / "a"], "log has")):
            err = self.tool("--dry-run", *option).err
            for shown, number, words, summed_up in (
                (3, "1,030 rows", "not JSON", "not JSON"),
                (3, "4 rows", "no timestamp", "no timestamp"),
                (3, "3 rows", "not a timestamp", "field"),
                (1, "1 row", "BLOB", "not hold text"),
            ):
                with self.subTest(words, where=where):
                    self.assertEqual(len(re.findall(f"warning: audit_id .*{words}", err)), shown)
                    self.assertRegex(err, f"(?m)^warning: {number} .*{summed_up}.*{where}")
            notes = re.findall(r"(?m)^note: (\d values?) .*\b(s\w+_\w+_\w+) .*created_at", err)
            self.assertEqual(notes, [("1 value", COLUMNS[0]), ("3 values", COLUMNS[1])])
        self.fresh(row(source_ts=EVENT))
        self.assertRegex("".join(self.tool()[1:]), "100 % of superv(?s:.*)note: 1 value of superv")

    def test_the_end_of_progress_is_shown_once(self) -> None:
        other = [{"event_type": "TASK"}] * 3000
        self.fresh(*other, {}, *other)
        self.assertRegex(self.tool().err, r"\A.#+. Filling  100\.0 %  1/1 rows.*\n\Z")

    def test_progress_elsewhere_is_plain_lines_that_end_at_100_percent(self) -> None:
        for pace, expected in ((0.0, "20.0 40.0 60.0 80.0 100.0"), (3600.0, "100.0")):
            self.fresh(*[{}] * 50)
            with mock.patch.object(backfill, "PLAIN_SECONDS", pace):
                err, quiet = self.tool("--batch-size", 10).err, self.tool("--quiet").err
            shares = re.findall(r"(?m)^\[[#-]{10}\] Filling +([\d.]+) %", err)
            self.assertEqual((" ".join(dict.fromkeys(shares)), quiet), (expected, ""))
            self.assertEqual("Counting  50 rows" in err, not pace)
            self.assertRegex(err, r" 50/50 rows  [\d,]+ rows/s\n\Z")

    def on_a_terminal(self, columns: int, kind: str) -> str:
        """Run the tool with stderr on a terminal and return all that it wrote there."""
        screen, terminal = pty.openpty()
        self.addCleanup(os.close, screen)
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

        def read() -> bytes:
            written = b""
            with contextlib.suppress(OSError):  # what Linux says once nobody can write any more
                while chunk := os.read(screen, 65536):
                    written += chunk
            return written

        with ThreadPoolExecutor() as pool, mock.patch.dict(os.environ, {"TERM": kind}):
            reading = pool.submit(read)
            redraw_always = mock.patch.object(backfill, "REDRAW_SECONDS", 0.0)
            with os.fdopen(terminal, "w", encoding="utf-8") as stderr, redraw_always:
                with mock.patch("sys.stderr", stderr), mock.patch("sys.stdout"):
                    backfill.main(["--db-path", str(self.path), "--batch-size", "10"])
            return reading.result().decode()

    def test_progress_on_a_terminal_is_one_line_that_redraws_itself_within_the_width(self) -> None:
        for columns, end in ((100, "rows/s"), (40, "50/50 ro")):
            with self.subTest(columns):
                self.fresh(*[{}] * 15, {"payload": MALFORMED}, *[{}] * 34)
                said = self.on_a_terminal(columns, "xterm")
                lines = re.findall(r"\r\x1b\[K(\[[^\r]*)(\r\n)?", said)
                shares = re.findall(r"\[[#-]{10}\] Filling  ([\d.]+) %", said)
                self.assertEqual(" ".join(dict.fromkeys(shares)), "20.0 40.0 60.0 80.0 100.0")
                self.assertTrue(lines[-1][0].endswith(end), lines[-1])
                self.assertNotIn("\x1b", said.rpartition(lines[-1][0])[2])
                self.assertEqual([bool(left) for _line, left in lines].index(True), len(lines) - 1)
                self.assertLess(max(len(line) for line, _left in lines), columns)
                self.assertRegex(said, r"\r\x1b\[Kwarning: audit_id 16: [^\r]*\r\n")
        self.fresh({})
        self.assertNotIn("\x1b", self.on_a_terminal(80, "dumb"))

    def test_figures_of_progress_are_rounded_such_that_only_the_end_looks_like_it(self) -> None:
        for arguments, line in (
            (("Filling", "rows", 0, 9, 5.0), "[----------] Filling  0.0 %  0/9 rows"),
            (("Filling", "rows", 2500, 10000, 5.0),
             "[##--------] Filling  25.0 %  2,500/10,000 rows  500 rows/s  0:00:15 left"),
            (("Backup", "pages", 9999, 10000, 2.0),
             "[#########-] Backup  99.9 %  9,999/10,000 pages  5,000 pages/s  0:00:01 left"),
            (("Filling", "rows", 6, 6, 3.0), "[##########] Filling  100.0 %  6/6 rows  2 rows/s"),
            (("Filling", "rows", 6, 6, 0.0), "[##########] Filling  100.0 %  6/6 rows"),
            (("Counting", "rows", 3000, 0, 2.0), "Counting  3,000 rows  1,500 rows/s"),
        ):  # fmt: skip
            self.assertEqual(backfill.format_progress(*arguments), line)
        late = backfill.Summary("interrupted", "", False, 1, supervisor_rows=4, to_fill=11, gone=1)
        late.end(1.0)  # more rows were inserted than there had been
        self.assertEqual(late.coverage_after_pct, 0.0)
        shares = {(0, 0): 100.0, (0, 3): 0.0, (2, 3): 66.6666, (10**7 - 1, 10**7): 99.9999}
        self.assertEqual({pair: backfill.percent(*pair) for pair in shares}, shares)


# --- The log file -------------------------------------------------------------------------------


class LogFileTest(StoreTest):
    def setUp(self) -> None:
        super().setUp()
        self.log = ("--log-file", self.folder / "run.log")
        self.addCleanup(time.tzset)
        self.enterContext(mock.patch.dict(os.environ, {"TZ": "XXX+11"}))
        time.tzset()

    def record(self) -> list[tuple[str, str]]:
        """The file's lines, level and message, once the time was found to be UTC."""
        lines = [line.split(" ", 2) for line in self.log[1].read_text("utf-8").splitlines()]
        for moment, _level, _text in lines:
            self.assertRegex(moment, r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")
            self.assertLess(abs(read_as_agentos(moment).timestamp() - time.time()), 3600)
        return [(level, text) for _moment, level, text in lines]

    def test_a_row_has_one_line_if_there_is_something_to_say(self) -> None:
        source, processed = COLUMNS
        back = rf"{processed} {CREATED} from created_at"
        left = f"WARNING {source} left NULL; {processed}"
        table: list[tuple[dict[str, object], str]] = [
            ({}, ""),
            (row(), f"INFO {source} {CREATED} from created_at; {back}"),
            (row(timestamp=DONE), f"INFO {source} {CREATED} from cr.*; .* from timestamp"),
            (row(source_ts=EVENT), f"INFO {source} {EVENT} from source_ts; {back}"),
            ({"source_event_ts": EVENT, **row(source_ts=5)}, f"INFO .* .already.*; {back}"),
            ({"payload": '{"source_ts": 5'}, f"{left} left.*; .*JSON: E.*"),
            ({"created_at": "x", **row(source_ts=5, timestamp=DONE)}, "WARNING .*, bec.*; no t.*"),
            ({"source_event_ts": EVENT, **UNFILLABLE}, f"WARNING .*{processed} left.*; no t.*"),
            ({"supervisor_processed_at": b"x"}, f"{left} b'x' .already there.; .*BLOB.*"),
            ({"event_type": "SUPERVISOR_NO"}, f"{left} left.*; .*not today.*"),
            (row(source_ts="PST", timestamp=""), f'WARNING {source} .*"PST"; {processed} .*""'),
            (row(source_event_ts=31337, source_ts=EVENT, timestamp=DONE),
             f"WARNING {source} {EVENT} from source_ts.* source_event_ts .*int of length 5.*"),
            (row(timestamp=[31337]), f"WARNING {source} {CREATED} from.*; {back}.*list.* \\d"),
            (row(processed_at={}, timestamp=5, source_ts=EVENT), "WARNING .*processed_at .*dict.*"),
            (row(source_ts=True, timestamp=DONE), "WARNING .*bool.*"),
            (row(timestamp="x" * 200, source_ts=EVENT), 'WARNING .* "x{200}"'),
            (row(timestamp="\x1b" * 201, source_ts=EVENT), r'WARNING .* "(\\x1b){190,200}\.\.\."'),
            (row(source_event_ts=EVENT, source_ts=5, timestamp=DONE, processed_at=None), ""),
        ]  # fmt: skip
        refuse = """CREATE TRIGGER t BEFORE UPDATE ON task_audits WHEN old.event_type LIKE '%R_NO'
                    BEGIN SELECT raise(ABORT, 'not today'); END"""
        self.fresh(*(fields for fields, _line in table), extra=refuse)
        result = self.tool("--json", *self.log)
        said = [(audit_id, line) for audit_id, (_row, line) in enumerate(table, 1) if line]
        for (audit_id, line), (level, text) in zip(said, self.record()[1:-1], strict=True):
            with self.subTest(audit_id):
                expected, _, words = line.partition(" ")
                self.assertEqual(level, expected)
                self.assertRegex(text, f"^audit_id {audit_id}: {words}$")
        self.assertEqual(result.summary["unusable"], {source: 3, processed: 5})
        self.assertNotIn("31337", self.log[1].read_text() + result.err)

    def test_a_log_that_is_lost_ends_the_run_with_a_sentence(self) -> None:
        self.fresh({})
        broken, lost = mock.Mock(**{"write.side_effect": OSError}), PermissionError(13, "denied")
        with mock.patch.object(backfill.LogFile, "_open", side_effect=[broken, lost]):
            result = self.tool(*self.log)
        self.assertEqual((result.code, result.err.count("\n")), (1, 1), result.err)
        self.assertIn("denied", result.err)

    def test_its_first_and_last_line_tell_what_was_asked_and_what_came_of_it(self) -> None:
        self.fresh({}, {"payload": MALFORMED})
        backup = self.folder / "backup.db"
        self.tool(*self.log, "--dry-run", "--pause", 0.5, "--busy-timeout", 7, "--batch-size", 9)
        summary = self.fill(*self.log, "--backup", backup)
        self.connect().execute("BEGIN EXCLUSIVE")
        self.tool(*self.log, "--busy-timeout", 0)
        kinds = [(level, text.partition(":")[0]) for level, text in self.record()]
        one = [("INFO", "begin"), ("WARNING", "audit_id 2"), ("INFO", "end")]
        self.assertEqual(kinds, [*one, *one, one[0], one[2]])
        texts = [text for _level, text in self.record()]
        words = "version.3", self.path, r"run\W+True", r"size\W+9", r"out\W+7", r"pause\W+0.5"
        for word in words:
            self.assertRegex(texts[0], rf"{word}\b")
        self.assertIn(str(backup), texts[3])
        self.assertRegex(texts[2], "^end: dry run: 1 of 2 .*{")
        self.assertRegex(texts[5], "^end: completed: 1 of 2 .*{")
        self.assertRegex(texts[7], "^end: failed: .*lock")
        self.assertEqual(json.loads(texts[5][texts[5].index("{") :]), summary)
        self.assertLess(abs(read_as_agentos(summary["started_at"]).timestamp() - time.time()), 3600)

    def test_it_is_made_with_the_stores_mode_and_one_that_is_there_keeps_its_own(self) -> None:
        self.addCleanup(os.umask, os.umask(0))
        for mode, mask in ((0o600, 0), (0o664, 0o077)):
            self.fresh({})
            self.path.chmod(mode)
            self.log[1].unlink(missing_ok=True)
            if mask:
                self.log[1].symlink_to("elsewhere.log")
            os.umask(mask)
            self.tool(*self.log)
            self.assertEqual(self.log[1].stat().st_mode & 0o777, mode)
        self.log[1].chmod(0o604)
        self.tool(*self.log)
        self.assertEqual((self.log[1].stat().st_mode & 0o777, len(self.record())), (0o604, 4))


# --- Rows that were made to do harm -------------------------------------------------------------


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
        if kind < 2:
            return chance.choice((WITHOUT_FIELDS, NOT_JSON)[kind])[1]
        if kind == 2:  # duplicate keys
            text = text[:-1] + (", " if fields else "") + text[1:]
        if kind == 3:  # deep nesting beside sound fields, around what parsers allow
            depth = chance.choice([100, 499, 980, 3000])
            text = f'{{"deep": {"[" * depth + "]" * depth}{", " if fields else ""}{text[1:]}'
            return text.encode(errors="surrogatepass")
        if kind in (4, 5):  # whole, or cut off anywhere
            end = len(text) if kind == 4 else chance.randrange(len(text) + 1)
            return text[:end].encode("utf-8", "surrogatepass")
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


TIMESTAMP = re.compile(
    r"(20\d\d-\d\d-\d\d)[Tt ]((?:[01]\d|2[0-3]):\d\d(?::\d\d)?)((?<=:\d\d:\d\d)[.,]\d{1,9})?"
    r"(?: ?(?:([Zz]|UTC)|([+-](?:0\d|1[0-4]))(?::?([0-5]\d))?))?",
    re.ASCII,
)


def read_by_the_rules(value: object) -> str | None:
    """Rule 3, read once more and written in another way."""
    if isinstance(value, str):
        text = value.strip(" \t\r\n\v\f")
        if re.fullmatch("[1-9][0-9]{8,18}([.][0-9]+)?", text):
            return read_by_the_rules(float(text) if "." in text else int(text))
        match = TIMESTAMP.fullmatch(text)
        try:
            day, clock, fraction, utc, hours, minutes = match.groups("") if match else [""] * 6
            datetime.fromisoformat(f"{day} {clock}")
        except ValueError:
            return None
        offset = "Z" if utc else f"{hours}:{minutes or '00'}" if hours else ""
        written = f"{day}T{clock}{fraction.replace(',', '.')}{offset}"
        return value if value.replace(" ", "T", 1) == written else written
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e19:
        return None
    for factor in (10**6, 1000, 1, Fraction(1, 1000)):
        with contextlib.suppress(OverflowError):
            moment = datetime(1970, 1, 1) + timedelta(microseconds=round(Fraction(value) * factor))
            if 2000 <= moment.year <= 2099:
                return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return None


def fill_by_the_rules(row: Sequence[object]) -> tuple[list[object], str | None]:
    """Rules 1 to 5, read once more: a row's columns afterwards, and why one stays NULL."""
    _event_type, payload, created_at, *there = row
    try:
        text = (payload if isinstance(payload, bytes) else str(payload or "").encode()).decode()
        outside = re.sub(r'"(\\.|[^"\\])*("|\Z)', "", text, flags=re.DOTALL)
        steps = ((char in "[{") - (char in "]}") for char in outside)
        if max(itertools.accumulate(steps), default=0) > 500:
            return there, "malformed_json"
        content = json.loads(text) if text.strip(" \t\r\n\v\f") else {}
    except ValueError:
        return there, "malformed_json"
    if any(isinstance(value, bytes) or "\udcff" in str(value) for value in there):
        return there, "unreadable"
    fields = content if isinstance(content, dict) else {}
    after = list(there)
    for n, names in enumerate(backfill.FIELDS.values()):
        candidates = [read_by_the_rules(value) for value in (*map(fields.get, names), created_at)]
        after[n] = next(filter(None, candidates), None) if there[n] is None else there[n]
    with contextlib.suppress(ValueError):  # rule 5 is for two timestamps
        moments = [read_as_agentos(str(value)) for value in after]
        mixed = len({moment.tzinfo is None for moment in moments}) == 2
        for n, moment in enumerate(moments):
            if mixed and there[n] is None and moment.tzinfo is None:
                after[n] = f"{moment.isoformat()}Z"
            elif mixed and there[n] is None and there[1 - n] is not None:
                after[n] = moment.astimezone(UTC).replace(tzinfo=None).isoformat()
    return after, "no_timestamp" if None in after else None


class HostileTest(StoreTest):
    def rows(self) -> list[tuple[object, ...]]:
        store = self.connect()
        store.text_factory = lambda text: text.decode(errors="surrogateescape")
        columns = f"event_type, payload, created_at, {', '.join(COLUMNS)}"
        return store.execute(f"SELECT {columns} FROM task_audits ORDER BY audit_id").fetchall()

    def test_what_was_made_to_do_harm_does_none(self) -> None:
        self.fresh(*hostile_rows(seed=11, count=1000))
        for n, column in enumerate(("task_id", "event_type", "payload", "created_at", *COLUMNS)):
            cast = f"CAST(CAST({column} AS BLOB) || x'ff' AS TEXT) WHERE {column} > ''"
            self.query(f"UPDATE task_audits SET {column} = {cast} AND audit_id % 29 = {n}")
        before = self.rows()
        log_file = self.folder / "run.log"
        dry, wet = self.tool("--dry-run"), self.tool("--log-file", log_file)
        log = log_file.read_text(encoding="utf-8")
        text = dry.out + dry.err + wet.out + wet.err + log
        self.assertEqual({char for char in text if not char.isprintable()}, {"\n"})
        self.assertEqual(backfill.printable("Größe 漢字\ud800\u202e"), r"Größe 漢字\ud800\u202e")
        reasons = []
        for audit_id, (row, left) in enumerate(zip(before, self.rows(), strict=True), 1):
            after = list(row[3:])
            if "SUPERVISOR" in str(row[0]) and None in after:
                after, reason = fill_by_the_rules(row)
                reasons.append(reason)
            self.assertEqual(left, (*row[:3], *after), f"audit_id {audit_id}")
        summary = json.loads(log[log.rindex(' {"status') :])
        self.assertEqual((dry.code, wet.code, summary["filled"]), (0, 0, reasons.count(None)))
        left_null = {reason: reasons.count(reason) for reason in backfill.LEFT_NULL}
        self.assertEqual(summary["left_null"], left_null)
        self.assertEqual([number > 20 for number in left_null.values()], [True, True, True, False])


# --- Rows that others change between read and write ---------------------------------------------

MENDED = json.dumps({"source_ts": CREATED, "processed_at": CREATED})
LATER = (CREATED, CREATED)  # what comes of it
NIGHT = "2026-02-02 00:00:00"
FOUND = f"SELECT audit_id, {', '.join(COLUMNS)} FROM task_audits"
TOUCH = "UPDATE schema_version SET applied_at = 1;"  # another process commits
SET = "UPDATE task_audits SET"
BOTH = "WHERE audit_id IN (10, 40)"  # one in the batch at hand, one in the next
INSERT = f"""INSERT INTO task_audits (audit_id, task_id, event_type, payload, created_at)
    SELECT column1, 'task', 'SUPERVISOR_ALLOWED', '{MENDED}', '{CREATED}' FROM"""
# What another process does, what that makes of which rows, and the figures: to_fill, filled,
# malformed_json, gone.
CHANGES: tuple[tuple[str, str, dict[int, Any], tuple[int, ...]], ...] = (
    ("a payload mended", f"{SET} payload = '{MENDED}' WHERE audit_id IN (20, 50)",
     {20: LATER, 50: LATER}, (6, 6, 0, 0)),
    ("a payload spoiled", f"{SET} payload = 'oops' {BOTH}", {10: NULLS, 40: NULLS}, (6, 2, 4, 0)),
    ("created_at", f"{SET} payload = '', created_at = '{NIGHT}' {BOTH}",
     {10: (NIGHT, NIGHT), 40: (NIGHT, NIGHT)}, (6, 4, 2, 0)),
    ("another event", f"{SET} event_type = 'TASK' {BOTH}", {10: NULLS, 40: NULLS}, (6, 2, 2, 2)),
    ("the Supervisor's event", f"{SET} event_type = 'SUPERVISOR_PAUSED' WHERE audit_id = 80",
     {80: SURE}, (7, 5, 2, 0)),
    ("one column", f"{SET} source_event_ts = '{NIGHT}' {BOTH}",
     dict.fromkeys((10, 40), (NIGHT, DONE[:23] + "000")), (6, 4, 2, 0)),
    ("both columns", f"{SET} source_event_ts = 'x', supervisor_processed_at = 'y' {BOTH}",
     {10: ("x", "y"), 40: ("x", "y")}, (6, 2, 2, 2)),
    ("inserted anew", f"DELETE FROM task_audits {BOTH}; {INSERT} (VALUES (10), (40))",
     {10: LATER, 40: LATER}, (6, 4, 2, 0)),
    ("the batch reaches further", "DELETE FROM task_audits WHERE audit_id < 30",
     {10: None, 20: None}, (6, 3, 1, 2)),
    ("a whole batch deleted", "DELETE FROM task_audits WHERE audit_id < 40",
     dict.fromkeys((10, 20, 30)), (6, 2, 1, 3)),
    ("all deleted", "DELETE FROM task_audits", dict.fromkeys(range(10, 90, 10)), (6, 0, 0, 6)),
    ("into gaps", f"{INSERT} (VALUES (11), (12), (13), (14), (15), (41))",
     dict.fromkeys((11, 12, 13, 14, 15, 41), LATER), (12, 10, 2, 0)),
    ("behind the last", f"{INSERT} (VALUES (100))", {100: NULLS}, (6, 4, 2, 0)),
    ("deleted when filled", f"DELETE FROM task_audits WHERE audit_id < 30; {INSERT} (VALUES (100))",
     {10: None, 20: None, 100: NULLS}, (6, 4, 2, 0)),
    ("set back", f"{SET} source_event_ts = NULL WHERE audit_id = 70", {}, (7, 5, 2, 0)),
)  # fmt: skip


class ChangedRowsTest(StoreTest):
    def test_rows_that_others_change_meanwhile_are_filled_as_they_are_then(self) -> None:
        bad = {"payload": MALFORMED}
        kinds = [{}, bad, {}, {}, bad, {}, FILLED, {"event_type": "TASK"}]
        rows = [{"audit_id": 10 * at, **kind} for at, kind in enumerate(kinds, 1)]
        alone = dict(zip(range(10, 90, 10), [SURE, NULLS, SURE] * 2 + [SURE, NULLS], strict=True))
        for mode, (name, sql, changed, expected) in itertools.product(JOURNAL_MODES, CHANGES):
            with self.subTest(name, mode=mode):
                self.fresh(*rows, journal_mode=mode)
                before = 3 if name == "deleted when filled" else 1
                result = self.run_beside(sql, "--batch-size", 3, before=before)
                self.assertEqual(result.code, 0, result.err)
                after = sorted({**alone, **changed}.items())
                self.assertEqual(self.query(FOUND), [(at, *pair) for at, pair in after if pair])
                found = result.summary
                left = found["left_null"]["malformed_json"]
                figures = (found["to_fill"], found["filled"], left, found["gone"])
                self.assertEqual(figures, expected)
                self.assertEqual((found["supervisor_rows"], found["already_filled"]), (7, 1))
                self.assertEqual((found["coverage_before_pct"], found["undone"]), (14.2857, 0))
                self.assertEqual(found["coverage_after_pct"], self.coverage(last=80))
                written = sum(sum(found["sources"][column].values()) for column in COLUMNS)
                kept = {"one column": 2, "set back": 1}.get(name, 0)
                self.assertEqual(written, 2 * found["filled"] - kept)

    def test_hundreds_of_rows_changed_beside_a_run_are_filled_as_they_were_then(self) -> None:
        rows = 40_000 if HEAVY else 1500
        for mode in JOURNAL_MODES:
            self.fresh(*[{}] * rows, journal_mode=mode)
            process = self.start("--batch-size", rows // 30, "--pause", 0.02)
            self.wait_until_filled(1)
            changed = self.change_open_rows(process, rows // 20)
            summary = self.finish(process).summary
            self.assertEqual((summary["status"], summary["undone"]), ("completed", 0))
            self.assertGreaterEqual(changed, 500)
            self.assert_sums(summary)
            table = self.query(f"SELECT event_type, payload, {S}, {P} FROM task_audits")
            for event_type, payload, *found in table:
                due = backfill.extract_timestamps(payload, CREATED).values()
                self.assertEqual(found, [None] * 2 if event_type == "TASK" else [*due])

    def change_open_rows(self, process: Any, reach: int) -> int:
        """Change rows that are still open, until the run ends; return how many."""
        chance, changed, other = random.Random(1), 0, self.connect()
        while process.poll() is None:
            other.execute("BEGIN IMMEDIATE")
            open_rows = f"{FOUND} WHERE {S} IS NULL AND event_type <> 'TASK' LIMIT {reach}"
            found = other.execute(open_rows).fetchall()
            for audit_id, *_ in chance.sample(found, min(20, len(found))):
                changed += 1
                moment = f"2026-03-01T00:00:00.{changed:06}Z"
                payload = json.dumps({"source_ts": moment, "timestamp": moment})
                change = chance.choice(["event_type = 'TASK'"] + [f"payload = '{payload}'"] * 8)
                other.execute(f"{SET} {change} WHERE audit_id = {audit_id}")
            other.execute("COMMIT")
            time.sleep(0.005)
        return changed


# --- Triggers, and rows that the database refuses -----------------------------------------------


def rebuilt(column: str, constraint: str = "") -> str:
    """SQL that gives the table another shape, as a migration does."""
    names = f"audit_id, event_type, payload, created_at, {', '.join(COLUMNS)}"
    return f"""BEGIN;
        CREATE TABLE other (audit_id INTEGER PRIMARY KEY, task_id, level DEFAULT '', event_type,
            payload, created_at, {column}, supervisor_processed_at{constraint});
        INSERT INTO other ({names}) SELECT {names} FROM task_audits;
        DROP TABLE task_audits; ALTER TABLE other RENAME TO task_audits; COMMIT;"""


TRIGGER = "CREATE TRIGGER t {} UPDATE ON task_audits WHEN {} BEGIN {}; END;"
TRACE = "INSERT INTO traces VALUES (new.audit_id); SELECT RAISE({}, 'no \x1b[31mway')"
EVERY, SOME = set(range(1, 31)), {1, 2, 7, 14, 21, 28, 30}
IN_SOME = f"new.audit_id IN {tuple(SOME)}"
REFUSALS = (
    *(
        (f"{when} {kind}", TRIGGER.format(when, IN_SOME, TRACE.format(kind)), SOME,
         r"no \x1b[31mway")
        for when, kind in itertools.product(("BEFORE", "AFTER"), ("ABORT", "FAIL", "ROLLBACK"))
    ),
    ("every second", TRIGGER.format("AFTER", "new.audit_id % 2", TRACE.format("FAIL")),
     set(range(1, 31, 2)), "no"),
    ("every row", TRIGGER.format("BEFORE", "1", TRACE.format("ROLLBACK")), EVERY, "no"),
    ("words that are no UTF-8", TRIGGER.format("BEFORE", IN_SOME, TRACE.format("ABORT")) + """
     PRAGMA writable_schema = ON;
     UPDATE sqlite_master SET sql = replace(sql, 'no ', CAST(x'ff' AS TEXT))""", SOME, "decode"),
    ("IGNORE", TRIGGER.format("BEFORE", IN_SOME, "SELECT RAISE(IGNORE)"), SOME, "ignored"),
    ("CHECK", "ALTER TABLE task_audits ADD COLUMN more"
     " CHECK (source_event_ts IS NULL OR audit_id NOT IN (2, 5))", {2, 5}, "CHECK"),
    ("UNIQUE", "CREATE UNIQUE INDEX u ON task_audits (source_event_ts)", EVERY - {1}, "UNIQUE"),
    ("ON CONFLICT", rebuilt(f"{COLUMNS[0]} UNIQUE ON CONFLICT IGNORE"), EVERY - {1}, "ignored"),
    ("a datatype", "CREATE TABLE log (task_id INTEGER PRIMARY KEY);" + TRIGGER.format(
     "AFTER", "new.audit_id = 4", "INSERT INTO log VALUES (new.task_id)"), {4}, "mismatch"),
    ("a conflict that is ignored", "CREATE TABLE log (task_id UNIQUE);" + TRIGGER.format(
     "AFTER", "1", "INSERT OR IGNORE INTO log VALUES (new.task_id)"), set(), ""),
)  # fmt: skip
# What a statement needs and is not there, and whether that shows before it runs.
MISSING = (
    ("function", TRIGGER.format("AFTER", "1", "SELECT absent(1)"), True),
    ("main.absent", TRIGGER.format("AFTER", "1", "INSERT INTO absent VALUES (1)"), True),
    ("column", TRIGGER.format("AFTER", "1", "INSERT INTO traces (absent) VALUES (1)"), True),
    ("collation", "CREATE INDEX i ON task_audits (source_event_ts COLLATE absent)", True),
    ("function", "ALTER TABLE task_audits ADD COLUMN c CHECK (absent(source_event_ts))", False),
    ("fts5", "CREATE VIRTUAL TABLE words USING fts5vocab(absent, row);" + TRIGGER.format(
     "AFTER", "new.audit_id = 20", "INSERT INTO traces SELECT term FROM words"), False),
)  # fmt: skip
REPLACES = (  # a column, a constraint, and whether to fill a row could replace another
    ("source_event_ts UNIQUE ON CONFLICT REPLACE", "", True),
    ("source_event_ts", ", unique (audit_id, supervisor_processed_at) on conflict replace", True),
    ("source_event_ts", ", d AS (lower(source_event_ts)) UNIQUE ON CONFLICT REPLACE", True),
    ("source_event_ts", ", CHECK (replace(1, 2, 3)), UNIQUE (audit_id, source_event_ts)", False),
    ("source_event_ts", ", UNIQUE (event_type, task_id) ON CONFLICT REPLACE", False),
    ("source_event_ts CHECK (source_event_ts <> 'REPLACE')", "", False),
)  # fmt: skip


class RefusalTest(StoreTest):
    def test_a_row_that_stays_half_null_is_counted_beside_a_refused_one(self) -> None:
        no = {"event_type": "SUPERVISOR_NO"}
        self.fresh(
            {"created_at": "yesterday", **row(timestamp=DONE)}, *[{}] * 1100, no, no,
            extra="CREATE UNIQUE INDEX one ON task_audits (event_type) WHERE event_type ="
            " 'SUPERVISOR_NO' AND source_event_ts IS NOT NULL",
        )  # fmt: skip
        with mock.patch.object(backfill, "FIRST_BATCH", 2000):
            found = self.fill("--batch-size", 2000)
        self.assertEqual((found["batches"], found["filled"], found["gone"]), (1, 1101, 0))
        self.assertEqual([*found["left_null"].values()], [0, 1, 0, 1])
        self.assertEqual(found["sources"][COLUMNS[1]]["timestamp"], 1)

    def test_a_refused_row_is_left_and_counted_and_all_others_are_filled(self) -> None:
        for (name, extra, refused, words), size in itertools.product(REFUSALS, (2, 1000)):
            with self.subTest(name, size=size):
                self.fresh(*[{}] * 30, extra=f"CREATE TABLE traces (audit_id); {extra}")
                result = self.tool("--json", "--batch-size", size)
                self.assertEqual(result.code, 0, result.err)
                figures = (result.summary["filled"], result.summary["left_null"]["refused"])
                self.assertEqual(figures, (30 - len(refused), len(refused)))
                expected = [(at, *(NULLS if at in refused else SURE)) for at in range(1, 31)]
                self.assertEqual(self.query(FOUND), expected)
                warnings = re.findall(r"(?m)^warning: audit_id (\d+): .*", result.err)
                self.assertEqual(warnings, [str(audit_id) for audit_id in sorted(refused)[:3]])
                self.assertIn(words, result.err)
                self.assertEqual(self.query("SELECT * FROM traces"), [])

    def test_a_batch_is_one_transaction_unless_a_refusal_rolls_it_back(self) -> None:
        for kind, transactions in (("ABORT", 1), ("FAIL", 1), ("ROLLBACK", 10)):
            with self.subTest(kind):
                trigger = TRIGGER.format("BEFORE", "new.audit_id % 2", TRACE.format(kind))
                self.fresh(*[{}] * 20, extra=f"CREATE TABLE traces (audit_id); {trigger}")
                before = self.path.read_bytes()[24:28]  # SQLite counts its commits there
                calls = itertools.count()
                with self.on("backfill_batch", calls.__next__):
                    self.assertEqual(self.fill()["filled"], 10)
                commits = int.from_bytes(self.path.read_bytes()[24:28]) - int.from_bytes(before)
                self.assertEqual(commits, transactions)
                self.assertLessEqual(next(calls), 21)  # the batch, and then each row once

    def test_what_a_trigger_does_to_later_rows_of_a_batch_stays(self) -> None:
        trigger = TRIGGER.format("AFTER", "new.audit_id = 3", f"""
            {SET} source_event_ts = 'theirs' WHERE audit_id = 4;
            {SET} payload = '{MENDED}' WHERE audit_id = 5;
            DELETE FROM task_audits WHERE audit_id = 9""")  # fmt: skip
        own = f"{SET} ({S}, {P}) = ('own', 'own') WHERE audit_id = 10; SELECT RAISE(IGNORE)"
        trigger += "; CREATE TRIGGER own BEFORE UPDATE ON task_audits WHEN old.audit_id = 10 BEGIN "
        trigger += f"{own}; END"
        for mode, there in itertools.product(JOURNAL_MODES, (True, False)):
            with self.subTest(mode, there_from_the_start=there):
                self.fresh(*[{}] * 10, journal_mode=mode, extra=trigger if there else "")
                result = self.run_beside("" if there else trigger, "--batch-size", 5)
                expected = [*[SURE] * 3, ("theirs", DONE), LATER, *[SURE] * 3, ("own", "own")]
                self.assertEqual(self.columns(), expected)
                self.assertEqual((result.summary["filled"], result.summary["gone"]), (8, 2))
                self.assertEqual(sum(result.summary["sources"]["source_event_ts"].values()), 7)

    def test_what_is_missing_is_named_once_and_nothing_is_written(self) -> None:
        for words, sql, foreseen in MISSING:
            for options in ([], ["--dry-run"])[: 1 + foreseen]:
                with self.subTest(sql, options=options):
                    self.fresh(*[{}] * 30, extra="CREATE TABLE traces (audit_id)")
                    other = self.connect()
                    other.create_function("absent", 1, lambda _: 1, deterministic=True)
                    other.create_collation("absent", lambda a, b: (a > b) - (a < b))
                    try:
                        other.executescript(sql)
                    except sqlite3.OperationalError as error:  # a SQLite without FTS5
                        self.skipTest(str(error))
                    result = self.tool("--json", *options)
                    self.assert_failed(result, words, "absent")
                    figures = (result.summary["batches"], result.summary["left_null"]["refused"])
                    self.assertEqual((*figures, set(self.columns())), (0, 0, {NULLS}))

    def test_a_table_where_filling_could_replace_a_row_is_refused(self) -> None:
        for (*shape, refused), options in itertools.product(REPLACES, ([], ["--dry-run"])):
            with self.subTest(shape, options=options):
                self.fresh(*[{}] * 3, extra=rebuilt(*shape))
                result = self.tool("--json", *options)
                if refused:
                    self.assert_failed(result, "REPLACE")
                self.assertEqual(self.count_filled(), 0 if refused or options else 3)
        self.fresh(*[{}] * 9)  # and where a migration makes it so in mid-run
        result = self.run_beside(rebuilt(*REPLACES[1][:2]), "--batch-size", 3, before=2)
        self.assert_failed(result, "REPLACE")
        self.assertEqual(self.columns(), [SURE] * 3 + [NULLS] * 6)


# --- Locks, and the size of batches ---------------------------------------------------------------

READ = ("BEGIN", "SELECT count(*) FROM task_audits")
WRITE = ("BEGIN IMMEDIATE",)


class LockTest(StoreTest):
    def test_writers_beside_a_run_are_not_refused_overwritten_or_lost(self) -> None:
        for mode in JOURNAL_MODES:
            self.sample(40_000 if HEAVY else 1500, mode)
            writers = [writer.start(self.path, seed) for seed in range(2)]
            result = self.finish(self.start())
            done = list(map(writer.finish, writers))
            self.assertEqual(result.code, 0, result.err)
            found = {at: dict(zip(COLUMNS, pair, strict=True)) for at, *pair in self.query(FOUND)}
            for theirs in done:
                self.assertEqual(theirs["refused"], 0)
                self.assertLess(max(theirs["waits"]), 4000)
                self.assertLessEqual(set(theirs["inserted"]), set(found))
                for audit_id, column, value in theirs["filled"]:
                    self.assertEqual(found[audit_id][column], value)
            self.assert_sums(result.summary)

    def test_a_lock_held_past_the_timeout_ends_a_run_that_needs_it(self) -> None:
        for mode, payload, statements, option, code in (
            ("wal", SOUND, WRITE, "--json", 1), ("delete", SOUND, WRITE, "--json", 1),
            ("delete", SOUND, ["BEGIN EXCLUSIVE"], "--json", 1),
            ("delete", SOUND, ["BEGIN EXCLUSIVE"], "--dry-run", 1),
            ("delete", SOUND, READ, "--json", 1), ("wal", SOUND, READ, "--json", 0),
            ("delete", MALFORMED, READ, "--json", 0), ("delete", SOUND, READ, "--dry-run", 0),
        ):  # fmt: skip
            with self.subTest(mode, payload=payload, statements=statements, option=option):
                self.fresh({"payload": payload}, journal_mode=mode)
                other = self.hold(*statements)
                result = self.tool("--json", "--busy-timeout", 0.2, option)
                other.execute("ROLLBACK")
                if code:
                    self.assert_failed(result, "--busy-timeout", "locked")
                    self.assertEqual((result.summary["batches"], self.columns()), (0, [NULLS]))
                self.assertEqual(result.code, code, result.err)

    def test_a_lock_is_waited_for_and_meanwhile_others_get_in(self) -> None:
        # In a process of its own: it would be refused after 5 seconds.
        look = f"import sqlite3; sqlite3.connect({str(self.path)!r}).execute('{READ[1]}')"
        for mode, statements in (("wal", WRITE), ("delete", WRITE), ("delete", READ)):
            with self.subTest(mode, statements=statements):
                self.fresh({}, journal_mode=mode)
                other = self.hold(*statements)
                codes: list[int] = []

                def let_go(other: Any = other, codes: Any = codes) -> None:
                    codes.append(subprocess.call([sys.executable, "-c", look]))
                    other.execute("ROLLBACK")

                timer = threading.Timer(0.3, let_go)
                timer.start()
                result = self.tool("--busy-timeout", 20)
                timer.join()
                self.assertEqual((result.code, codes), (0, [0]), result.err)
                self.assertEqual(self.columns(), [SURE])

    def test_a_batch_locks_readers_out_of_a_rollback_journal_only(self) -> None:
        for mode, expected in (("delete", [True, True]), ("wal", [False, True])):
            with self.subTest(mode):
                self.fresh({}, {}, journal_mode=mode)
                other = self.hold()
                refused: list[bool] = []

                def look(refused: Any = refused, other: Any = other) -> None:
                    for sql in (READ[1], *WRITE, "ROLLBACK"):
                        try:
                            other.execute(sql).fetchall()
                            refused.append(False)
                        except sqlite3.OperationalError:
                            refused.append(True)

                with self.on("read_batch", look):  # once without the lock, and then under it
                    self.run_beside(TOUCH)
                self.assertEqual(refused, [False] * 3 + [*expected, True])

    def test_a_batch_follows_from_how_long_the_last_one_held_the_lock(self) -> None:
        for most, seconds, batches in (
            (1000, 0.09, 3), (120, 0.09, 3), (50, 0.09, 7), (1000, 0.11, 4), (1000, 0.49, 4),
            (1000, 0.51, 9),
        ):  # fmt: skip
            self.fresh(*[{}] * 110, *[{"payload": MALFORMED}] * 200)  # the last take no lock
            held = mock.PropertyMock(return_value=seconds)
            with mock.patch.object(backfill.Store, "held", held, create=True):
                self.assertEqual(self.fill("--batch-size", most)["batches"], batches, seconds)

    def test_a_connection_waits_in_slices_and_needs_no_room_for_temporary_files(self) -> None:
        names = ("busy_timeout", "temp_store", "synchronous", "journal_size_limit")
        for mode, expected in (("delete", [200, 2, 2, -1]), ("wal", [200, 2, 1, 16_000_000])):
            self.fresh(journal_mode=mode)
            store = backfill.Store(self.path, backfill.Patience(0.2, 0), read_only=False)
            self.assertEqual([store.fetch(f"PRAGMA {name}") for name in names], expected)
            store.connection.close()

    def test_the_rest_leaves_others_their_share_of_the_time(self) -> None:
        self.fresh({})
        for held, free, company, expected in (
            (0.0, 0.0, False, 0.0), (0.9, 0.0, False, 0.1), (0.9, 0.1, False, 0.0),
            (0.9, 0.04, False, 0.06), (0.4, 0.0, True, 1.4), (0.4, 0.6, True, 0.8),
            (0.4, 9.0, True, 0.0), (20.0, 0.0, True, 2.0), (90.0, 0.0, False, 2.0),
        ):  # fmt: skip
            with (
                mock.patch.object(backfill.Patience, "sleep") as sleep,
                mock.patch.object(time, "monotonic", return_value=100.0),
                contextlib.closing(self.connect()) as connection,
            ):
                store = backfill.Store(self.path, backfill.Patience(0.2, 7), read_only=False)
                store.connection.close()
                store.connection, store.held, store.released_at = connection, held, 100.0 - free
                store._locked_at, store._company_until = 90.0, 90.0 + company
                with store.transaction():
                    pass
                self.assertAlmostEqual(sleep.call_args[0][0], expected + 7 * (held > 0))

    def test_a_pause_comes_between_batches_and_on_top_of_the_rest_for_company(self) -> None:
        for rows, pause, least, most in ((1, 9, 0, 8), (2, 0, 0.35, 8), (2, 0.5, 0.85, 8)):
            self.fresh(*[{}] * rows)
            # Read again under the lock, the first batch holds it for 0.1 s.
            with self.on("read_batch", lambda: time.sleep(0.1)):
                found = self.run_beside(TOUCH, "--batch-size", 1, "--pause", pause).summary
            self.assertTrue(least <= found["elapsed_seconds"] < most, found)


# --- Kills and signals ----------------------------------------------------------------------------

SLOWLY = ("--batch-size", 5, "--pause", 0.02)
# Does something in the process that then becomes the tool. Ctrl-Z needs a group of its own.
FIRST = "import os, signal, sys; os.setpgid(0, 0); {}; "
FIRST += "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"


class SignalTest(StoreTest):
    def test_killed_runs_leave_the_store_whole_and_two_at_once_go_on_to_the_same_end(self) -> None:
        chance = random.Random(4)
        for mode in JOURNAL_MODES:
            with self.subTest(mode):
                expected = self.sample(10_000 if HEAVY else 1000, mode)
                before, filled = self.columns(), self.count_filled()
                for _ in range(16 if HEAVY else 3):
                    process = self.start("--batch-size", 10, "--pause", 0.02)
                    self.wait_until_filled(filled + 1)
                    time.sleep(chance.uniform(0, 0.03))
                    process.kill()
                    process.communicate()
                    self.assertEqual(self.query("PRAGMA integrity_check"), [("ok",)])
                    filled = self.count_filled()
                    for old, now, end in zip(before, self.columns(), expected, strict=True):
                        self.assertIn(now, (old, end))
                both = [self.start("--batch-size", 50) for _ in range(2)]
                results = [self.finish(process) for process in both]
                self.assertEqual([result.code for result in results], [0, 0])
                self.assertEqual(self.columns(), expected)
                written = sum(result.summary["filled"] for result in results)
                self.assertGreater(written, 0)
                self.assertEqual(self.count_filled(), filled + written)

    def test_a_signal_or_a_lock_ends_a_run_and_what_was_committed_stays_and_counts(self) -> None:
        backup = self.folder / "backup.db"
        for mode, name, code, *options in (
            ("wal", "SIGHUP", 129, *SLOWLY, "--backup", backup),
            ("delete", "SIGINT", 130, "--batch-size", 10, "--pause", 600),
            ("wal", "SIGTERM", 143, *SLOWLY, "--busy-timeout", 600),
            ("wal", "", 1, *SLOWLY, "--busy-timeout", 0.2),
            ("delete", "", 1, *SLOWLY, "--busy-timeout", 0.2),
        ):  # fmt: skip
            with self.subTest(name, options=options):
                self.fresh(*[{}] * 300, journal_mode=mode)
                process = self.start(*options)
                self.wait_until_filled(10)
                other = self.hold("PRAGMA busy_timeout = 5000")
                if "--busy-timeout" in options:
                    other.execute(*WRITE)
                    time.sleep(0.2)
                if name:
                    process.send_signal(getattr(signal, name))
                result = self.finish(process)
                other.close()
                summary, filled = result.summary, self.count_filled()
                self.assertEqual(result.code, code, result.err)
                self.assertEqual(summary["status"], "interrupted" if name else "failed")
                self.assertEqual(summary["error"] is None, name != "")
                self.assertEqual(summary["backup"], str(backup) if backup in options else None)
                self.assertEqual((summary["to_fill"], summary["filled"]), (300, filled))
                self.assertEqual(filled, options[1] * summary["batches"])
                self.assertEqual(summary["coverage_after_pct"], self.coverage())
                again = " without --backup" if backup in options else ""
                stays = f"{filled} of 300 rows filled, which stay"
                if name:
                    stays = f"interrupted by {name}: {stays}; run the same command again{again} to "
                self.assertIn(stays, result.err.splitlines()[-1])
                self.assertEqual(self.fill()["filled"], 300 - filled)

    def test_a_signal_that_was_ignored_at_the_start_stays_ignored(self) -> None:
        for name in ("SIGHUP", "SIGINT", "SIGTERM", "SIGTSTP"):
            self.fresh(*[{}] * 30)
            ignore = FIRST.format(f"signal.signal(signal.{name}, signal.SIG_IGN)")
            process = self.start(*SLOWLY, program=("-c", ignore, SCRIPT))
            self.wait_until_filled(5)
            process.send_signal(getattr(signal, name))
            self.assertEqual(self.finish(process).summary["filled"], 30)

    def test_a_process_that_ctrl_z_stopped_lets_everybody_in(self) -> None:
        slow = f'{{"x": [{"[]," * 8_000} 0]}}'  # so the next batch is being read ahead
        for mode, payload, rows, options in (
            ("delete", SOUND, 80, SLOWLY), ("wal", SOUND, 80, SLOWLY),
            ("wal", slow, 165, ["--batch-size", 55, "--pause", 0.2]),
        ):  # fmt: skip
            with self.subTest(mode, options=options):
                self.fresh(*[{"payload": payload}] * rows, journal_mode=mode)
                process = self.start(*options, program=("-c", FIRST.format("pass"), SCRIPT))
                filled = 0
                for _ in range(2):
                    self.wait_until_filled(filled + 1)
                    process.send_signal(signal.SIGTSTP)
                    _, status = os.waitpid(process.pid, os.WUNTRACED)
                    self.assertTrue(os.WIFSTOPPED(status))
                    filled = self.count_filled()
                    other = self.hold(TOUCH)
                    if mode == "wal":  # an open read would keep a checkpoint from its end
                        found = other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
                        self.assertEqual(found[0], 0)
                    process.send_signal(signal.SIGCONT)
                self.assertEqual(self.finish(process).summary["filled"], rows)

    def test_handlers_are_as_before_when_a_run_has_ended(self) -> None:
        before = list(map(signal.getsignal, backfill.HEARD))
        self.fresh({})
        self.fill()
        self.assertEqual(list(map(signal.getsignal, backfill.HEARD)), before)


# --- The end of a run -----------------------------------------------------------------------------


class EndTest(StoreTest):
    # By then all is filled. Rows left NULL in another range must not make up for these.
    BACK = f"""{SET} source_event_ts = NULL WHERE audit_id IN (1002, 1900);
        DELETE FROM task_audits WHERE audit_id < 4;"""
    KEEP_OLD = TRIGGER.format("AFTER", "new.audit_id IN (1001, 1002)", f"""
        {SET} source_event_ts = old.source_event_ts WHERE audit_id = new.audit_id""")  # fmt: skip

    def test_what_set_values_back_is_named(self) -> None:
        rows = [{"payload": MALFORMED}] * 3 + [{}] * 5 + [FILLED] * 992 + [{}] * 5 + [FILLED] * 995
        version, rebuild = "INSERT INTO schema_version VALUES ('{}', 0);", rebuilt(COLUMNS[0])
        for name, extra, sql, culprit in (
            ("a migration", "", rebuild + version.format("0.22.0"), "migration"),
            ("the schema alone", "", rebuild, "another process"),
            ("an old version", "", version.format("0.2.0"), "another process"),
            ("a trigger", self.KEEP_OLD, "", r"trigger \(t\)"),
        ):  # fmt: skip
            with self.subTest(name), mock.patch.object(backfill, "FIRST_BATCH", 1000):
                self.fresh(*rows, {}, extra=extra)
                result = self.run_beside(sql if extra else sql + self.BACK, before=3)
                self.assert_failed(result, "NULL again", "run again", culprit)
                self.assertEqual("migration" in result.err, culprit == "migration")
                self.assertEqual((result.summary["filled"], result.summary["undone"]), (11, 2))
                self.assertEqual(result.summary["coverage_after_pct"], self.coverage())

    def test_the_table_is_counted_again_only_if_it_may_have_changed(self) -> None:
        trigger = TRIGGER.format("AFTER", "1", "SELECT 1")
        for extra, sql, again in (("", "", False), ("", TOUCH, True), (trigger, "", True)):
            self.fresh(*[{}] * 9, extra=extra)
            with mock.patch.object(backfill, "PLAIN_SECONDS", 0):
                self.assertEqual("Checking" in self.run_beside(sql).err, again)
                self.assertNotIn("Checking", self.tool("--dry-run").err)

    def test_an_interrupt_during_the_last_count_keeps_the_figures_of_the_run(self) -> None:
        self.fresh(*[FILLED] * 1500 + [{}] * 9, extra=self.KEEP_OLD.replace("1002", "1502"))
        with mock.patch.object(backfill, "PLAIN_SECONDS", 0):
            result = self.watched("Checking", partial(signal.raise_signal, signal.SIGINT), "--json")
        self.assertEqual((result.code, result.summary["status"]), (130, "interrupted"))
        figures = [result.summary[key] for key in ("filled", "undone", "coverage_after_pct")]
        self.assertEqual(figures, [9, 0, 100.0])


# --- Memory, the -wal, reading ahead, plans -------------------------------------------------------

MEASURE = """import resource, subprocess, sys
subprocess.run([sys.executable, *sys.argv[1:]])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)"""


class WorkTest(StoreTest):
    def test_memory_does_not_grow_with_batch_size_times_payload_size(self) -> None:
        payload = json.dumps({"timestamp": DONE, "filler": "策略" * 20_000}, ensure_ascii=False)
        needed = []
        for size in (50, 10_000):
            self.fresh(*[{"payload": payload}] * 300, journal_mode="wal")
            options = ("--batch-size", size, "--quiet")
            result = self.finish(self.start(*options, program=("-c", MEASURE, SCRIPT)))
            self.assertEqual(result.summary["filled"], 300)
            needed.append(int(result.err))
        self.assertLess(needed[1], 1.2 * needed[0])

    @contextlib.contextmanager
    def reads(self, seconds: float = 0, *, fail: bool = False) -> Iterator[list[bool]]:
        """Watch which reads are made ahead; let those be open for some time, or fail."""
        ahead: list[bool] = []
        read_batch = backfill.read_batch

        def watch(store: backfill.Store, *arguments: Any) -> Any:
            ahead.append(threading.current_thread() is not threading.main_thread())
            if not ahead[-1]:
                return read_batch(store, *arguments)
            if fail:
                raise sqlite3.OperationalError("database is locked")
            store.execute("BEGIN")
            batch = read_batch(store, *arguments)
            time.sleep(seconds)
            store.execute("ROLLBACK")
            return batch

        with mock.patch.object(backfill, "read_batch", watch):
            yield ahead

    def test_the_next_batch_is_read_ahead_where_that_keeps_nobody_waiting(self) -> None:
        refused = mock.Mock(side_effect=RuntimeError("can't start new thread"))
        for name, mode, options, fail, start, expected in (
            ("WAL", "wal", (), False, threading.Thread.start, [False, True, True]),
            ("a rollback journal", "delete", (), False, threading.Thread.start, [False] * 3),
            ("dry", "wal", ("--dry-run",), False, threading.Thread.start, [False] * 3),
            ("no thread is to be had", "wal", (), False, refused, [False] * 3),
            ("an error is met again", "wal", (), True, threading.Thread.start,
             [False, True, False, True, False]),
        ):  # fmt: skip
            with self.subTest(name):
                # The third batch is in another range.
                self.fresh(*[{}] * 6 + [FILLED] * 1000 + [{}] * 3, journal_mode=mode)
                with (
                    self.reads(fail=fail) as ahead,
                    mock.patch.object(threading.Thread, "start", start),
                    mock.patch.object(backfill, "FIRST_BATCH", 500),
                ):
                    self.assertEqual(self.fill("--batch-size", 500, *options)["filled"], 9)
                self.assertEqual(ahead, expected)

    def test_the_wal_stays_small_unless_a_reader_holds_it_up_which_is_noted_once(self) -> None:
        for statements, held in ((READ[1:], False), (READ, True)):
            self.fresh(*[{"payload": SOUND + " " * 10_000}] * 1000, journal_mode="wal")
            self.hold(*statements)  # so the -wal is there at the end
            with (
                self.reads(seconds=0.02) as ahead,
                mock.patch.object(backfill, "LONG_WAL", 1_000_000),
                mock.patch.object(backfill, "HUGE_WAL", 7_000_000),
            ):
                result = self.tool("--batch-size", 20)
            self.assertIn(True, ahead)
            self.assertEqual(Path(f"{self.path}-wal").stat().st_size > 7_000_000, held)
            notes = re.findall(r"(?m)^warning: .*-wal has (\d+) MB", result.err)
            self.assertEqual([7 <= int(size) < 20 for size in notes], [True] * held, result.err)

    @OWN_MODULE
    def test_work_is_linear_and_within_sqlites_limits_whatever_the_statistics(self) -> None:
        connect = sqlite3.connect
        counts: list[mock.Mock] = []
        extra = """CREATE INDEX a ON task_audits (source_event_ts) WHERE source_event_ts IS NULL;
            CREATE INDEX b ON task_audits (supervisor_processed_at, source_event_ts, audit_id);
            CREATE INDEX c ON task_audits (event_type) WHERE source_event_ts IS NULL;
            ANALYZE; UPDATE sqlite_stat1 SET stat = '20000 1 1 1';"""

        def watched(*arguments: Any, **options: Any) -> sqlite3.Connection:
            store: sqlite3.Connection = connect(*arguments, **options)
            store.setlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER, 32_766)
            store.set_progress_handler(counts[-1], 1000)
            return store

        for rows, size in ((1500, 100), (20_000 if HEAVY else 7500, 100), (12_000, 12_000)):
            self.fresh(*[{}] * rows, FILLED, extra=extra if size == 100 else "")
            counts.append(mock.Mock(return_value=0))
            with (
                mock.patch.object(sqlite3, "connect", watched),
                mock.patch.object(backfill, "FIRST_BATCH", size),
            ):
                self.assertEqual(self.fill("--batch-size", size)["filled"], rows)
        self.assertLess(counts[1].call_count, (20 if HEAVY else 7.5) * counts[0].call_count)

    def test_statistics_of_one_row_are_refused_with_the_cure_where_they_matter(self) -> None:
        for seen, rows, options, refused in (
            ([FILLED], 1000, [], False), ([FILLED], 1001, [], True),
            ([FILLED], 1001, ["--dry-run"], True), ([], 1001, [], False),
        ):  # fmt: skip
            self.fresh(*seen, extra="ANALYZE")
            with contextlib.closing(sqlite3.connect(self.path)) as other, other:
                self.insert(other, [{}] * (rows - len(seen)))
            if refused:
                self.assert_failed(self.tool("--json", *options), "ANALYZE task_audits")
                self.assertEqual(self.count_filled(), 1)
                self.query("ANALYZE task_audits")
            self.assertEqual(self.fill()["filled"], rows - len(seen))


# --- The machine: stores, names, places, causes, streams ------------------------------------------

LOCAL = "ext2 ext3 ext4 xfs btrfs zfs f2fs bcachefs jfs reiserfs tmpfs ramfs overlay "
LOCAL += "fuse.fuse-overlayfs exfat vfat ntfs3 fuseblk squashfs erofs"


def fork_off(work: Callable[[], object]) -> tuple[Any, Any]:
    """Start a process like this one; return it and the pipe that the work's result comes by."""
    fork = multiprocessing.get_context("fork")
    reader, pipe = fork.Pipe(duplex=False)
    child = fork.Process(target=lambda: pipe.send(work()))
    child.start()
    pipe.close()
    return child, reader


def in_child(prepare: Callable[[], object], *arguments: object) -> Result:
    """Run the tool in a process of its own, which first does something to itself."""
    child, reader = fork_off(lambda: prepare() or run(*arguments))
    result: Result = reader.recv()
    child.join()
    return result


def limit(what: int, most: int) -> Callable[[], None]:
    return partial(resource.setrlimit, what, (most, most))


def become(user: int, *groups: int) -> None:
    if IS_ROOT:  # anybody else stays who they are
        os.setgroups(groups)
        os.setgid(groups[0])
        os.setuid(user)


NEEDED = ("audit_id INTEGER PRIMARY KEY", "event_type", "payload", "created_at", *COLUMNS)


def table(*columns: str, end: str = "") -> str:
    return f"CREATE TABLE task_audits ({', '.join(columns)}) {end};"


# What it is, what makes it (SQL, or something else), and a telling word of the sentence.
BAD_STORES: list[tuple[str, str | Callable[[Path], object], str]] = [
    ("nothing", str, "--db-path"),
    ("a directory", Path.mkdir, "directory"),
    ("a pipe", os.mkfifo, "regular file"),
    ("an empty file", Path.touch, "empty"),
    ("no database", lambda path: path.write_text("rubbish" * 100), "not a SQLite database"),
    ("no table", "CREATE TABLE other (a)", "no table task_audits"),
    ("a view", "CREATE VIEW task_audits AS SELECT 1", "no table task_audits"),
    *((f"no {c}", table(*(n for n in NEEDED if n != c)), "has no column") for c in NEEDED),
    ("another key", table("audit_id BIGINT PRIMARY KEY", *NEEDED[1:]), "INTEGER PRIMARY KEY"),
    ("no key", table("audit_id INTEGER", *NEEDED[1:]), "INTEGER PRIMARY KEY"),
    ("no rowid", table(*NEEDED, end="WITHOUT ROWID"), "INTEGER PRIMARY KEY"),
    ("generated", table(*NEEDED[:5], f"{COLUMNS[1]} AS (payload)"), "generated column"),
    *((f"unique {c}", table(*NEEDED, f"UNIQUE ({c}) ON CONFLICT replace"), c) for c in COLUMNS),
    *(
        (f"version {texts[-1]}", sample_store.SCHEMA + versions(*texts), "v21")
        for texts in (["0.9.0"], ["0.1.0", "0.20.99"], ["v9", "latest", " v20 "], ["", "0.20-v20"])
    ),
]
GOOD_STORES = [
    *(versions(text) for text in ("0.21", "0.100.0", "1.0.0", "49", "v66", "0.99.0-v99", "latest")),
    versions("0.9.0", "0.21.0", "0.1.0"),
    "INSERT INTO schema_version VALUES (x'ff', 1), (CAST(x'ff' AS TEXT), 2)",
    "DROP TABLE schema_version",
    "ALTER TABLE schema_version RENAME COLUMN version TO v",
    "ALTER TABLE task_audits ADD kind AS (json_extract(payload, '$.a'))",
    "CREATE UNIQUE INDEX one ON task_audits (source_event_ts)",
    f"DROP TABLE task_audits; {table(*reversed(NEEDED), 'other UNIQUE ON CONFLICT REPLACE')}"
    f"INSERT INTO task_audits (event_type, payload) VALUES ('SUPERVISOR_ERROR', '{SOUND}')",
]


class WhichStoreTest(StoreTest):
    def test_wrong_usage_ends_with_code_2_and_names_the_option(self) -> None:
        usages = [f"--batch-size {size}" for size in (0, 2**63, 1.5, "many")]
        usages += ["--busy-timeout -1", "--busy-timeout nan", "--pause inf", "--pause soon"]
        others = "batch-size 7", "json", "dry-run", "backup b", "pause 1", "log-file l", "quiet"
        usages += ["--db-path", "--dry", "store.db", *(f"--verify --{other}" for other in others)]
        for usage in usages:
            with self.subTest(usage):
                result = self.tool(*usage.split())
                self.assertEqual((result.code, result.out), (2, ""))
                self.assertRegex(result.err, rf"error: .*{usage.split()[0]}")
        self.assertEqual(self.tool("--verify", "--busy-timeout", 1).code, 1)  # there is no store
        self.fresh({})
        self.assertEqual(self.fill("--batch-size", 1, "--busy-timeout", 0)["filled"], 1)
        self.assertEqual((run("--help").code, run("--help").err), (0, ""))
        self.assertRegex(run("--version").out, rf"^.+ {re.escape(backfill.__version__)}\n$")

    def test_a_bad_store_is_refused_in_one_line_and_nothing_is_made_or_changed(self) -> None:
        for number, (name, make, word) in enumerate(BAD_STORES):
            with self.subTest(name):
                self.path = self.folder / f"store {number}.db"
                if isinstance(make, str):
                    self.connect().executescript(make)
                else:
                    make(self.path)
                before = self.files()
                for options in ([], ["--dry-run"], ["--backup", self.folder / "copy.db"]):
                    result = self.tool(*options)
                    self.assert_failed(result, word)
                    self.assertEqual((result.out, result.err.count("\n")), ("", 1))
                result = self.tool("--json", "--quiet")
                self.assert_failed(result, word)
                numbers = [value for value in result.summary.values() if type(value) is int]
                self.assertEqual(numbers, [1000] + [0] * 7)  # the size of batches, and counts
                self.assertIsNone(result.summary["coverage_before_pct"])
                self.assertIsNone(result.summary["coverage_after_pct"])
                self.assertEqual(self.files(), before)

    def test_what_is_not_needed_may_be_missing_or_odd(self) -> None:
        for change in GOOD_STORES:
            with self.subTest(change):
                self.fresh({}, extra=f"DELETE FROM schema_version; {change}")
                self.fill()
                self.assertEqual(self.columns(), [(EVENT, DONE)])

    def test_any_path_works(self) -> None:
        names = ["with space.db", "what?.db", "a#b.db", "50%20.db", "'quoted'.db", "file:x"]
        for name in (*names, "größe\n.db", os.fsdecode(b"\xff.db")):
            with self.subTest(name), contextlib.chdir(self.folder):
                self.fresh({}, path=self.folder / name)
                self.assertEqual(run("--db-path", name).code, 0)
                self.assertEqual(self.columns(self.folder / name), [(EVENT, DONE)])
        for drive, made in ((r"C:\a b.db", "/C:/a b.db"), (r"\\pc\s\a.db", "//pc/s/a.db")):
            path: Any = PureWindowsPath(drive)
            with mock.patch.object(sqlite3, "connect", side_effect=OSError) as connect:
                with self.assertRaises(OSError):
                    backfill.Store(path, backfill.Patience(0, 0), read_only=True)
            uri = connect.call_args[0][0]
            self.assertEqual((unquote(uri), " " in uri), (f"file://{made}?mode=ro", False))

    def test_without_a_path_the_stores_of_every_release_are_named_and_none_is_picked(self) -> None:
        places = [".octopusos/store/octopusos/db.sqlite", ".agentos/store/agentos/db.sqlite"]
        places += ["store/registry.sqlite", "a", "b", "c d"]
        line = 'HOME="$PWD" OCTOPUSOS_DB_PATH=a SQLITE_PATH=b AGENTOS_DB_PATH="$PWD/c d" "$@"'
        self.path = Path(".agentos/store.db")
        self.assert_failed(self.shell(line.replace("=b", f"={'b' * 300}")), "--db-path", "none")
        for place in places:
            (self.folder / place).parent.mkdir(parents=True, exist_ok=True)
            self.fresh({}, path=self.folder / place)
        error = self.assert_failed(self.shell(line), "--db-path")
        self.assertEqual(error.count(","), 5, error)
        for place in places:
            self.assertIn(place, error)
            self.assertEqual(self.columns(self.folder / place), [(None, None)])
        self.assertEqual(self.shell(line.replace("=b", "=a")).err.count(","), 4)


class PlaceAndCauseTest(StoreTest):
    def mounts(self, *mounts: tuple[str, str]) -> Any:
        """Let the tool see these mounts: what follows the folder's path, and the type."""
        real, lines = os.path.realpath(self.folder), ["source / nfs4 rw 0 0\n"]
        for place, kind in mounts:
            point = re.sub(r"[ \t\n\\]", lambda c: f"\\{ord(c[0]):03o}", f"{real}{place}")
            lines.append(f"source {point} {kind} rw 0 0\n")
        (self.folder / "mounts").write_text("".join(lines))
        return mock.patch.object(backfill, "MOUNTS", self.folder / "mounts")

    def test_a_second_hard_link_is_refused_under_either_name(self) -> None:
        other, log = self.folder / "other.db", self.folder / "log"
        for journal_mode in JOURNAL_MODES:
            self.fresh({}, journal_mode=journal_mode)
            other.hardlink_to(self.path)
            before = self.files()
            for path in (self.path, other):
                for options in (["--log-file", log], ["--dry-run"], ["--verify"]):
                    result = run("--db-path", path, *options)
                    self.assert_failed(result, "hard link", "-samefile", path=path)
            self.assertEqual(self.files(), before)
            other.unlink()

    def test_through_a_symbolic_link_the_run_finishes_on_the_file_it_opened(self) -> None:
        link, other = self.folder / "links" / "link.db", self.folder / "other.db"
        link.parent.mkdir()
        link.symlink_to(self.path)
        self.fresh(*[{}] * 30, journal_mode="wal")
        self.fresh({}, path=other)

        def switch() -> None:
            self.assertEqual([*link.parent.iterdir()], [link])  # and no -wal
            link.unlink()
            link.symlink_to(other)

        with self.beside(switch, before=2):
            self.assertEqual(run("--db-path", link, "--batch-size", 10).code, 0)
        self.assertEqual(self.columns(), [(EVENT, DONE)] * 30)
        self.assertEqual(self.columns(link), [(None, None)])

    def test_a_mount_of_the_file_alone_is_refused_and_one_of_its_folder_is_not(self) -> None:
        link = self.folder / "link.db"
        for name in ("plain.db", "with blank\t.db", "back\\slash\\040\n.db", "größe.db"):
            self.path = self.folder / name
            self.fresh({})
            before = self.path.read_bytes()
            link.symlink_to(self.path)
            with self.mounts((f"/{name}", "ext4")):
                self.assert_failed(run("--db-path", link), "mount.*alone", path=link)
                self.assert_failed(run("--db-path", link, "--verify"), "alone", path=link)
            self.assertEqual(self.path.read_bytes(), before)
            link.unlink()
            with self.mounts(("", "ext4"), (f"/{name}x", "ext4")):
                self.fill()

    def test_a_file_system_not_known_to_be_local_is_noted_once_and_in_the_log(self) -> None:
        self.fresh({})
        log = self.folder / "log"
        for name, mounts, noted in (
            *((kind, [("", kind)], 0) for kind in LOCAL.split()),
            *((kind, [("", kind)], 1) for kind in ("9p", "fuse.sshfs", "fakeowner", "ext")),
            ("local over distant", [("", "nfs4"), ("", "ext4")], 0),
            ("distant over local", [("", "ext4"), ("", "nfs4")], 1),
            ("one that begins alike", [("", "ext4"), ("2", "nfs4")], 0),
            ("the root", [], 1),
        ):
            with self.subTest(name), self.mounts(*mounts):
                log.unlink(missing_ok=True)
                said = self.tool("--dry-run", "--log-file", log).err
                counts = [text.count("same mount") for text in (said, log.read_text())]
                self.assertEqual(counts, [noted, noted])
        with mock.patch.object(backfill, "MOUNTS", self.folder / "none"):
            self.assertNotIn("mount", self.tool("--dry-run").err)

    @OWN_MODULE
    def test_a_store_that_does_not_stay_in_its_place_ends_the_run(self) -> None:
        other = self.folder / "other.db"
        move: Callable[..., Any] = partial(Path.replace, target=self.folder / "away.db")
        stores = (("delete", ""), ("wal", ""), ("wal", "-wal"))
        for (mode, suffix), action in itertools.product(stores, (move, Path.unlink, other.replace)):
            with self.subTest(str(action), journal_mode=mode, suffix=suffix):
                self.fresh(*[{}] * 40, journal_mode=mode)
                self.fresh({}, path=other)
                with self.beside(partial(action, Path(f"{self.path}{suffix}")), before=2):
                    result = self.tool("--json", "--batch-size", 10)
                self.assert_failed(result, "moved, replaced or removed")
                self.assertNotIn("which stay", result.err)
                self.assertNotRegex(result.err, r"\b(move|mv|rename)\b|damaged|permission")
                self.assertIn(result.summary["batches"], (1, 2))

    @unittest.skipUnless(IS_ROOT, "only root can become somebody else")
    def test_a_user_whose_shm_the_owner_could_not_write_is_refused(self) -> None:
        owner, user, team, others = 1001, 1002, 2001, 2002
        self.folder.chmod(0o755)
        for name, mode, groups, folder_group, refused in (
            ("all may read", 0o644, [others], 0, True),
            ("all may write", 0o666, [others], 0, False),
            ("the user's group", 0o664, [team], 0, False),
            ("another group of the user's", 0o664, [others, team], 0, True),
            ("a folder of the group", 0o664, [others, team], team, False),
            ("a folder of others", 0o664, [team, others], others, True),
        ):
            self.path = self.folder / name / "store.db"
            self.path.parent.mkdir()
            self.fresh({}, journal_mode="wal")
            os.chown(self.path, owner, team)
            self.path.chmod(mode)
            os.chown(self.path.parent, 0, folder_group)
            self.path.parent.chmod(0o2777 if folder_group else 0o777)
            before = self.files()
            for option in ("--verify", "--dry-run", "--json"):
                with self.subTest(name, option=option):
                    other = partial(become, user, *groups)
                    result = in_child(other, "--db-path", self.path, option)
                    if refused:
                        self.assert_failed(result, f"owner .*{owner}")
                        self.assertEqual(self.files(), before)
                    elif option != "--verify":
                        self.assertEqual(result.code, 0, result.err)
            owner_too = in_child(partial(become, owner, team), "--db-path", self.path, "--dry-run")
            self.assertEqual((owner_too.code, self.tool().code), (0, 0), owner_too.err)

    def test_verify_waits_for_a_lock_as_long_as_it_may(self) -> None:
        self.fresh({})
        self.hold("BEGIN EXCLUSIVE")
        begun = time.monotonic()
        verified = self.tool("--verify", "--busy-timeout", 0.7)
        self.assert_cause(verified, "SQLITE_BUSY", "--busy-timeout")
        self.assertGreaterEqual(time.monotonic() - begun, 0.7)

    @OWN_MODULE
    def test_limits_of_the_process(self) -> None:
        self.fresh(*[{}] * 200)
        backup, size = ("--backup", self.folder / "copy"), resource.RLIMIT_FSIZE
        for most, options, word in ((8192, (), "too large"), (50_000, backup, "copy cannot")):
            result = in_child(limit(size, most), "--db-path", self.path, *options)
            self.assert_cause(result, "SQLITE_IOERR_WRITE", word)
            self.assertEqual(list(self.files()), ["store.db"])
        few = limit(resource.RLIMIT_NOFILE, len([*Path("/dev/fd").iterdir()]))
        self.assert_failed(in_child(few, "--db-path", self.path), "open files")

    def test_a_file_or_folder_that_this_user_may_not_use(self) -> None:
        for mode, folder, option, words in (
            (0o444, 0o777, "--json", "SQLITE_READONLY.*system"),
            (0o666, 0o555, "--json", "SQLITE_(READONLY|CANTOPEN).*system"),
            (0o000, 0o777, "--json", "system"),
            (0o000, 0o777, "--dry-run", "system"),
            (0o666, 0o000, "--json", "system"),
        ):
            self.path = self.folder / f"{mode} {folder} {option}" / "store.db"
            self.path.parent.mkdir()
            self.fresh({})
            self.path.chmod(mode)
            self.path.parent.chmod(folder)
            self.folder.chmod(0o755)
            result = in_child(partial(become, 65534, 65534), "--db-path", self.path, option)
            self.path.parent.chmod(0o755)
            self.assert_failed(result, words, "Permission denied")

    def test_damaged_pages_and_what_only_a_newer_sqlite_reads(self) -> None:
        for offset, content, name, word in (
            (4096 * 3, b"\xff" * 4096 * 20, "SQLITE_CORRUPT", "integrity_check"),
            (44, b"\0\0\0\x05", "SQLITE_ERROR", "newer Python"),
        ):
            self.fresh(*[{}] * 300)
            with self.path.open("r+b") as file:
                file.seek(offset)
                file.write(content)
            self.assert_cause(self.tool(), name, word)
        self.fresh(*[{}] * 300)  # an audit_id that a damaged page makes too low
        lower = "SELECT CASE WHEN ? > 0 THEN 5 ELSE 100 END + 0 * (? + ?)"
        with mock.patch.object(backfill, "SELECT_LAST_OF_BATCH", lower):
            self.assert_failed(self.tool("--dry-run"), "integrity_check")
        later = "CREATE TABLE later (a); PRAGMA writable_schema = ON; UPDATE sqlite_master"
        self.fresh({}, extra=f"{later} SET sql = sql || ' FUTURE' WHERE name = 'later'")
        self.assertNotIn("damaged", self.assert_failed(self.tool(), "newer Python", "later"))

    @OWN_MODULE
    def test_a_search_index_out_of_step(self) -> None:
        index = "fts5 (payload, content = 'task_audits', content_rowid = 'audit_id')"
        delete = "INSERT INTO words (words, rowid, payload) VALUES ('delete', 1, old.payload)"
        trigger = f"CREATE TRIGGER kept AFTER UPDATE ON task_audits BEGIN {delete}; END"
        self.fresh({}, extra=f"CREATE VIRTUAL TABLE words USING {index}; {trigger}")
        self.assert_cause(self.tool(), "SQLITE_CORRUPT_VTAB", "'rebuild'")
        self.query("INSERT INTO words (words) VALUES ('rebuild')")
        self.fill()

    @OWN_MODULE
    def test_the_journal_of_a_killed_process(self) -> None:
        self.fresh(*[{}] * 200)
        work = "PRAGMA cache_size = 2; BEGIN; UPDATE task_audits SET level = 1"
        code = f"import os, sqlite3; store = sqlite3.connect({str(self.path)!r})"
        code = f"{code}; store.executescript({work!r}); os._exit(0)"
        subprocess.run([sys.executable, "-c", code], check=True)
        before = self.files()
        self.assert_cause(self.tool("--dry-run"), "SQLITE_READONLY_ROLLBACK", "without --dry-run")
        self.assertEqual(self.files(), before)
        self.fill()
        self.assertEqual(self.columns(), [(EVENT, DONE)] * 200)

    def test_a_path_that_is_longer_than_sqlite_takes(self) -> None:
        folder = Path(os.path.realpath(self.folder)) / ("x" * 200) / ("y" * 150)
        for length, code in ((504, 0), (505, 1)):
            self.path = folder / ("z" * (length - len(f"{folder}//store.db"))) / "store.db"
            self.path.parent.mkdir(parents=True)
            self.fresh({}, path=self.folder / "made.db")
            (self.folder / "made.db").rename(self.path)
            result = self.tool("--dry-run")
            self.assertEqual(result.code, code, result.err)
        self.assert_cause(result, "SQLITE_CANTOPEN", "504 bytes")


class BackupTest(StoreTest):
    def back_up(self, action: Callable[[], object]) -> Result:
        """Back up a store of several thousand pages, and do something in the middle."""
        self.copy = self.folder / "copy.db"
        self.fresh(*[{"payload": "x" * 5000}] * 1500, journal_mode="wal")
        with mock.patch.object(backfill, "PLAIN_SECONDS", 0.0):
            return self.watched("Backup", action, "--json", "--backup", self.copy)

    def test_it_is_the_store_at_one_moment_and_private_until_it_is_complete(self) -> None:
        def write() -> None:
            self.assertEqual(Path(f"{self.copy}.partial").stat().st_mode & 0o777, 0o600)
            self.query("UPDATE task_audits SET source_event_ts = 'theirs'")

        result = self.back_up(write)
        self.assertEqual((result.code, result.summary["backup"]), (0, str(self.copy)), result.err)
        shares = list(map(float, re.findall(r"\] Backup +([\d.]+) %", result.err)))
        self.assertEqual((shares, shares[-1]), (sorted(shares), 100.0))
        self.assertEqual(set(self.columns(self.copy)), {(None, None)})
        self.assertEqual({first for first, _ in self.columns()}, {"theirs"})
        self.assertEqual(self.query("PRAGMA integrity_check", self.copy), [("ok",)])
        self.assertEqual(self.copy.stat().st_nlink, 1)

    def test_a_signal_leaves_no_file_and_writes_nothing(self) -> None:
        result = self.back_up(lambda: signal.raise_signal(signal.SIGTERM))
        self.assertEqual((result.code, self.count_filled(), *self.files()), (143, 0, "store.db"))

    def test_a_name_that_is_taken_meanwhile_is_not_overwritten(self) -> None:
        copy = self.folder / "copy.db"
        with mock.patch.object(os, "link", side_effect=OSError):  # as where there are no links
            self.assertEqual(self.back_up(int).summary["backup"], str(copy))
        copy.unlink()
        self.assert_failed(self.back_up(partial(copy.write_text, "precious")))
        self.assertEqual((copy.read_text(), self.count_filled()), ("precious", 0))
        self.assertEqual(set(self.files()), {"store.db", "copy.db"})

    def test_it_has_the_stores_mode_and_a_dry_run_makes_none(self) -> None:
        copy = self.folder / "file:x"  # which SQLite would take for a URI
        self.fresh({})
        self.path.chmod(0o640)
        with contextlib.chdir(self.folder):
            self.assertIsNone(self.fill("--dry-run", "--backup", copy.name)["backup"])
            self.assertRegex(self.tool("--backup", copy.name).out, "\nbackup +file:x\n")
        self.assertEqual(copy.stat().st_mode & 0o777, 0o640)
        self.assertEqual(self.columns(copy), [(None, None)])

    def test_where_it_cannot_be_made_nothing_is_written_nor_where_a_log_cannot(self) -> None:
        (self.folder / "dangling.db").symlink_to("nowhere.db")
        (self.folder / "here").symlink_to(self.folder)
        for beside, option, target, word in (
            ("copy.db", "--backup", "copy.db", "exists"),
            ("copy.db.partial", "--backup", "copy.db", "partial exists: .*remove"),
            ("copy.db-journal", "--backup", "copy.db", "-journal exists"),
            ("other", "--backup", "dangling.db", "exists"),
            ("other", "--backup", "nowhere/copy.db", "No such file"),
            ("other", "--backup", "/", "/ exists"),
            ("other", "--backup", "here/store.db-shm", "--backup names"),
            ("other", "--log-file", "here/store.db", "--log-file names"),
            ("other", "--log-file", "here/store.db-wal", "--log-file names"),
            ("other", "--log-file", "here", "Is a directory"),
            ("other", "--log-file", "/dev/full", "log.file.*No space left"),
        ):
            with self.subTest(beside, target=target):
                self.fresh({})
                (self.folder / beside).write_text("precious")
                before = self.files()
                self.assert_failed(self.tool(option, self.folder / target), word)
                self.assertEqual(self.files(), before)
                (self.folder / beside).unlink()


class OutputTest(StoreTest):
    def test_output_that_cannot_be_shown_ends_no_work_but_a_report_must_be_written(self) -> None:
        self.path = self.folder / "größe.db"
        for line, code, word in (
            ('"$@" >/dev/full', 1, "error: .*No space left.*40 of 41 rows"),
            ('"$@" --json --quiet >/dev/full', 1, "error: .*No space left.*40 of 41 rows"),
            ('"$@" --verify >/dev/full', 1, "error: .*No space left"),
            ('"$@" 2>/dev/full', 0, ""),
            ('"$@" >&-', 0, "41 rows"),
            ('"$@" --json --log-file log <&- >&- 2>&-', 0, ""),
            ('{ "$@"; echo "code $?" >&2; } | true', 0, r"\ncode 0\n\Z"),
            ('{ "$@" --quiet; echo "code $?" >&2; } | true', 0, r"\Acode 0\n\Z"),
            ('PYTHONIOENCODING=ascii "$@" --log-file /dev/stderr', 0, "end: completed"),
        ):
            with self.subTest(line):
                self.fresh(*[{}] * 40 + [{"payload": MALFORMED}])
                result = self.shell(line, "--db-path", self.path)
                self.assertEqual(result.code, code, result.err)
                self.assertRegex(result.err, f"(?s){word}")
                self.assertEqual(self.count_filled(), 0 if "--verify" in line else 40)

    def test_a_log_file_without_room_for_its_last_line_or_for_those_of_rows(self) -> None:
        log, room = self.folder / "log", limit(resource.RLIMIT_FSIZE, 10**7 + 500)
        for rows, filled in (([{}] * 50, 50), ([{"payload": MALFORMED}] * 250 + [{}], 0)):
            self.fresh(*rows)
            log.write_bytes(bytes(10**7))
            result = in_child(room, "--db-path", self.path, "--json", "--log-file", log)
            self.assert_failed(result, "log.file", "File too large")
            self.assertEqual((result.summary["status"], self.count_filled()), ("failed", filled))

    def test_an_older_python_or_sqlite_is_told_in_one_line(self) -> None:
        ast.parse(SCRIPT.read_text(encoding="utf-8"), feature_version=(3, 6))
        python, sqlite = "sys.version_info", "sqlite3.sqlite_version_info"
        for version, minor, words in (
            (python, 10, "needs Python 3.11"), (python, 11, ""),
            (sqlite, 33, "with SQLite 3.34"), (sqlite, 34, ""),
        ):  # fmt: skip
            line = f"import sys, sqlite3; {version} = (3, {minor}, 0); "
            line += "sys.path[0] = sys.argv[1]; import backfill_audit_decision_fields"
            result = self.shell(f'"$1" -c "{line}" "${{2%/*}}"')
            self.assertEqual((result.code, result.err.count("\n")), (words > "",) * 2, result.err)
            self.assertIn(words, result.err)

    @OWN_MODULE
    def test_what_keeps_verify_from_judging_is_said(self) -> None:
        self.query("CREATE TABLE other (a)")
        self.assert_failed(self.tool("--verify"), "no table task_audits")
        numbers = "WITH n (i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n LIMIT 20000)"
        self.checks(f"CREATE TABLE temp.t AS {numbers} SELECT hex(randomblob(500)) FROM n")
        result = in_child(limit(resource.RLIMIT_FSIZE, 0), "--db-path", self.path, "--verify")
        self.assert_failed(result, "SQLITE_(IOERR|FULL)", "SQLITE_TMPDIR")
        (self.folder / "verify_backfill.sql").unlink()
        self.assert_failed(self.tool("--verify"), "verify_backfill.sql is missing")

    def test_ctrl_c_ends_verify(self) -> None:
        self.fresh()
        numbers = "WITH n (i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n LIMIT 10000000)"
        self.checks("SELECT 'begun'", f"{numbers} SELECT max(i) FROM n")
        result = self.watched("begun", lambda: signal.raise_signal(signal.SIGINT), "--verify")
        self.assertEqual((result.code, result.out), (130, "begun\n"))


# --- verify_backfill.sql --------------------------------------------------------------------

VERIFY = HERE / "verify_backfill.sql"
SHELL = shutil.which("sqlite3")

# Letters of every kind, as a payload's text has them beside the timestamps.
LETTERS = [
    "plain", "no findings — allowed", "“high”, ‘low’", "策略 matched", "é", "e\u0301", "🛑 stopped",
    "\N{NO-BREAK SPACE}«»\N{NO-BREAK SPACE}", "\x7f", "\u202e", "\ufffd", "\uffff", "[{}]", '"\\"',
    "\\u00e9", "ﬁ" * 500,
]  # fmt: skip

# One row among many is changed: (id, what is changed, the checks that must fail).
IN_BOTH = "source_event_ts = '{0}', payload = json_set(payload, '$.source_ts', '{0}')".format
TAMPERINGS: list[tuple[str, str, set[int]]] = [
    ("500 ms off", "source_event_ts = replace(source_event_ts, '.0', '.5')", {2}),
    ("2 ms off", "supervisor_processed_at = replace(supervisor_processed_at, '.5', '.502')", {2}),
    ("an epoch", "source_event_ts = 946684800000", {2, 5}),
    ("an epoch with a fraction", "source_event_ts = 1770112800.5", {2, 5}),
    ("the other field's value", "source_event_ts = supervisor_processed_at", {2}),
    ("another row's value", f"{S} = (SELECT {S} FROM task_audits WHERE audit_id = 1)", {2}),
    ("another row's values",
     f"({S}, {P}) = (SELECT {S}, {P} FROM task_audits WHERE audit_id = 1)", {2}),
    ("exchanged", f"{S} = {P}, {P} = {S}", {2}),
    ("an offset added", "source_event_ts = replace(source_event_ts, 'Z', '+02:00')", {2}),
    ("Z lost", "source_event_ts = rtrim(source_event_ts, 'Z')", {5}),
    ("Z lost in the other", "supervisor_processed_at = rtrim(supervisor_processed_at, 'Z')", {5}),
    ("a small z", "source_event_ts = replace(source_event_ts, 'Z', 'z')", {2, 5}),
    ("a line feed behind it", "source_event_ts = source_event_ts || char(10)", {2, 5}),
    ("a blank before it", "source_event_ts = ' ' || source_event_ts", {2, 5}),
    ("a NUL behind it", "source_event_ts = source_event_ts || char(0)", {2, 5}),
    ("a NUL and more behind it", "source_event_ts = source_event_ts || char(0, 65)", {2, 5}),
    ("empty", "source_event_ts = ''", {2, 5}),
    ("a word", "source_event_ts = 'rubbish'", {2, 5}),
    ("the word NULL", "supervisor_processed_at = 'NULL'", {2, 5}),
    ("a BLOB", "source_event_ts = x'00ff'", {2, 5}),
    ("the value as a BLOB", "source_event_ts = CAST(source_event_ts AS BLOB)", {2, 5}),
    ("bytes that are no UTF-8", "source_event_ts = CAST(x'ff' AS TEXT)", {2, 5}),
    ("a day that is none", IN_BOTH("2026-02-30T08:00:01.000000Z"), {2, 5}),
    ("hour 24", IN_BOTH("2026-01-05T24:00:00Z"), {2, 5}),
    ("a day alone", "source_event_ts = substr(source_event_ts, 1, 10)", {2, 5}),
    ("created_at", "supervisor_processed_at = created_at", {2}),
    ("created_at for both", f"{P} = created_at, {S} = created_at", {2}),
    ("one forgotten", "source_event_ts = NULL", {6}),
    ("the other forgotten", "supervisor_processed_at = NULL", {6}),
    ("both forgotten", "source_event_ts = NULL, supervisor_processed_at = NULL", {6}),
    # The same where a payload's field has another spelling: what it says, what the column holds.
    *((name, f"payload = json_set(payload, '$.source_ts', {says}), {COLUMNS[0]} = {holds}", checks)
      for name, says, holds, checks in (
        ("an offset dropped", "'2026-01-05T10:00:01+02:00'", "'2026-01-05T10:00:01Z'", {2}),
        ("an offset changed", "'2026-01-05T10:00:01+02:00'", "'2026-01-05T10:00:01+01:00'", {2}),
        ("created_at for a comma", "'2026-01-05 08:00:01,5'", "created_at", {2}),
        ("created_at for a line feed", "'2026-01-05T08:00:01Z' || char(10)", "created_at", {2}),
        ("created_at for UTC", "'2026-01-05 08:00:01 UTC'", "created_at", {2}),
        ("created_at for milliseconds", "1767600001000", "created_at", {2}),
        ("created_at for seconds as text", "'1767600001.5'", "created_at", {2}),
        ("created_at for nanoseconds", "1767600001000000000", "created_at", {2}),
        ("the year 1999", "'1999-01-05T08:00:01Z'", "'1999-01-05T08:00:01Z'", {2}),
        ("the year 2100", "'2100-01-05T08:00:01Z'", "'2100-01-05T08:00:01Z'", {2}),
        ("the year 1", "'0001-01-01T00:00:00Z'", "'0001-01-01T00:00:00Z'", {2}),
        ("a day, as its midnight", "'2026-01-05'", "'2026-01-05T00:00:00Z'", {2}),
        ("NULL for a comma", "'2026-01-05 08:00:01,5'", "NULL", {6}),
        ("NULL for milliseconds", "1767600001000", "NULL", {6}),
      )),
]  # fmt: skip

# What an index holds, and what check 4 says of it: (id, indexes, verdict, missing ones).
ON_SOURCE = "CREATE INDEX a ON task_audits (source_event_ts) WHERE source_event_ts IS NOT NULL;"
ON_BOTH = """CREATE INDEX b ON task_audits (source_event_ts, supervisor_processed_at)
    WHERE source_event_ts IS NOT NULL AND supervisor_processed_at IS NOT NULL;"""
ON_EVENT = """CREATE INDEX c ON task_audits (event_type, source_event_ts)
    WHERE source_event_ts IS NOT NULL;"""
INDEXES: list[tuple[str, str, str, int]] = [
    ("all, by other names", ON_SOURCE + ON_BOTH + ON_EVENT, "PASS", 0),
    ("without the one that v24 leaves out", ON_SOURCE + ON_BOTH, "INFO", 0),
    ("without the one on both columns", ON_SOURCE + ON_EVENT, "WARN", 1),
    ("none", "", "FAIL", 2),
    ("an expression before it", "CREATE INDEX a ON task_audits (lower(level), source_event_ts)",
     "FAIL", 2),
    ("the right names", """
     CREATE INDEX idx_task_audits_source_event_ts ON task_audits (level);
     CREATE INDEX idx_task_audits_decision_lag ON task_audits (task_id);""", "FAIL", 2),
]  # fmt: skip


class Verification(NamedTuple):
    """What the eight checks said."""

    code: int
    text: str
    errors: str
    verdicts: dict[int, str]
    details: dict[int, str]

    @property
    def failed(self) -> set[int]:
        return {number for number, verdict in self.verdicts.items() if verdict == "FAIL"}

    @property
    def checks(self) -> str:
        """The text from the first check on, without the plan, which is each shell's own."""
        text = re.sub(r"(?m)^QUERY PLAN\n|^.*SEARCH .*\n|^.*SCAN .*\n", "", self.text)
        return text[text.index("\n1. ") :]

    def figures(self, finding: str) -> tuple[int, int]:
        """The two figures that stand behind a finding."""
        found = re.search(rf"(?m)^{finding} +(\d+) +(\d+)$", self.text)
        return (int(found[1]), int(found[2])) if found else (0, 0)


def in_the_shell(path: Path, script: str) -> tuple[int, str, str]:
    """Run the checks as an operator does."""
    command: list[str | Path] = [str(SHELL), path]
    shell = subprocess.run(command, check=False, input=script.encode(), capture_output=True)
    return shell.returncode, shell.stdout.decode(), shell.stderr.decode()


def in_python(path: Path, _script: str) -> tuple[int, str, str]:
    """Run them by the tool's --verify, without the shell."""
    found = run("--db-path", path, "--verify")
    return found.code or 0, found.out, found.err


class VerifyTest(StoreTest):
    def verify(
        self,
        path: Path | None = None,
        *,
        script: str | None = None,
        by: Callable[..., Any] = in_the_shell if SHELL else in_python,
    ) -> Verification:
        """Run the checks; nothing may be written, and the exit code must fit the verdicts."""
        path = path or self.path
        before = self.files()
        code, text, errors = by(path, script or VERIFY.read_text(encoding="utf-8"))
        self.assertLessEqual(before.items(), self.files().items())
        new = {name[-4:] for name in self.files().keys() - before.keys()}
        self.assertLessEqual(new, {"-shm", "-wal"})  # which a read-only connection leaves
        lines = re.findall(r"(?m)^([1-8])  (\S.*?)  (PASS|WARN|FAIL|INFO)  (\S.*)$", text)
        verdicts = {int(number): verdict for number, _name, verdict, _detail in lines}
        details = {int(number): detail for number, _name, _verdict, detail in lines}
        found = Verification(code, text, errors, verdicts, details)
        if lines:
            self.assertEqual(list(verdicts), list(range(1, 9)), errors)
            names = [f"{number} {name}" for number, name, verdict, _ in lines if verdict == "FAIL"]
            last = f"FAIL: {', '.join(names)}" if names else "No check fails."
            self.assertEqual(text.splitlines()[-1], last)
            self.assertEqual(code, 1 if names else 0, errors)
        else:  # no store that it can judge
            self.assertEqual((code, errors.count("\n")), (1, 1), errors)
        return found

    def make_filled(self, count: int = 1100) -> None:
        """A store whose rows all differ, with letters of every kind, filled by the tool."""

        def rows() -> Iterator[dict[str, object]]:
            for number in range(count):
                time = f"2026-01-05T{number // 3600:02}:{number // 60 % 60:02}:{number % 60:02}"
                fields = {
                    "reason": LETTERS[number % len(LETTERS)],
                    "source_ts": f"{time}.000000Z",
                    "timestamp": f"{time}.500000Z",
                }
                ascii_only = number // 16 % 8 == 7 and fields["reason"] != "\x7f"
                payload = json.dumps(fields, ensure_ascii=ascii_only)
                yield {"payload": payload, "created_at": f"{time}.900000Z"}

        self.fresh(*rows())
        self.fill()

    def test_before_a_run_two_checks_fail_and_after_it_none(self) -> None:
        sample_store.make_store(self.path, rows=1000, journal_mode="delete")
        before = self.verify()
        self.assertEqual(before.failed, {1, 6})
        self.fill()
        found = self.verify(by=in_python)  # what follows compares it with the shell
        self.assertEqual(found.failed, set(), found.text)
        for fact in (str(self.path), sqlite3.sqlite_version[:2], "UTC", "1,000", "Not in WAL"):
            self.assertIn(fact, found.text[: found.text.index("\n1. ")])
        self.assertRegex(found.details[1], "from created_at")
        self.assertRegex(found.details[2], "^0 values differ, [1-9]\\d+ agree, 0 not judged$")
        self.assertRegex(found.details[8], r"^\d+ pairs, average [\d.]+ s, [1-9]\d* negative")
        self.assertGreater(found.figures("as created_at says"), (100, 10))
        self.assertLessEqual(max(map(len, (before.checks + found.checks).splitlines())), 80)
        self.query("PRAGMA journal_mode = wal")
        in_wal = self.verify()
        self.assertEqual(in_wal.checks, found.checks)
        self.assertNotIn("Not in WAL", in_wal.text)

    @unittest.skipIf(SHELL is None, "the sqlite3 shell is not installed")
    def test_python_prints_what_the_shell_prints(self) -> None:
        self.fresh(*hostile_rows(seed=7, count=200))
        shell, python = self.verify(), self.verify(by=in_python)
        self.assertEqual((python.code, python.errors), (shell.code, ""))
        self.assertEqual(python.checks, shell.checks)

    def test_one_row_tampered_with_among_a_thousand_is_noticed(self) -> None:
        self.make_filled()
        self.assertEqual(self.verify().failed, set())
        original = self.path.read_bytes()
        for number, (name, change, failed) in enumerate(TAMPERINGS):
            with self.subTest(name):
                self.path.write_bytes(original)
                self.change(f"UPDATE task_audits SET {change} WHERE audit_id = {1000 + number}")
                found = self.verify()
                self.assertEqual(found.failed, failed, found.text)

    def test_every_row_is_judged_whatever_letters_its_payload_has(self) -> None:
        self.make_filled(count=len(LETTERS) * 8)
        self.change("UPDATE task_audits SET source_event_ts = '2026-03-01T00:00:00Z'")
        found = self.verify()
        count = len(LETTERS) * 8
        self.assertEqual(found.details[2], f"{count} values differ, {count} agree, 0 not judged")
        self.change("UPDATE task_audits SET source_event_ts = NULL")
        self.assertRegex(self.verify().text, rf"(?s)\d +0 +{count}\n.* {count} should be filled")

    def test_what_the_tool_writes_is_never_called_wrong(self) -> None:
        """Ties the rules in SQL to the rules in Python, over many payloads."""
        nothing = dict.fromkeys(COLUMNS)
        for seed in (1, 2, 3, 4, 5) if HEAVY else (1,):
            with self.subTest(seed):
                self.fresh(*({**row, **nothing} for row in hostile_rows(seed, count=1000)))
                self.fill()
                found = self.verify()
                self.assertLessEqual(found.failed, {1}, found.text)
                self.assertRegex(found.details[2], r", \d{3,} agree")

    def test_what_is_a_timestamp_has_one_answer(self) -> None:
        when = "2026-01-05 08:00:00"

        def rows() -> Iterator[dict[str, object]]:
            for _name, value, _written in TIMESTAMPS:
                if isinstance(value, float) and not math.isfinite(value):
                    continue
                if value != "2026-01-05T08:00:11Z\0":
                    text = json.dumps({"source_ts": value, "note": "“”"}, ensure_ascii=False)
                    yield {"payload": text}
                    yield {"payload": f"{text} \t\r\n", "created_at": f"{CREATED} \t\r\n\v\f"}
                    yield {"payload": text, "created_at": when, "supervisor_processed_at": when}
                fits = not isinstance(value, int) or abs(value) < 2**63
                if fits and not isinstance(value, (list, dict)):
                    yield {"payload": "{}", "created_at": value}
            for _name, payload in WITHOUT_FIELDS[:-2]:  # the last have too many brackets
                yield {"payload": payload}

        self.fresh(*rows())
        before = self.verify()
        summary = self.fill()
        found = self.verify()
        self.assertLessEqual(found.failed, {1}, found.text)
        self.assertIn(f"{summary['filled']} should be filled", before.details[6])
        self.assertRegex(found.details[2], "^0 values differ, [1-9][0-9]+ agree, 0 not judged$")
        unusable = tuple(summary["unusable"].values())
        self.assertEqual(found.figures("payload fields there and unusable"), unusable)

    def test_json_that_is_read_differently_is_counted_apart(self) -> None:
        both = f'"source_ts": "{EVENT}", "timestamp": "{DONE}"'
        deep = "[" * 501
        for name, payload in (
            ("a name twice", f"{{{both}, {both}}}"),
            ("a name with an escape", f'{{"source_\\u0074s": "{EVENT}"}}'),
            ("NaN or Infinity", f'{{{both}, "a": NaN}}'),
            ("NaN or Infinity", f'{{{both}, "a": -Infinity}}'),
            ("a NUL", f"{{{both}}}\0"),
            ("a NUL", f'{{{both}, "a": "\\u0000"}}'),
            ("over 500 brackets", f'{{{both}, "a": "{deep}"}}'),
            ("bytes that are no UTF-8", f'{{{both}, "a": "'.encode() + b'\xff"}'),
        ):
            with self.subTest(name, payload=payload):
                filled = dict.fromkeys(COLUMNS, "2026-01-01T00:00:00Z")
                self.fresh({"payload": payload}, {"payload": payload, **filled})
                self.change("UPDATE task_audits SET payload = CAST(payload AS TEXT)")
                found = self.verify()
                self.assertEqual(found.figures("not judged: .*"), (1, 1), found.text)
                self.assertEqual((found.verdicts[2], found.verdicts[6]), ("WARN", "WARN"))

    def test_an_index_is_judged_by_what_it_holds(self) -> None:
        self.fresh({})
        for (index,) in self.query("SELECT name FROM sqlite_master WHERE name LIKE 'idx_%'"):
            self.change(f"DROP INDEX {index}")
        original = self.path.read_bytes()
        for name, indexes, verdict, missing in INDEXES:
            with self.subTest(name):
                self.path.write_bytes(original)
                self.change(indexes)
                found = self.verify()
                made = re.findall(r"(?m)^CREATE INDEX (\w+)[^;]*;$", found.text)
                self.assertEqual((found.verdicts[4], len(made)), (verdict, missing), found.text)
                for index in made:
                    self.change(f"DROP INDEX IF EXISTS {index}")
                self.change("".join(re.findall(r"(?m)^CREATE INDEX \w+[^;]*;$", found.text)))
                self.assertIn(self.verify().verdicts[4], ("PASS", "INFO"))

    def test_the_future_is_worth_a_warning(self) -> None:
        now = datetime.now(UTC).isoformat()
        for moment, verdict in (("2999-01-01T00:00:00Z", "WARN"), (now, "PASS")):
            self.fresh({"source_event_ts": EVENT, "supervisor_processed_at": moment})
            self.assertEqual(self.verify().verdicts[5], verdict)

    def test_lags_are_counted_with_their_percentiles(self) -> None:
        source = {"payload": "{}", "source_event_ts": "2026-01-05T08:00:00Z"}
        processed = [f"2026-01-05T08:{n // 60:02}:{n % 60:02}+00:00" for n in range(1, 101)]
        self.fresh(*[{**source, "supervisor_processed_at": moment} for moment in processed])
        self.assertRegex(self.verify().text, r"\n100 +50\.500 +50\.000 +95\.000 +100\.000 +0 *\n")

    def test_nothing_passes_where_nothing_is(self) -> None:
        self.fresh()
        expected = {n: "PASS" if n == 4 else "INFO" for n in range(1, 9)}
        self.assertEqual(self.verify().verdicts, expected)

    def test_a_table_of_the_needed_columns_alone_is_enough(self) -> None:
        self.change(
            "CREATE TABLE task_audits (Audit_ID INTEGER PRIMARY KEY, event_type, payload,"
            " created_at, source_event_ts, supervisor_processed_at);"
            "INSERT INTO task_audits VALUES (1, 'SUPERVISOR_ERROR', '{}', '2026-01-05 08:00',"
            " '2026-01-05 08:00', '2026-01-05 08:00'),"
            " (2, 'SUPERVISOR_ERROR', '{}', NULL, 1770112800.5, 1770112800)"
        )
        found = self.verify()
        self.assertEqual(found.failed, {4, 5})
        self.assertIn("2 unreadable", found.details[5])

    def test_it_does_no_harm_and_says_no_figures_where_it_cannot_judge(self) -> None:
        script = VERIFY.read_text(encoding="utf-8").replace(".timeout 5000", ".timeout 1")
        names = sorted(set(re.findall(r"\btemp\.(\w+)", script)))
        self.assertGreater(len(names), 15)
        table = "CREATE TABLE {0} (x); INSERT INTO {0} VALUES (1), (2), (3);"
        tables = "".join(map(table.format, names))
        self.fresh({}, extra=f"{tables} ALTER TABLE task_audits ADD COLUMN target")
        self.fill()
        sound = self.verify(script=script)
        self.assertEqual(sound.failed, set(), sound.text)
        wrong = self.folder / "wrong.db"
        self.change(tables, wrong)
        no_store = self.folder / "no.db"
        no_store.write_bytes(b"no database " * 100)
        damaged = self.folder / "damaged.db"
        content = bytearray(self.path.read_bytes())
        root = self.query("SELECT rootpage FROM sqlite_master WHERE name = 'task_audits'")[0][0]
        content[(root - 1) * 4096 : root * 4096] = bytes(4096)
        damaged.write_bytes(content)
        for path in (wrong, no_store, damaged):
            with self.subTest(path.name):
                self.assertEqual(self.verify(path, script=script).verdicts, {})
        self.assertIn("there is no table task_audits here", self.verify(wrong).errors)
        if SHELL is not None:  # Python's own timeout is five seconds

            def while_locked(path: Path, script: str) -> tuple[int, str, str]:
                self.connect().execute("BEGIN EXCLUSIVE")
                return in_the_shell(path, script)

            self.assertEqual(self.verify(script=script, by=while_locked).verdicts, {})

    def test_its_work_is_linear_whatever_the_statistics_say(self) -> None:
        statements = re.sub(r"(?m)^\..*$", "", VERIFY.read_text(encoding="utf-8"))
        steps = []
        for count in (300, 1200):
            self.fresh({})
            self.change("ANALYZE")
            store = self.connect()
            store.execute("BEGIN")
            self.insert(store, [{"payload": "{}"}] * count)
            store.execute("COMMIT")
            looks = itertools.count()
            store.set_progress_handler(lambda looks=looks: next(looks) < 0, 100)  # type: ignore[misc]
            with contextlib.suppress(sqlite3.IntegrityError):  # its verdict
                store.executescript(statements)
            steps.append(next(looks))
        self.assertLess(steps[1] / steps[0], 6)

    def test_every_name_is_in_temp_and_the_first_error_ends_it(self) -> None:
        text = VERIFY.read_text(encoding="utf-8")
        lines = [line for line in text.splitlines() if line and not line.startswith("--")]
        self.assertEqual(lines[0], ".bail on")
        self.assertNotIn("trusted_schema", text)
        for made in re.findall(r"(?m)^(?:CREATE \w+|INSERT INTO|UPDATE|DROP \w+) (\w\S+)", text):
            self.assertRegex(made, r"^temp\.\w+$")
        if SHELL is not None:  # no text in double quotes: SQLite can be told to refuse it
            self.fresh({})
            refuse = ".dbconfig dqs_ddl off\n.dbconfig dqs_dml off\n"
            found = self.verify(script=f".output {os.devnull}\n{refuse}.output\n{text}")
            self.assertEqual(len(found.verdicts), 8, found.errors)


# --- The documents ----------------------------------------------------------------------------

MANUAL = "README_BACKFILL.md"
LINES = {"README.md": 130, MANUAL: 290, "QUICKSTART.md": 60}
DOCUMENTS = [*LINES, "benchmarks/README.md"]


class DocumentsTest(StoreTest):
    """What the documents say is what the program does."""

    def read(self, name: str) -> str:
        return (HERE / name).read_text(encoding="utf-8")

    def find(self, pattern: str, document: str = MANUAL) -> str:
        """The first group of the first match in a document."""
        found = re.search(pattern, self.read(document), re.S | re.M)
        assert found is not None, pattern
        return found[1]

    def table(self, first_cell: str) -> list[list[str]]:
        """The cells of the manual's table with this first cell in its head."""
        rows = self.find(rf"^\| {re.escape(first_cell)} \|[^\n]*\n\|[ -|]+\n((?:\|[^\n]*\n)+)")
        return [row.removesuffix("|")[2:].split(" | ") for row in rows.splitlines()]

    def shown(self, document: str, title: str) -> str:
        return self.find(rf"<!-- {title} -->\n```text\n(.*?)```", document)

    def demo(self, *options: str) -> str:
        """What the tool prints on stdout for demo.db, without how long it took."""
        if not (self.folder / "demo.db").exists():
            sample_store.make_store(self.folder / "demo.db")
        with contextlib.chdir(self.folder):
            return self.without_times(run("--db-path", "demo.db", *options).out)

    @staticmethod
    def without_times(text: str) -> str:
        return re.sub(rf"(?m)^(batches|{'|'.join(TIMES)}) .*\n", "", text)

    def test_samples_are_what_the_program_prints(self) -> None:
        dry_run = self.without_times(self.shown("QUICKSTART.md", "the dry run of demo.db"))
        self.assertEqual(self.demo("--dry-run")[: len(dry_run)], dry_run)
        report = self.shown("README.md", "the tool on demo.db")
        self.assertEqual(self.demo(), self.without_times(report))
        verdicts = re.findall(r"(?m)^\d  [a-z].*  [A-Z]{4}  .*\n", self.demo("--verify"))
        sample = self.shown("README.md", "the verification of demo.db")
        self.assertEqual("".join(verdicts), sample)
        self.assertEqual(len(verdicts), 8)

    def test_the_line_of_progress_is_one_that_the_program_draws(self) -> None:
        line = self.find(r"^    (\[#+-+\] Filling .*?)$", "README.md")
        numbers = re.findall(r"(\d+)/(\d+) rows  (\d+)", line.replace(",", ""))[0]
        done, total, speed = map(int, numbers)
        drawn = backfill.format_progress("Filling", "rows", done, total, done / speed)
        self.assertEqual(drawn, line)

    def test_the_table_of_options_is_the_programs_own(self) -> None:
        with mock.patch.dict(os.environ, COLUMNS="400"):
            usage = run("--help").out
        pattern = r"(?m)^  (?:-h, )?(--\S+(?: [A-Z]+)?)\s+(.+?)(?: \(default (.*)\))?$"
        actual = {option: cells for option, *cells in re.findall(pattern, usage)}
        table = {option.strip("`"): cells for option, *cells in self.table("option")}
        self.assertEqual(list(table), list(actual))
        for option in set(table) - {"--help", "--version"}:  # those have argparse's words
            with self.subTest(option):
                self.assertEqual([cell.strip("` ") for cell in table[option]], actual[option])

    def test_the_keys_of_the_json_summary_are_documented(self) -> None:
        self.fresh({})
        cells = self.table("key")
        documented = re.findall(r"`(\w+)`", " ".join(keys for keys, _meaning in cells))
        self.assertEqual(sorted(documented), sorted(self.fill()))
        for reason in backfill.LEFT_NULL:
            self.assertIn(f"`{reason}`", str(cells))

    def test_the_candidates_are_the_programs_own(self) -> None:
        sql = self.read("verify_backfill.sql")
        scanned = re.findall(r"json_extract\(payload, '\$\.(\w+)'\)", sql)
        self.assertEqual(scanned, [*itertools.chain(*backfill.FIELDS.values())])
        for target, (column, names) in enumerate(backfill.FIELDS.items(), 1):
            for rank, name in enumerate(names, 1):
                self.assertIn(f"({target}, {rank}, '{name}')", sql)
            listed = ", ".join(f"`{name}`" for name in names)
            row = f"| `{column}` | payload {listed}, then the row's `created_at` |\n"
            self.assertIn(row, self.read(MANUAL))

    def test_each_spelling_of_rule_3_is_read_and_written_as_the_manual_says(self) -> None:
        spellings = self.table("spelling")
        self.assertGreater(len(spellings), 9)
        for spelling, value, written in spellings:
            with self.subTest(spelling):
                said = backfill.as_timestamp(json.loads(value.strip("`")))
                self.assertEqual(f"`{said}`" if said else "unusable", written.strip())

    def test_each_example_of_a_rule_comes_out_as_it_says(self) -> None:
        examples = self.table("example")
        self.assertGreater(len(examples), 2)
        created = self.find(r"`created_at` of `([^`]+)`")
        payloads = [payload.strip("`") for _rule, payload, _columns in examples]
        self.fresh(*[{"payload": payload, "created_at": created} for payload in payloads])
        self.fill()
        for (rule, _payload, expected), columns in zip(examples, self.columns(), strict=True):
            with self.subTest(rule):
                written = ", ".join(f"`{value}`" for value in columns)
                self.assertEqual(f"→ {written}", expected.strip())

    def test_links_lead_somewhere(self) -> None:
        for name in DOCUMENTS:
            for target in re.findall(r"\]\(([^)]+)\)", self.read(name)):
                with self.subTest(name, target=target):
                    file, _, anchor = target.partition("#")
                    path = (HERE / name).parent / file if file else HERE / name
                    self.assertTrue(path.exists())
                    if anchor:
                        heads = re.findall(r"(?m)^#+ (.+)$", path.read_text("utf-8").lower())
                        anchors = [re.sub(r"[^\w -]", "", head).replace(" ", "-") for head in heads]
                        self.assertIn(anchor, anchors)

    def test_no_document_is_too_long_and_lines_end_as_a_shell_needs_it(self) -> None:
        for name, most in LINES.items():
            self.assertLessEqual(self.read(name).count("\n"), most, name)
        self.assertEqual(self.read(".gitattributes"), "* text eol=lf\n")

    def test_the_readme_has_the_two_commands(self) -> None:
        sample = "python3 benchmarks/sample_store.py demo.db"
        run_it = "python3 backfill_audit_decision_fields.py --db-path demo.db"
        for command in (f"{sample} && {run_it}", "python3 test_backfill.py"):
            self.assertIn(f"\n    {command}\n", self.read("README.md"))

    def back_up(self) -> tuple[Path, list[tuple[Any, Any]]]:
        """Fill a store, with a backup; return that, and the columns before."""
        sample_store.make_store(self.path, rows=600)
        before = self.columns()
        self.fill("--backup", self.folder / "STORE.before")
        return self.folder / "STORE.before", before

    def test_the_changed_rows_are_listed_as_the_manual_shows(self) -> None:
        backup, before = self.back_up()
        sql = self.find(r"```sql\n(.*?)```").replace("STORE.before", str(backup))
        attach, query, _ = sql.split(";")
        store = self.connect()
        store.execute(attach)
        listed = [columns for _audit_id, *columns in store.execute(query)]
        pairs = zip(before, self.columns(), strict=True)
        self.assertEqual(listed, [list(now) for was, now in pairs if was != now])
        self.assertGreater(len(listed), 400)

    def test_the_undo_takes_back_what_the_run_wrote_and_nothing_else(self) -> None:
        backup, before = self.back_up()
        script, filled = self.folder / "undo.py", self.folder / "STORE.filled"
        script.write_text(self.find(r"```python\n(.*?)```"), encoding="utf-8")
        shutil.copy(backup, filled)
        run("--db-path", filled)
        at = before.index((None, None))
        self.query(f"UPDATE task_audits SET source_event_ts = '{EVENT}' WHERE audit_id = {at + 1}")
        self.insert(self.connect(), [{"source_event_ts": EVENT, "supervisor_processed_at": DONE}])
        after = self.columns()
        before[at] = (EVENT, None)
        for names, code, expected in (
            (("STORE.befor", filled), 1, after),
            ((backup, "STORE.fill"), 1, after),
            ((filled, backup), 0, after),
            ((backup, filled), 0, [*before, (EVENT, DONE)]),
        ):
            with self.subTest(names=names):
                command = [sys.executable, script, self.path, *names]
                undo = subprocess.run(command, check=False, cwd=self.folder, capture_output=True)
                self.assertEqual(undo.returncode, code, undo.stderr)
                self.assertEqual(self.columns(), expected)
        self.assertEqual(set(self.folder.glob("STORE.*")), {backup, filled})

    @unittest.skipIf(SHELL is None, "the sqlite3 shell is not installed")
    def test_the_whole_store_is_restored_and_a_mistyped_name_does_no_harm(self) -> None:
        backup, before = self.back_up()
        command = self.find(r"^    (B=STORE.before; test -s .*?)$")
        self.path.rename(self.folder / "real.db")
        (self.folder / "STORE").symlink_to("real.db")
        filled = self.columns(self.folder / "STORE")
        for name, code, expected in (("STORE.befor", 1, filled), (backup.name, 0, before)):
            typed = command.replace("STORE.before", name)
            done = subprocess.run(typed, shell=True, check=False, cwd=self.folder)
            self.assertEqual(done.returncode, code)
            self.assertEqual(self.columns(self.folder / "STORE"), expected)
        self.assertFalse((self.folder / "STORE.befor").exists())
        self.assertTrue((self.folder / "STORE").is_symlink())

    def test_a_damaged_payload_is_mended_as_the_manual_shows(self) -> None:
        self.fresh({}, {"payload": '{"reason": "cut o'}, {})
        words = self.find(r"The log says `audit_id 82: … (.*?) …`")
        self.assertIn(words, self.tool().err)
        self.query(self.find(r'sqlite3 STORE "(UPDATE .*?)"').replace("82", "2"))
        self.assertEqual(self.fill()["filled"], 1)
        self.assertEqual(self.columns()[1], (CREATED, CREATED))


# --- The runner -------------------------------------------------------------------------------

PROCESSES = 6


def run_tests(names: Sequence[str]) -> str:
    """Run some tests; return what there is to say if one fails."""
    said = io.StringIO()
    tests = unittest.defaultTestLoader.loadTestsFromNames(names, sys.modules[__name__])
    passed = unittest.TextTestRunner(said).run(tests).wasSuccessful()
    return "" if passed else said.getvalue()


def run_all() -> int:
    """Run all tests in a few processes side by side, for most of them wait most of the time."""
    begun = time.monotonic()
    suites: Any = unittest.defaultTestLoader.loadTestsFromModule(sys.modules[__name__])
    names = [test.id().removeprefix(f"{__name__}.") for suite in suites for test in suite]
    parts = [partial(run_tests, names[number::PROCESSES]) for number in range(PROCESSES)]
    said = "".join([reader.recv() for _child, reader in [fork_off(part) for part in parts]])
    result = "FAILED" if said else "OK"
    print(f"{said}{len(names)} tests in {time.monotonic() - begun:.1f} s: {result}")
    return 1 if said else 0


if __name__ == "__main__":
    if len(sys.argv) > 1:
        unittest.main()
    raise SystemExit(run_all())
