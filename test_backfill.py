#!/usr/bin/env python3
"""Tests of the backfill: python3 test_backfill.py

Nothing but Python is needed. The stores are made in a temporary folder and removed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import itertools
import json
import math
import os
import pty
import random
import re
import select
import shlex
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
import traceback
import unittest
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar, NamedTuple
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

# A shell starts a job in the background deaf to Ctrl-C; what is tested here listens.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


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
        if key not in ("dry_run", "elapsed_seconds", "rows_per_second", "started_at")
    }


IS_ROOT = os.geteuid() == 0
PROCESSES = 5
# A newer SQLite comes with a module of its own, which tells no extended codes and sets no limits.
OWN_MODULE = unittest.skipUnless(sqlite3.__name__ == "sqlite3", "needs Python's own sqlite3")
FULL = Path("/dev/full")
FIFO_WORDS = "nobody reads this pipe"


def interpreters(minors: Iterable[int]) -> dict[int, str]:
    """The Pythons 3.x of this machine, for those of `minors` that it has: on PATH, or pyenv's."""
    found: dict[int, str] = {}
    pyenv = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser()
    for minor in minors:
        on_path = shutil.which(f"python3.{minor}")
        candidates = [on_path] if on_path else []
        with contextlib.suppress(OSError):  # somebody else's home
            candidates += map(str, pyenv.glob(f"versions/3.{minor}.*/bin/python3"))
        for candidate in candidates:
            asked = subprocess.run(
                [candidate, "-c", "import sys; print(sys.version_info[1])"],
                check=False,
                capture_output=True,
                text=True,
            )
            if asked.stdout == f"{minor}\n":
                found[minor] = candidate
                break
    return found


def in_own_mounts(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a shell script that may mount what it likes, seen by nobody else; or skip the test."""
    own = ["unshare", "--mount"] if IS_ROOT else ["unshare", "--user", "--map-root-user", "--mount"]
    if shutil.which("unshare") is None:
        raise unittest.SkipTest("there is no unshare here")
    may = subprocess.run(
        [*own, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], check=False, capture_output=True, text=True
    )
    if may.returncode:
        raise unittest.SkipTest(f"this user may mount nothing here: {may.stderr.strip()}")
    return subprocess.run(
        [*own, "sh", "-ec", script, "sh", *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )


def as_nobody(*arguments: object) -> Result:
    """Run the tool in a process that may write nothing that is not its own, root or not.

    Whatever happens there, the child ends: it must not go on with the tests.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            with contextlib.suppress(PermissionError):
                os.setresuid(65534, 65534, 65534)
            try:
                result = run(*arguments)
            except Exception:  # it is what the test looks for
                result = Result(None, "", traceback.format_exc())
            os.write(writer, json.dumps(result).encode())
        finally:
            os._exit(0)
    os.close(writer)
    written = read_all(reader)
    os.close(reader)
    os.waitpid(child, 0)
    return Result(*json.loads(written))


def full_pipe() -> tuple[int, int]:
    """Return the reading and the writing end of a pipe that takes no byte more."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    for size in (4096, 1):
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(writer, b"x" * size)
    os.set_blocking(writer, True)
    return reader, writer


def read_all(descriptor: int) -> bytes:
    """Read until the last writer has gone; a terminal says EIO then."""
    written = b""
    with contextlib.suppress(OSError):
        while chunk := os.read(descriptor, 65536):
            written += chunk
    return written


def make_terminal(columns: int) -> tuple[int, int]:
    """Return the screen, which a test reads, and the terminal, which a process writes to."""
    screen, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    return screen, terminal


def is_stopped(process: subprocess.Popen[Any]) -> bool:
    """Whether a child is stopped by a signal just now."""
    state = os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT)
    return state is not None


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


# --- Extraction ---------------------------------------------------------------------------------

# What is usable as a timestamp, as a JSON value or as created_at: (id, value, written).
TIMESTAMPS: list[tuple[str, object, str | None]] = [
    # AgentOS's own form, to the letter.
    *(
        (text, text, text)
        for text in (
            "2026-01-05T08:00:11.347000Z",
            "2026-01-05 08:00:11",
            "2026-01-05T08:00",
            "2026-01-05T08:00Z",
            "2026-01-05T08:00:11.1+02:00",
            "2026-01-05T08:00:11.123456789-14:59",
            "2026-01-05 23:59:59+00:00",
            "2000-01-01T00:00:00Z",
            "2099-12-31T23:59:59.999999999Z",
            "2024-02-29T00:00:00Z",
            "2000-02-29 00:00",
            "2026-01-31T00:00:00Z",
            "2026-04-30T00:00:00Z",
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
    # Numbers.
    ("seconds", 1769940000, "2026-02-01T10:00:00.000000Z"),
    ("a fraction of a second", 1769940000.123, "2026-02-01T10:00:00.123000Z"),
    ("milliseconds", 1769940000123, "2026-02-01T10:00:00.123000Z"),
    ("milliseconds as a float", 1769940000123.0, "2026-02-01T10:00:00.123000Z"),
    ("microseconds", 1769940000123456, "2026-02-01T10:00:00.123456Z"),
    ("nanoseconds", 1769940000123456789, "2026-02-01T10:00:00.123457Z"),
    ("half a microsecond, to even", 1769940000123456500, "2026-02-01T10:00:00.123456Z"),
    ("another half, to even", 1769940000123457500, "2026-02-01T10:00:00.123458Z"),
    ("seconds as text", "1769940000", "2026-02-01T10:00:00.000000Z"),
    ("a fraction as text", "1769940000.25", "2026-02-01T10:00:00.250000Z"),
    ("text with white space", " 1769940000123\n", "2026-02-01T10:00:00.123000Z"),
    ("nine digits", 946684800, "2000-01-01T00:00:00.000000Z"),
    ("the last second", 4102444799, "2099-12-31T23:59:59.000000Z"),
    ("rounded up into 2000", 946684799.9999999, "2000-01-01T00:00:00.000000Z"),
    ("the first millisecond", 946684800000, "2000-01-01T00:00:00.000000Z"),
    ("the last millisecond", 4102444799999, "2099-12-31T23:59:59.999000Z"),
    ("the first microsecond", 946684800000000, "2000-01-01T00:00:00.000000Z"),
    ("the last microsecond", 4102444799999999, "2099-12-31T23:59:59.999999Z"),
    ("the first nanosecond", 946684799999999500, "2000-01-01T00:00:00.000000Z"),
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
            "2026-01-05T24:00:00Z", "2026-01-05T08:60:00Z", "2026-01-05T08:00:60Z",
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
    ("white space", "\v\f"),
    ("500 levels", "[" * 500 + "]" * 500),
    ("brackets in a text", json.dumps(["[" * 400 + '"' + "{" * 400])),
    ("brackets side by side", "[" + "[]," * 600 + "[]]"),
]

NOT_JSON: list[tuple[str, object]] = [
    ("a word", "oops"),
    ("single quotes", "{'timestamp': '2026-01-05T08:00:11Z'}"),
    ("cut off", '{"timestamp": "2026-01-05T08:00:11Z"'),
    ("something behind it", '{"timestamp": "2026-01-05T08:00:11Z"} x'),
    ("NUL behind it", '{"timestamp": "2026-01-05T08:00:11Z"}\0'),
    ("a byte order mark", "\ufeff{}"),
    ("a control character in a text", '{"timestamp": "\x1b"}'),
    ("nested too deep", '{"a": ' * 501 + "1" + "}" * 501),
    ("nested far too deep", "[" * 200_000 + "]" * 200_000),
    ("nested too deep, and not closed", "[" * 501),
    ("an escaped quote before the nesting", '["\\"", ' + "[" * 500 + "]" * 501),
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
                self.assertTrue(backfill.find_timestamps(payload, CREATED)[4])

    def test_the_reason_names_what_is_wrong_with_a_payload(self) -> None:
        for payload, words in (
            ("{'a': 1}", "Expecting property name enclosed in double quotes (character 1)"),
            ("{} x", "Extra data (character 2)"),
            ("\ufeff{}", "it begins with a byte-order mark"),
            ("[" * 501 + "]" * 501, "it is nested more than 500 levels deep"),
            (b"\xcc\x0f", "it is not UTF-8 text (damaged, compressed, or SQLite's binary JSON)"),
        ):
            with self.subTest(words):
                self.assertEqual(backfill.find_timestamps(payload, CREATED)[4], words)

    def test_the_bound_on_nesting_is_below_every_parsers(self) -> None:
        code = "import sys, test_backfill as t; t.backfill.extract_timestamps('[' * 10**6, None)"
        small = f"ulimit -s 1024; exec {shlex.quote(sys.executable)} -c {shlex.quote(code)}"
        subprocess.run(["sh", "-c", small], check=True, cwd=HERE)

    def test_json_in_a_blob_and_blanks_around_json_are_read(self) -> None:
        self.assertEqual(self.extract(SOUND.encode()), (EVENT, DONE))
        self.assertEqual(self.extract(f"\r\n\t {SOUND} \n"), (EVENT, DONE))

    def test_an_integer_longer_than_python_converts_is_still_json(self) -> None:
        payload = f'{{"n": {"9" * 5000}, "source_ts": "{EVENT}", "timestamp": {"9" * 5000}}}'
        self.assertEqual(self.extract(payload), (EVENT, CREATED))

    def test_the_last_of_duplicate_keys_counts(self) -> None:
        payload = f'{{"timestamp": "{EVENT}", "timestamp": "{DONE}"}}'
        self.assertEqual(self.extract(payload), (CREATED, DONE))

    def test_one_long_integer_leaves_the_others_exact(self) -> None:
        payload = f'{{"n": {"9" * 5000}, "source_ts": 1769940000123456789}}'
        self.assertEqual(self.extract(payload), ("2026-02-01T10:00:00.123457Z", CREATED))

    def test_it_says_which_field_each_value_came_from_and_which_was_passed_over(self) -> None:
        for payload, sources, passed_over, unusable in (
            ({"processed_at": DONE}, ("created_at", "processed_at"), (None, None), (None, None)),
            ({"source_event_ts": "", "source_ts": "PST", "event_timestamp": DONE,
              "task_created_at": 7, "timestamp": None},
             ("event_timestamp", "created_at"), ("source_event_ts", None), ('""', None)),
        ):  # fmt: skip
            _, *found, malformed = backfill.find_timestamps(json.dumps(payload), CREATED)
            self.assertEqual(found, [sources, passed_over, unusable])
            self.assertIsNone(malformed)
        self.assertEqual(backfill.find_timestamps("{}", None)[1], (None, None))

    def test_whatever_it_finds_agentos_can_read_as_the_same_moment(self) -> None:
        chance = random.Random(3)
        usable = 0
        for _ in range(8000):
            text = "2026-01-05T08:00:11.347Z"
            for _edit in range(chance.randint(0, 3)):
                at = chance.randrange(len(text) + 1)
                text = (
                    text[:at] + chance.choice("Z+-:. T0129W,z") + text[at + chance.randint(0, 1) :]
                )
            value, _ = self.extract(json.dumps({"source_ts": text}), None)
            if value is not None:
                usable += 1
                moment = read_as_agentos(value)
                if not re.search("[zZ] |[,tz]| [Z+-]", text.strip()):
                    self.assertEqual(moment, read_as_agentos(text.strip()))
        self.assertGreater(usable, 1600)


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
        ("2026-01-05 00:00", None),
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
        "what readers can read beside it counts, though we would not write it",
        (EVENT, None),
        (None, "2026-01-05\N{EM DASH}08:00"),
        ("2026-01-05T08:00:01", "2026-01-05\N{EM DASH}08:00"),
    ),
    (
        "ours without offset becomes isoformat, to the microsecond",
        ("2026-01-05 08:00:01.123456789", DONE),
        (None, None),
        ("2026-01-05T08:00:01.123456Z", DONE),
    ),
    (
        "an offset beside Z is no difference",
        ("2026-01-05 08:00:01.5-00:00", DONE),
        (None, None),
        ("2026-01-05 08:00:01.5-00:00", DONE),
    ),
    (
        "beside one that stands and is no timestamp of rule 3, by what readers read",
        (None, "2026-01-05 08:00:01"),
        ("1999-01-05Z", None),
        ("1999-01-05Z", "2026-01-05 08:00:01"),
    ),
    (
        "hour 24 stands, which AgentOS's Python does not read, whatever ours does",
        (None, "2026-01-05 08:00:01"),
        ("2026-01-05T24:00:00Z", None),
        ("2026-01-05T24:00:00Z", "2026-01-05 08:00:01"),
    ),
    (
        "midnight of the 24th stands, which it reads",
        (None, "2026-01-05 08:00:01"),
        ("2026-01-24T00:00:00Z", None),
        ("2026-01-24T00:00:00Z", "2026-01-05T08:00:01Z"),
    ),
    (
        "a dot without digits stands, which it reads",
        (None, "2026-01-05 08:00:01"),
        ("2026-01-05T08:00:00.Z", None),
        ("2026-01-05T08:00:00.Z", "2026-01-05T08:00:01Z"),
    ),
    (
        "an offset that stands is read with its Z",
        (None, "2026-01-05 08:00:01"),
        ("1999-01-05T00:00Z", None),
        ("1999-01-05T00:00Z", "2026-01-05T08:00:01Z"),
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
        forms = ["2026-01-05 08:00:00", "2026-01-05T08:00:00Z", 1769940000, None,
                 "2026-01-05T08:00:00-03:00", "2026-01-05T08:00"]  # fmt: skip
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

    def test_beside_what_is_no_text_a_row_is_left_alone(self) -> None:
        for stands in (b"2026-01-05T08:00:01Z", "CAST(x'32ff' AS TEXT)"):
            with self.subTest(stands):
                self.path.unlink(missing_ok=True)
                self.make([{"supervisor_processed_at": "x", "payload": SOUND}, {}])
                literal = stands if isinstance(stands, str) else f"x'{stands.hex()}'"
                self.query(
                    f"UPDATE task_audits SET supervisor_processed_at = {literal} WHERE audit_id = 1"
                )
                foretold = self.fill("--dry-run")
                result = self.tool("--json")
                self.assertEqual(figures(result.summary), figures(foretold))
                self.assertEqual(
                    (result.summary["filled"], result.summary["left_null"]["unreadable"]), (1, 1)
                )
                self.assertRegex(
                    result.err, "audit_id 1: source_event_ts NULL: what stands .* no text: a BLOB"
                )
                self.assertEqual(self.query("SELECT source_event_ts FROM task_audits")[0], (None,))


# --- Runs ---------------------------------------------------------------------------------------


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

        def watch(store: sqlite3.Connection, batch: Any, *rest: Any) -> None:
            write(store, batch, *rest)
            commits.append((len(batch), sum(None not in pair for pair in self.columns())))

        with mock.patch.object(backfill, "backfill_batch", watch):
            self.fill("--batch-size", 4)
        self.assertEqual(commits, [(4, 4), (4, 8), (2, 10)])

    def test_where_payloads_are_large_reads_and_batches_are_shorter(self) -> None:
        large = json.dumps({"source_ts": EVENT, "timestamp": DONE, "filler": "x" * 1000})
        self.make([{"payload": large}] * 25)
        sizes = []
        read_page = backfill.read_page

        def watch(*arguments: Any) -> backfill.Stretch:
            stretch = read_page(*arguments)
            sizes.append(len(stretch.plans))
            return stretch

        with (
            mock.patch.object(backfill, "PAGE_BYTES", 3 * len(large)),
            mock.patch.object(backfill, "BATCH_BYTES", 10 * len(large)),
            mock.patch.object(backfill, "read_page", watch),
        ):
            summary = self.fill()
        self.assertEqual(sizes, [3] * 8 + [1])
        self.assertEqual((summary["filled"], summary["batches"], summary["gone"]), (25, 3, 0))

    def test_audit_ids_may_be_negative_sparse_and_extreme(self) -> None:
        ids = [-(2**63), -5, -1, 0, 1, 7, 10**6, 2**40, 2**63 - 1]
        self.make({"audit_id": audit_id} for audit_id in ids)
        for size in (1, 2, 1000):
            with self.subTest(size):
                path = self.folder / f"{size}.db"
                self.make(({"audit_id": audit_id} for audit_id in ids), path=path)
                with mock.patch.object(backfill, "PAGE_BYTES", 10**6 if size > 1 else 1):
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
        self.assertEqual(self.columns(), [("2026-02-01T10:00:00.123000Z",) * 2])

    def test_rows_that_come_while_it_runs_are_left_to_the_next_run(self) -> None:
        self.make([{}] * 5)
        other = self.connect()
        survey = backfill.survey

        def survey_and_insert(*arguments: Any) -> list[backfill.Page]:
            result = survey(*arguments)
            self.insert(other, [{}] * 3)
            return result

        with mock.patch.object(backfill, "survey", survey_and_insert):
            summary = self.fill("--batch-size", 1)
        self.assertEqual((summary["to_fill"], summary["filled"]), (5, 5))
        self.assertEqual(self.columns()[5:], [(None, None)] * 3)


class OtherWriterTest(StoreTest):
    """What another process does between our reading of a row and our writing of it."""

    def fill_after(self, *statements: str, code: int = 0) -> dict[str, Any]:
        """Run the tool; before its first batch is written, another connection has its way."""
        other = self.connect()
        write = backfill.backfill_batch
        todo = list(statements)

        def others_first(*arguments: Any) -> None:
            while todo:
                other.execute(todo.pop(0))
            write(*arguments)

        with mock.patch.object(backfill, "backfill_batch", others_first):
            result = self.tool("--json", "--batch-size", 3)
        self.assertEqual(result.code, code, result.err)
        summary = result.summary
        reached = summary["filled"] + sum(summary["left_null"].values()) + summary["gone"]
        self.assertEqual(reached, summary["to_fill"])
        return summary

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

    def test_what_it_corrects_is_filled_as_corrected_also_in_a_later_batch(self) -> None:
        for mode in ("delete", "wal"):
            with self.subTest(mode):
                self.path.unlink(missing_ok=True)
                self.make([{}] * 7, journal_mode=mode)
                later = json.dumps({"source_ts": CREATED, "processed_at": CREATED})
                summary = self.fill_after(
                    f"UPDATE task_audits SET payload = '{later}' WHERE audit_id IN (2, 5)",
                    "UPDATE task_audits SET payload = 'oops' WHERE audit_id IN (3, 6)",
                    "UPDATE task_audits SET payload = '{}', created_at = 'x' WHERE audit_id = 7",
                )
                self.assertEqual(
                    self.columns(),
                    [(EVENT, DONE), (CREATED, CREATED), (None, None), (EVENT, DONE),
                     (CREATED, CREATED), (None, None), (None, None)],
                )  # fmt: skip
                self.assertEqual(summary["left_null"]["malformed_json"], 2)
                self.assertEqual(summary["left_null"]["no_timestamp"], 1)

    def test_a_payload_that_it_mends_is_read_again_with_the_batch(self) -> None:
        self.make([{}, {"payload": "oops"}, {"payload": "oops"}])
        summary = self.fill_after(
            f"UPDATE task_audits SET payload = '{SOUND}' WHERE audit_id = 2",
        )
        self.assertEqual(self.columns(), [(EVENT, DONE), (EVENT, DONE), (None, None)])
        self.assertEqual((summary["filled"], summary["left_null"]["malformed_json"]), (2, 1))

    def test_rows_are_compared_with_what_was_read_unless_nobody_can_have_changed_them(self) -> None:
        trigger = "CREATE TRIGGER t AFTER UPDATE ON task_audits BEGIN SELECT 1; END"
        theirs = "UPDATE task_audits SET task_id = 'x' WHERE audit_id = 9"
        for mode in ("delete", "wal"):
            for before, meanwhile, expected in (
                ("", (), [True] * 4),
                (trigger, (), [False] * 4),
                # In WAL mode two pages were read ahead.
                ("", (theirs,), [False, mode != "wal", mode != "wal", True]),
                ("", (trigger,), [False] * 4),
            ):
                with self.subTest(mode, before=before, meanwhile=meanwhile):
                    self.path.unlink(missing_ok=True)
                    self.make([{}] * 12, journal_mode=mode, extra=before)
                    look = backfill.Courtesy.unchanged
                    seen: list[bool] = []

                    def watch(*arguments: Any) -> bool:
                        seen.append(look(*arguments))  # noqa: B023
                        return seen[-1]  # noqa: B023

                    with (
                        mock.patch.object(backfill.Courtesy, "unchanged", watch),
                        mock.patch.object(backfill, "PAGE_ROWS", 3),
                    ):
                        self.fill_after(*meanwhile)
                    self.assertEqual(seen, expected)
                    self.assertEqual(self.columns(), [(EVENT, DONE)] * 12)

    def test_a_batch_of_rows_that_were_read_at_two_moments_is_compared(self) -> None:
        large = json.dumps({"source_ts": EVENT, "timestamp": DONE, "filler": "x" * 1000})
        later = json.dumps({"source_ts": CREATED, "processed_at": CREATED, "filler": "x" * 1000})
        theirs = [
            f"UPDATE task_audits SET payload = '{later}' WHERE audit_id = 11",
            "DELETE FROM task_audits WHERE audit_id = 12",
            "UPDATE task_audits SET event_type = 'OTHER' WHERE audit_id = 13",
            "UPDATE task_audits SET source_event_ts = '2026-01-01 00:00:00' WHERE audit_id = 14",
        ]
        for mode in ("wal", "delete"):
            with self.subTest(mode):
                self.path.unlink(missing_ok=True)
                self.make([{"payload": large}] * 20, journal_mode=mode)
                # Of the first page only a part is read at first; the second is read ahead.
                with (
                    mock.patch.object(backfill, "PAGE_ROWS", 10),
                    mock.patch.object(backfill, "PAGE_BYTES", 3 * len(large)),
                ):
                    summary = self.fill_after(*theirs)
                self.assertEqual((summary["filled"], summary["gone"]), (18, 2))
                self.assertEqual(
                    self.columns()[10:14],
                    [(CREATED, CREATED), (None, None),
                     ("2026-01-01 00:00:00", DONE.replace("Z", "")), (EVENT, DONE)],
                )  # fmt: skip

    def test_what_a_trigger_made_meanwhile_changes_is_filled_as_changed(self) -> None:
        self.make([{}] * 6)
        with mock.patch.object(backfill, "PAGE_ROWS", 3):
            self.fill_after(
                """CREATE TRIGGER t AFTER UPDATE ON task_audits WHEN new.audit_id = 4
                   BEGIN UPDATE task_audits SET payload = '{}' WHERE audit_id = 5; END"""
            )
        self.assertEqual(self.columns()[3:], [(EVENT, DONE), (CREATED, CREATED), (EVENT, DONE)])

    def test_a_look_at_the_table_that_a_lock_cuts_short_is_taken_again(self) -> None:
        self.make([{}] * 6)
        triggers_of = backfill.triggers_of
        busy = sqlite3.OperationalError("database is locked")
        busy.sqlite_errorcode = sqlite3.SQLITE_BUSY
        looks: list[object] = []

        def cut_short(store: sqlite3.Connection) -> list[str]:
            looks.append(store)
            if len(looks) == 2:  # after the one at the start
                raise busy
            return triggers_of(store)

        with (
            mock.patch.object(backfill, "PAGE_ROWS", 3),
            mock.patch.object(backfill, "LOCK_PAUSE", 0.0),
            mock.patch.object(backfill, "triggers_of", cut_short),
        ):
            self.fill_after(
                """CREATE TRIGGER t AFTER UPDATE ON task_audits WHEN new.audit_id = 4
                   BEGIN UPDATE task_audits SET payload = '{}' WHERE audit_id = 5; END"""
            )
        self.assertEqual(self.columns()[4], (CREATED, CREATED))

    def test_no_row_is_deleted_where_a_migration_makes_a_conflict_clause(self) -> None:
        for action in ("REPLACE", "IGNORE"):
            with self.subTest(action):
                self.path.unlink(missing_ok=True)
                self.make([{}] * 6)
                with mock.patch.object(backfill, "PAGE_ROWS", 3):
                    summary = self.fill_after(
                        "BEGIN",
                        "CREATE TABLE rebuilt (audit_id INTEGER PRIMARY KEY, event_type, payload,"
                        f" created_at, source_event_ts UNIQUE ON CONFLICT {action},"
                        " supervisor_processed_at)",
                        f"INSERT INTO rebuilt SELECT {backfill.ROW} FROM task_audits",
                        "DROP TABLE task_audits",
                        "ALTER TABLE rebuilt RENAME TO task_audits",
                        "COMMIT",
                    )
                self.assertEqual(self.columns(), [(EVENT, DONE)] + [(None, None)] * 5)
                self.assertEqual((summary["filled"], summary["left_null"]["refused"]), (1, 5))

    def test_a_batch_in_which_nothing_could_be_written_is_looked_at_again_beside_others(
        self,
    ) -> None:
        self.make([{"payload": MALFORMED}] * 3)
        summary = self.fill_after(
            "DELETE FROM task_audits WHERE audit_id = 1",
            f"UPDATE task_audits SET payload = '{SOUND}' WHERE audit_id = 2",
        )
        self.assertEqual(self.columns(), [(EVENT, DONE), (None, None)])
        self.assertEqual((summary["filled"], summary["gone"]), (1, 1))
        self.assertEqual(summary["left_null"]["malformed_json"], 1)

    def test_a_change_in_letters_alone_is_one_whatever_the_collation(self) -> None:
        self.query(
            "CREATE TABLE task_audits (audit_id INTEGER PRIMARY KEY, task_id, event_type, payload"
            " TEXT COLLATE NOCASE, created_at, source_event_ts, supervisor_processed_at)"
        )
        with contextlib.closing(sqlite3.connect(self.path)) as store, store:
            self.insert(store, [{"payload": f'{{"SOURCE_TS": "{EVENT}"}}'}])
        self.fill_after("UPDATE task_audits SET payload = lower(payload)")
        self.assertEqual(self.columns(), [(EVENT, CREATED)])  # as planned it was created_at twice

    def test_a_row_with_text_that_is_not_utf_8_is_filled_like_any_other(self) -> None:
        for column in ("created_at", "event_type", "task_id"):
            with self.subTest(column):
                self.path.unlink(missing_ok=True)
                self.make([{}] * 3)
                self.query(
                    f"UPDATE task_audits SET {column} = CAST(x'53555045525649534F52ff' AS TEXT)"
                    " WHERE audit_id = 2"
                )
                self.assertEqual(self.fill()["filled"], 3)
                self.assertEqual(self.columns(), [(EVENT, DONE)] * 3)

    def test_a_schema_and_a_version_that_are_not_utf_8_are_no_hindrance(self) -> None:
        self.make([{}])
        with contextlib.closing(sqlite3.connect(self.path)) as store, store:
            store.executescript(
                """INSERT INTO schema_version (version) VALUES (CAST(x'ff' AS TEXT));
                PRAGMA writable_schema = ON;
                UPDATE sqlite_master SET sql = CAST(CAST(sql || ' --' AS BLOB) || x'ff' AS TEXT)
                 WHERE name = 'task_audits';"""
            )
        self.assertEqual(self.fill()["filled"], 1)

    def test_what_it_corrects_while_we_wait_for_the_lock_counts_too(self) -> None:
        self.make([{}])
        other = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
        self.addCleanup(other.close)
        write = backfill.backfill_batch

        def lock_first(*arguments: Any) -> None:
            other.execute("BEGIN IMMEDIATE")
            other.execute("UPDATE task_audits SET payload = '{}'")
            timer = threading.Timer(0.3, other.execute, ["COMMIT"])
            timer.start()
            write(*arguments)
            timer.join()

        with mock.patch.object(backfill, "backfill_batch", lock_first):
            self.fill()
        self.assertEqual(self.columns(), [(CREATED, CREATED)])

    def test_rows_that_are_open_no_more_are_gone(self) -> None:
        self.make([{}] * 8)
        summary = self.fill_after(
            "UPDATE task_audits SET source_event_ts = 'x', supervisor_processed_at = 'y'"
            " WHERE audit_id = 1",
            "DELETE FROM task_audits WHERE audit_id = 2",
            "UPDATE task_audits SET event_type = 'TASK', source_event_ts = 'x' WHERE audit_id = 3",
        )
        self.assertEqual(self.columns(), [("x", "y"), ("x", None), *[(EVENT, DONE)] * 5])
        self.assertEqual((summary["to_fill"], summary["filled"], summary["gone"]), (8, 5, 3))
        self.assertEqual(summary["supervisor_rows"], 8)
        self.assertEqual(summary["coverage_after_pct"], 100.0)
        self.assertEqual(sum(summary["sources"]["source_event_ts"].values()), 5)

    def test_rows_that_go_before_they_are_read_are_gone_too(self) -> None:
        self.make([{}] * 5)
        other = self.connect()
        survey = backfill.survey

        def survey_and_delete(*arguments: Any) -> list[backfill.Page]:
            result = survey(*arguments)
            other.execute("DELETE FROM task_audits WHERE audit_id > 3")
            return result

        with mock.patch.object(backfill, "survey", survey_and_delete):
            summary = self.fill()
        self.assertEqual((summary["to_fill"], summary["filled"], summary["gone"]), (5, 3, 2))
        self.assertEqual(summary["coverage_after_pct"], 100.0)

    def test_rows_that_appear_among_those_to_fill_are_counted_at_every_moment(self) -> None:
        self.make([{}] * 2 + [{"source_event_ts": "x", "supervisor_processed_at": "y"}] * 2)
        other = self.connect()
        survey, write = backfill.survey, backfill.backfill_batch
        batches: list[object] = []

        def survey_and_empty(*arguments: Any) -> list[backfill.Page]:
            result = survey(*arguments)
            other.execute("UPDATE task_audits SET source_event_ts = NULL")
            return result

        def stop(*arguments: Any) -> None:
            write(*arguments)
            batches.append(arguments)
            if len(batches) == 3:
                raise backfill.Interrupted

        with (
            mock.patch.object(backfill, "survey", survey_and_empty),
            mock.patch.object(backfill, "backfill_batch", stop),
        ):
            summary = self.tool("--json", "--batch-size", 1).summary
        self.assertEqual(summary["coverage_before_pct"], 50.0)
        figures = [summary[name] for name in ("to_fill", "filled", "gone", "coverage_after_pct")]
        self.assertEqual(figures[:3], [4, 3, 0])
        self.assertLessEqual(figures[3], 100.0)
        with mock.patch.object(backfill, "survey", survey_and_empty):
            summary = self.fill()
        self.assertEqual([summary[name] for name in ("to_fill", "filled", "gone")], [4, 4, 0])

    def test_what_a_trigger_does_to_a_later_row_of_the_batch_stays(self) -> None:
        self.make(
            [{}] * 3,
            extra="""CREATE TRIGGER ahead AFTER UPDATE ON task_audits WHEN new.audit_id = 1
                     BEGIN UPDATE task_audits SET source_event_ts = 'theirs' WHERE audit_id = 3;
                     END;""",
        )
        summary = self.fill()
        self.assertEqual(self.columns(), [(EVENT, DONE), (EVENT, DONE), ("theirs", DONE)])
        self.assertEqual(sum(summary["sources"]["source_event_ts"].values()), 2)


class TruthTest(StoreTest):
    """What is said at the end is what stands in the store then."""

    MIGRATE = """
        ALTER TABLE task_audits RENAME TO old;
        CREATE TABLE task_audits (audit_id INTEGER PRIMARY KEY, event_type TEXT, payload TEXT,
            created_at, source_event_ts TEXT, supervisor_processed_at TEXT);
        INSERT INTO task_audits
            SELECT audit_id, event_type, payload, created_at, NULL, NULL FROM old;
        DROP TABLE old;
    """

    def fill_beside(self, script: str, *options: object, after: int = 2) -> Result:
        """Run the tool; behind its batch number `after` another connection runs a script."""
        other = self.connect()
        write = backfill.backfill_batch
        batches: list[object] = []

        def others_then(*arguments: Any) -> None:
            write(*arguments)
            batches.append(arguments)
            if len(batches) == after:
                other.executescript(script)

        with mock.patch.object(backfill, "backfill_batch", others_then):
            return self.tool("--json", "--batch-size", 10, *options)

    def check_undone(self, result: Result, undone: int, words: str) -> None:
        self.assertEqual(result.code, 1, result.err)
        self.assertRegex(
            result.err, rf"(?m)^error: {undone:,} rows? ha(s|ve) a NULL again .*{words}"
        )
        self.assertRegex(result.err, "run again")
        summary = result.summary
        self.assertEqual((summary["status"], summary["undone"]), ("failed", undone))
        self.assertIn(words, summary["error"])
        open_rows = sum(None in pair for pair in self.columns())
        coverage = 100 * (len(self.columns()) - open_rows) / len(self.columns())
        self.assertAlmostEqual(summary["coverage_after_pct"], coverage, places=3)

    def test_a_migration_that_empties_the_columns_is_noticed(self) -> None:
        self.make([{}] * 25 + [{"source_event_ts": EVENT, "supervisor_processed_at": DONE}] * 3000)
        result = self.fill_beside(self.MIGRATE)
        self.check_undone(result, 3020, "a migration set them back")
        self.assertEqual(self.fill()["filled"], 3020)

    def test_another_process_that_sets_values_back_is_noticed(self) -> None:
        self.make([{}] * 25 + [{"payload": MALFORMED}] * 3)
        result = self.fill_beside(
            "UPDATE task_audits SET source_event_ts = NULL WHERE audit_id IN (2, 4)"
        )
        self.check_undone(result, 2, "another process set them back")

    def test_a_trigger_that_puts_the_old_values_back_is_named(self) -> None:
        self.make(
            [{}] * 3,
            extra="""CREATE TRIGGER keep_old AFTER UPDATE OF source_event_ts ON task_audits
                     WHEN new.audit_id > 1 BEGIN
                     UPDATE task_audits SET source_event_ts = old.source_event_ts
                      WHERE audit_id = new.audit_id; END;""",
        )
        result = self.tool("--json")
        self.check_undone(result, 2, "keep_old")
        self.assertEqual(result.summary["filled"], 3)

    def test_rows_deleted_after_they_were_filled_are_no_part_of_the_coverage(self) -> None:
        self.make([{}] * 30 + [{"payload": MALFORMED}])
        result = self.fill_beside("DELETE FROM task_audits WHERE audit_id <= 15")
        self.assertEqual(result.code, 0, result.err)
        self.assertEqual((result.summary["filled"], result.summary["undone"]), (30, 0))
        self.assertEqual(result.summary["coverage_after_pct"], backfill.percent(15, 16))

    def test_only_what_may_have_changed_is_counted_again(self) -> None:
        page = backfill.PAGE_ROWS
        filled = {"source_event_ts": EVENT, "supervisor_processed_at": DONE}
        trigger = """CREATE TRIGGER t AFTER UPDATE ON task_audits BEGIN SELECT 1; END;"""
        for name, extra, script, recounted in (
            ("alone", "", "", 0),
            ("another process", "", "UPDATE schema_version SET applied_at = 1", 1),
            ("the schema changed", "", "CREATE TABLE more (x)", 3),
            ("alone, with a trigger", trigger, "", 3),
        ):
            with self.subTest(name):
                self.path.unlink(missing_ok=True)
                self.make([filled] * page + [{}] + [filled] * (2 * page - 1), extra=extra)
                counted = []
                count = backfill.count_pages

                def counting(*arguments: Any) -> Iterator[backfill.Page]:
                    for page in count(*arguments):  # noqa: B023
                        counted.append(page)  # noqa: B023
                        yield page

                with mock.patch.object(backfill, "count_pages", counting):
                    result = self.fill_beside(script, after=1)
                self.assertEqual(result.code, 0, result.err)
                self.assertEqual(len(counted), 3 + recounted)
                self.assertEqual(result.summary["coverage_after_pct"], 100.0)

    def test_a_dry_run_that_breaks_off_says_that_nothing_was_written(self) -> None:
        self.make([{}] * 30)
        read_page = backfill.read_page
        pages: list[object] = []

        def fail(*arguments: Any) -> Any:
            pages.append(arguments)
            if len(pages) == 2:
                raise sqlite3.OperationalError("disk I/O error")
            return read_page(*arguments)

        with (
            mock.patch.object(backfill, "PAGE_ROWS", 10),
            mock.patch.object(backfill, "read_page", fail),
        ):
            result = self.tool("--dry-run", "--batch-size", 5)
        self.assertEqual(result.code, 1)
        self.assertRegex(result.err, "(?m)^error: .*; nothing was written$")
        self.assertRegex(result.out.splitlines()[-1], "^failed: .*; nothing was written$")
        self.assertNotIn("so far", result.err + result.out)
        self.assertRegex(result.out, r"(?m)^    not reached +20$")


class PlanTest(StoreTest):
    """Every statement is a search by audit_id, whatever indexes and statistics there are."""

    INDEXES = (
        "",
        "CREATE INDEX i ON task_audits (source_event_ts);",
        "CREATE INDEX i ON task_audits (source_event_ts) WHERE source_event_ts IS NULL;",
        "CREATE INDEX i ON task_audits (supervisor_processed_at, source_event_ts, audit_id);",
        "CREATE INDEX i ON task_audits (event_type) WHERE source_event_ts IS NULL;",
    )

    def set_statistics(self, rows: int) -> None:
        self.connect().executescript(
            f"""ANALYZE; DELETE FROM sqlite_stat1 WHERE tbl <> 'task_audits';
            UPDATE sqlite_stat1 SET stat = '{rows} 1 1 1';"""
        )

    def plans(self) -> dict[str, list[str]]:
        with contextlib.closing(self.connect()) as store:
            update, many = backfill.choose_updates(store, 1000)
            page = {"first": 0, "last": 0}
            plans = {} if many is None else {"many": backfill.plan_of(store, many, [None] * 3000)}
            return plans | {
                "count": backfill.plan_of(store, backfill.COUNT_PAGE, (0, 0, 0)),
                "page": backfill.plan_of(store, backfill.READ_PAGE, page),
                "row": backfill.plan_of(store, backfill.READ_ROW, (0,)),
                "fill as planned": backfill.plan_of(
                    store, update + backfill.IF_UNCHANGED, [None] * 8
                ),
                "fill as read": backfill.plan_of(store, update, [None] * 3),
            }

    def test_plans(self) -> None:
        for index in self.INDEXES:
            for rows in (None, 10**6, 3, 2, 1):
                with self.subTest(index, rows=rows):
                    self.path.unlink(missing_ok=True)
                    filled = {"source_event_ts": EVENT, "supervisor_processed_at": DONE}
                    self.make([*[{}] * 5, filled], extra=index)
                    if rows is not None:
                        self.set_statistics(rows)
                    plans = self.plans()
                    if rows != 2:  # there it depends on SQLite's version
                        self.assertEqual("many" in plans, rows != 1)
                    for name, steps in plans.items():
                        if name in ("count", "page") and rows in (1, 2):
                            continue  # then it scans, and is refused
                        on_table = [step for step in steps if "task_audits" in step]
                        self.assertEqual(len(on_table), 1, name)
                        self.assertRegex(
                            on_table[0], r"^SEARCH.* USING INTEGER PRIMARY KEY \(rowid[=>]\?\)"
                        )
                        self.assertNotRegex(" ".join(steps), "TEMP B-TREE")

    def test_a_page_cache_larger_than_sqlites_is_asked_for(self) -> None:
        self.make([])
        patience = backfill.Patience(1)
        for read_only in (False, True):
            with contextlib.closing(
                backfill.open_store(self.path, patience, read_only=read_only)
            ) as store:
                self.assertEqual(backfill.fetch(store, "PRAGMA cache_size"), (-8000,))

    def test_bounds_are_found_at_both_ends_of_the_table(self) -> None:
        self.make([{}] * 5, extra=self.INDEXES[1])
        with contextlib.closing(self.connect()) as store:
            steps = backfill.plan_of(store, backfill.SELECT_BOUNDS, ())
        self.assertNotRegex(" ".join(steps), "INDEX|B-TREE")

    def test_statistics_of_an_empty_table_are_refused_with_the_cure_where_they_matter(self) -> None:
        rows = 2 * backfill.PAGE_ROWS + 1
        filled = {"source_event_ts": EVENT, "supervisor_processed_at": DONE}
        self.make([*[{}] * rows, filled])
        self.set_statistics(1)
        for options in ([], ["--dry-run"]):
            result = self.tool("--json", *options)
            self.assertEqual(result.code, 1)
            self.assertRegex(result.err, "error: .*PRAGMA analysis_limit=1000; ANALYZE task_audits")
        self.assertEqual(set(self.columns()), {(None, None), (EVENT, DONE)})
        self.query("ANALYZE task_audits")
        self.assertEqual(self.fill()["filled"], rows)

    def test_a_table_of_one_page_is_filled_whatever_its_statistics(self) -> None:
        self.make([*[{}] * 5, {"source_event_ts": EVENT, "supervisor_processed_at": DONE}])
        self.set_statistics(1)
        self.assertRegex(self.plans()["page"][0], "^SCAN")
        self.assertEqual(self.fill()["filled"], 5)


# --- The command line ---------------------------------------------------------------------------


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
        with mock.patch.object(sys, "argv", ["/usr/local/bin/fill-it"]):
            self.assertEqual(run("--version").out, f"fill-it {backfill.__version__}\n")
            self.assertTrue(run("--help").out.startswith("usage: fill-it "))
        result = run("--help")
        self.assertEqual((result.code, result.err), (0, ""))
        for option in ("--db-path", "--batch-size", "--dry-run", "--backup", "--busy-timeout",
                       "--pause", "--log-file", "--json", "--quiet", "--version"):  # fmt: skip
            self.assertIn(option, result.out)


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
            ("INTEGER PRIMARY KEY DESC", ""),
            ("INTEGER", ", PRIMARY KEY (audit_id, event_type)"),
            ("INTEGER PRIMARY KEY", "WITHOUT ROWID"),
        ):
            with self.subTest(key, constraint=constraint):
                self.path.unlink(missing_ok=True)
                self.query(
                    f"CREATE TABLE task_audits (audit_id {key}, event_type, payload, created_at,"
                    f" source_event_ts, supervisor_processed_at{constraint}\n)"
                    if "WITHOUT" not in constraint
                    else f"CREATE TABLE task_audits (audit_id {key}, event_type, payload,"
                    " created_at, source_event_ts, supervisor_processed_at) WITHOUT ROWID"
                )
                self.query("INSERT INTO task_audits VALUES (7, 'SUPERVISOR_ERROR', '{}', 1, 2, 3)")
                self.refuse("audit_id is not the INTEGER PRIMARY KEY")

    def test_a_view_or_a_virtual_table_by_that_name(self) -> None:
        columns = ("audit_id", "event_type", "payload", "created_at", *COLUMNS)
        self.query("CREATE VIEW task_audits AS SELECT " + ", ".join(f"1 AS {c}" for c in columns))
        self.refuse("no table task_audits")
        self.query("DROP VIEW task_audits")
        self.query(f"CREATE VIRTUAL TABLE task_audits USING fts5({', '.join(columns)})")
        self.refuse("is not the INTEGER PRIMARY KEY of an ordinary table")

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
            (["0.20.0-v20"], False),
            (["20"], False),
            (["v9", " v20 "], False),
            (["49"], True),
            (["v66"], True),
            (["0.9.0", "0.99.0-v99"], True),
            (["9" * 5000], True),
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

    def test_a_wait_for_a_lock_is_shown_with_the_time_that_is_left(self) -> None:
        for live, width, waits, shown in (
            (False, None, (0, 6, 7), "Filling  waiting for another process's lock, 0:24 more\n"),
            (True, 80, (0.05, 6), "\r\x1b[KFilling  waiting for another process's lock, 0:24 more"),
            (True, 40, (0.05, 6), "\r\x1b[Kwaiting, 0:24 more"),
        ):
            with self.subTest(live=live, width=width):
                stream, patience, clock = io.StringIO(), backfill.Patience(30), [0.0]
                with (
                    mock.patch.object(patience, "now", lambda clock=clock: clock[0]),
                    mock.patch.object(stream, "isatty", lambda live=live: live),
                    mock.patch.dict(os.environ, {"TERM": "xterm"}),
                    mock.patch.object(backfill.Screen, "_width", lambda _, width=width: width),
                ):
                    screen = backfill.Screen(stream, patience, quiet=False)
                    screen.start("Filling", "rows")
                    for clock[0] in waits:
                        screen.waiting(30 - clock[0])
                self.assertEqual(stream.getvalue(), shown)

    def test_the_json_summary_has_the_documented_keys(self) -> None:
        self.make([{}])
        for options in ([], ["--dry-run"]):
            summary = self.fill(*options)
            self.assertEqual(
                list(summary),
                ["status", "db_path", "dry_run", "batch_size", "batches", "supervisor_rows",
                 "already_filled", "to_fill", "filled", "left_null", "gone", "undone", "sources",
                 "unusable", "coverage_before_pct", "coverage_after_pct", "elapsed_seconds",
                 "rows_per_second", "version", "started_at", "error", "backup"],
            )  # fmt: skip
            self.assertEqual(
                list(summary["left_null"]),
                ["malformed_json", "no_timestamp", "unreadable", "refused"],
            )
            self.assertEqual(list(summary["unusable"]), list(COLUMNS))
            self.assertEqual((summary["version"], summary["error"]), (backfill.__version__, None))
            self.assertRegex(summary["started_at"], r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")
            self.assertEqual(
                {column: list(names) for column, names in summary["sources"].items()},
                {column: [*names, "created_at"] for column, names in backfill.FIELDS.items()},
            )
            self.assertEqual(summary["dry_run"], bool(options))

    def test_the_report_shows_the_same_facts_and_leaves_out_what_is_zero(self) -> None:
        sample_store.make_store(self.path, rows=1000)
        report = self.tool("--dry-run").out
        summary = self.fill("--dry-run")
        for label, figure in (
            ("Supervisor rows", summary["supervisor_rows"]),
            ("already filled", summary["already_filled"]),
            ("to fill", summary["to_fill"]),
            ("would be filled", summary["filled"]),
            *((f"left NULL, {key}", number) for key, number in summary["left_null"].items()),
            ("gone", 0),
            ("undone", 0),
            ("not reached", 0),
        ):
            line = rf"(?m)^ *{label} +{figure:,}\b"
            (self.assertRegex if figure else self.assertNotRegex)(report, line)
        for column, names in summary["sources"].items():
            for name, number in names.items():
                line = rf"(?m)^    {name} +{number:,}$"
                (self.assertRegex if number else self.assertNotRegex)(report, line)
            self.assertRegex(report, rf"a field passed over +{summary['unusable'][column]}  it is")

    def test_a_field_that_is_passed_over_is_counted_and_named(self) -> None:
        self.make(
            [
                {"payload": '{"source_event_ts": "2026-02-01 10:00:00 PST", "timestamp": 7}'},
                {"payload": '{"source_event_ts": "\\u001b[2J"}', "source_event_ts": EVENT},
                {"payload": '{"source_event_ts": "", "timestamp": null}', "created_at": "?"},
                {"payload": f'{{"source_ts": {{}}, "task_created_at": "{EVENT}"}}'},
            ]
        )
        log_file = self.folder / "run.log"
        result = self.tool("--json", "--log-file", log_file)
        self.assertEqual(
            result.summary["unusable"], {"source_event_ts": 2, "supervisor_processed_at": 1}
        )
        for line in (
            "audit_id 1: source_event_ts from created_at, because source_event_ts is no timestamp:"
            ' "2026-02-01 10:00:00 PST"',
            "audit_id 1: supervisor_processed_at from created_at, because timestamp is no"
            " timestamp: 7",
            "audit_id 4: source_event_ts from task_created_at, because source_ts is no timestamp:"
            " {}",
        ):
            self.assertIn(f"\nwarning: {line}\n", f"\n{result.err}")
            self.assertIn(f" WARNING {line}\n", log_file.read_text())
        self.assertRegex(result.err, "warning: 2 rows with a field for source_event_ts that is no")

    def test_the_text_of_a_field_that_is_passed_over_is_cut_with_a_sign(self) -> None:
        self.make([{"payload": json.dumps({"source_event_ts": "x" * 300})}])
        self.assertRegex(self.tool().err, r'is no timestamp: "x{196}\.\.\.\n')

    def test_the_report_names_the_backup_and_its_size(self) -> None:
        self.make([{}])
        backup = self.folder / "backup.db"
        out = self.tool("--backup", backup).out
        self.assertIn(f"\nBackup {backup}, {backup.stat().st_size:,} bytes\n", out)

    def test_help_that_nobody_reads_ends_with_0_in_early_releases_of_python_3_11(self) -> None:
        with mock.patch.object(backfill, "build_parser") as parser:
            parser().parse_args.side_effect = BrokenPipeError
            self.assertEqual(run("--help"), (0, "", ""))

    def test_a_dry_run_shows_a_row_of_each_kind_behind_the_figures(self) -> None:
        self.make(
            [
                {"audit_id": 7, "payload": f'{{"timestamp": "{DONE}"}}'},
                {"audit_id": 8, "payload": MALFORMED, "created_at": "\x1b[2J"},
                {"audit_id": 9, "source_event_ts": EVENT, "event_type": "SUPERVISOR_\x1b[2J"},
                {"audit_id": 10, "payload": f'{{"timestamp": 5, "processed_at": "{DONE}"}}'},
                {"audit_id": 11, "payload": f'{{"processed_at": 5, "timestamp": "{DONE}"}}'},
                *[{}] * 10,
                *[{"payload": f'{{"timestamp": "{DONE}"}}'}] * 5,
            ]
        )
        for size in (1, 1000):
            out = self.tool("--dry-run", "--batch-size", size).out
            kinds = re.split(r"\n(?=[\d,]+ rows? like audit_id )", out)[1:]
            self.assertEqual(
                [kind.partition("\n")[0] for kind in kinds],
                ["10 rows like audit_id 12  SUPERVISOR_ALLOWED",
                 "6 rows like audit_id 7  SUPERVISOR_ALLOWED",
                 "1 row like audit_id 8  SUPERVISOR_ALLOWED",
                 r"1 row like audit_id 9  SUPERVISOR_\x1b[2J",
                 "1 row like audit_id 10  SUPERVISOR_ALLOWED",
                 "1 row like audit_id 11  SUPERVISOR_ALLOWED"],
            )  # fmt: skip
            self.assertRegex(kinds[1], rf"created_at +{CREATED}\n")
            self.assertRegex(kinds[1], rf"source_event_ts +{CREATED}  from created_at\n")
            self.assertRegex(kinds[1], rf"supervisor_processed_at +{DONE}  from timestamp$")
            self.assertRegex(kinds[2], r"created_at +\\x1b\[2J\n")
            self.assertRegex(kinds[2], r"source_event_ts +NULL  \(the payload is not JSON\)\n")
            self.assertRegex(kinds[3], rf"source_event_ts +{EVENT}  \(stands already\)\n")
            self.assertRegex(kinds[5], r"\n +\(processed_at passed over: 5\)\n")
            self.assertRegex(out.splitlines()[-1], "^dry run: 19 of 20 rows would be filled, 1 ")

    def test_ten_kinds_at_most_are_shown_and_the_others_counted(self) -> None:
        names = list(backfill.FIELDS["source_event_ts"])
        done = list(backfill.FIELDS["supervisor_processed_at"])
        self.make(
            {"payload": json.dumps({a: EVENT, b: DONE})} for a in names for b in [*done, "none"]
        )
        out = self.tool("--dry-run").out
        self.assertEqual(len(re.findall("(?m)^1 row like audit_id", out)), 10)
        self.assertIn("\nand 6 more kinds of rows\n", out)

    def test_the_last_line_is_the_verdict(self) -> None:
        filled = {"source_event_ts": EVENT, "supervisor_processed_at": DONE}
        odd = {"payload": MALFORMED}
        check = (
            rf"check it: sqlite3 {re.escape(shlex.quote(str(self.path)))} < verify_backfill\.sql"
        )
        for name, rows, options, verdict in (
            ("done", [{}, {}, odd], [],
             f"completed: 2 of 3 rows filled, 1 left NULL, coverage 66.6 %; {check}"),
            ("dry", [{}, odd], ["--dry-run"],
             "dry run: 1 of 2 rows would be filled, 1 would stay NULL, coverage 50.0 %; "
             "to write them, run again without --dry-run"),
            ("all filled", [filled], [], f"nothing to do: all 1 rows are filled; {check}"),
            ("all filled, dry", [filled], ["--dry-run"],
             f"nothing to do: all 1 rows are filled; {check}"),
            ("none to be filled", [odd, filled], [],
             f"nothing to do: 1 left NULL, coverage 50.0 %; {check}"),
            ("no rows", [], [],
             r"nothing to do: the store has no rows of the Supervisor: is it the right one\?"),
        ):  # fmt: skip
            with self.subTest(name), contextlib.chdir(HERE):
                self.path.unlink(missing_ok=True)
                self.make(rows)
                shutil.copy(self.path, self.folder / "copy.db")
                result = self.tool(*options)
                self.assertEqual(result.code, 0)
                self.assertRegex(result.out.splitlines()[-1], f"^{verdict}$")
                shutil.copy(self.folder / "copy.db", self.path)
                err = self.tool("--json", *options).err
                self.assertRegex(err.splitlines()[-1], f"^{verdict}$")
                shutil.copy(self.folder / "copy.db", self.path)
                self.assertEqual(self.tool("--json", "--quiet", *options).err, "")

    def test_the_next_step_is_a_command_that_works_or_none(self) -> None:
        for name in ("-x.db", "a:b", "with space.db", "'q'.db", "ümläut.db"):
            with self.subTest(name), contextlib.chdir(self.folder):
                self.make([{}], path=Path(name))
                out = run(f"--db-path={name}").out
                command = out.rpartition("check it: ")[2]
                if SHELL is not None:
                    said = subprocess.run(
                        ["sh", "-c", command], check=True, capture_output=True, text=True
                    )
                    self.assertIn("1  coverage", said.stdout)
        with contextlib.chdir(self.folder):
            self.make([{}], path=Path("new\nline.db"))
            self.assertRegex(
                run("--db-path", "new\nline.db").out, r"check it with /.*verify_backfill\.sql\n\Z"
            )
            with mock.patch.object(shutil, "which", return_value=None):
                self.assertIn("no sqlite3 shell here", run("--db-path", "a:b").out)
            with mock.patch.object(backfill, "VERIFICATION", "absent.sql"):
                self.assertRegex(run("--db-path", "a:b").out, "check it with absent.sql\n$")

    def test_the_terminal_shows_three_rows_of_each_reason_and_counts_all(self) -> None:
        self.make([{"payload": MALFORMED}] * 30 + [{"payload": "{}", "created_at": "x"}] * 4 + [{}])
        log_file = self.folder / "run.log"
        result = self.tool("--log-file", log_file)
        self.assertEqual(len(re.findall(r"(?m)^warning: audit_id \d+: .*not JSON", result.err)), 3)
        self.assertEqual(
            len(re.findall(r"(?m)^warning: audit_id \d+: .* no usable", result.err)), 3
        )
        self.assertRegex(
            result.err,
            r"warning: 30 rows left NULL: the payload is not JSON; .*run\.log has a line",
        )
        self.assertRegex(result.err, "warning: 4 rows left NULL: no usable timestamp")
        lines = log_file.read_text().splitlines()
        self.assertEqual(len(lines), 36)
        for audit_id, line in enumerate(lines[1:31], 1):
            self.assertRegex(line, rf"^\d{{4}}-\S+Z WARNING audit_id {audit_id}: .*not JSON")
        self.query("UPDATE task_audits SET payload = '{}' WHERE audit_id > 1")
        self.assertIn(
            "warning: 1 row left NULL: the payload is not JSON; --log-file PATH keeps a line",
            self.tool().err,
        )

    def test_the_log_file_is_the_record_of_each_run(self) -> None:
        self.make([{}, {"payload": MALFORMED}])
        log_file = self.folder / "run.log"
        self.tool("--log-file", log_file, "--dry-run", "--pause", 0.5)
        summary = self.fill("--log-file", log_file)
        with contextlib.closing(self.connect()) as other:
            other.execute("BEGIN EXCLUSIVE")
            self.tool("--log-file", log_file, "--busy-timeout", 0)
        lines = log_file.read_text().splitlines()
        begins = [line.split(" ", 1)[1] for line in lines if "INFO begin: " in line]
        ends = [line.split(" ", 1)[1] for line in lines if "INFO end: " in line]
        self.assertEqual((len(begins), len(ends), len(lines)), (3, 3, 8))
        store = f"version {backfill.__version__}, store {self.path}, "
        self.assertEqual(
            begins[0], f"INFO begin: {store}dry run yes, batch size 1000, backup none,"
            " busy timeout 30 s, pause 0.5 s",
        )  # fmt: skip
        self.assertTrue(begins[1].startswith(f"INFO begin: {store}dry run no, "))
        self.assertRegex(ends[0], "^INFO end: dry run: 1 of 2 rows would be filled")
        self.assertRegex(ends[1], "^INFO end: completed: 1 of 2 rows filled")
        self.assertRegex(ends[2], "^INFO end: failed: .*lock")
        self.assertEqual(json.loads(ends[1][ends[1].index("{") :]), summary)

    def test_fall_backs_are_a_line_each_in_the_log_file_and_one_per_column_here(self) -> None:
        self.make([{"payload": "{}"}, {"payload": f'{{"timestamp": "{DONE}"}}'}, {}])
        log_file = self.folder / "run.log"
        result = self.tool("--log-file", log_file)
        self.assertEqual(
            [line.split(" ", 1)[1] for line in log_file.read_text().splitlines()[1:-1]],
            [
                "INFO audit_id 1: source_event_ts and supervisor_processed_at from created_at",
                "INFO audit_id 2: source_event_ts from created_at",
            ],
        )
        self.assertEqual(
            [line for line in result.err.splitlines() if "created_at" in line],
            [
                "note: 2 values of source_event_ts from created_at",
                "note: 1 value of supervisor_processed_at from created_at",
            ],
        )

    def test_progress_elsewhere_is_plain_lines_that_end_at_100_percent(self) -> None:
        self.make([{}] * 50)
        with mock.patch.object(backfill, "PLAIN_SECONDS", 0.0):
            lines = self.tool("--batch-size", 10).err.splitlines()
        shares = [float(share) for share in re.findall(r"Filling +([\d.]+) %", "\n".join(lines))]
        self.assertEqual(shares, [20.0, 40.0, 60.0, 80.0, 100.0])
        self.assertRegex(lines[-1], r"50/50 rows  [\d,]+ rows/s$")
        self.assertEqual([line for line in self.tool().err.splitlines() if "rows/s" in line], [])

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
        self.make_hostile(seed=11, count=800)
        before = self.columns()
        log_file = self.folder / "run.log"
        result = self.tool("--log-file", log_file)
        self.assertEqual(result.code, 0, result.err)
        dry = self.tool("--dry-run")
        self.assertEqual(dry.code, 0, dry.err)
        text = result.out + result.err + dry.out + dry.err + log_file.read_text()
        self.assertEqual({char for char in text if not char.isprintable()}, {"\n"})
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
        self.assertEqual(backfill.printable("x" * 300 + "\n", None), "x" * 300 + r"\n")


# --- A store in use -----------------------------------------------------------------------------

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
        kills = 16 if HEAVY else 2
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

    def test_handlers_are_as_before_a_run_and_after_a_signal_none_changes_its_end(self) -> None:
        self.make([{}])
        names = (*backfill.INTERRUPTS, "SIGTSTP", "SIGTTOU")
        before = {name: signal.getsignal(getattr(signal, name)) for name in names}
        self.fill()
        for name, handler in before.items():
            self.assertEqual(signal.getsignal(getattr(signal, name)), handler)
            self.addCleanup(signal.signal, getattr(signal, name), handler)
        survey = backfill.survey

        def interrupted(*arguments: Any) -> Any:
            signal.raise_signal(signal.SIGTERM)
            return survey(*arguments)

        with mock.patch.object(backfill, "survey", interrupted):
            self.assertEqual(self.tool().code, 143)
        for name in backfill.INTERRUPTS:
            self.assertEqual(signal.getsignal(getattr(signal, name)), signal.SIG_IGN)

    def test_a_signal_while_a_large_batch_is_read_waits_for_no_more_than_a_page(self) -> None:
        self.make([{}] * (3 * backfill.PAGE_ROWS))
        read_page = backfill.read_page
        pages: list[object] = []

        def read_and_signal(*arguments: Any) -> Any:
            pages.append(arguments)
            signal.raise_signal(signal.SIGINT)
            return read_page(*arguments)

        for name in (*backfill.INTERRUPTS, "SIGTSTP", "SIGTTOU"):  # an interrupted run keeps them
            signum = getattr(signal, name)
            self.addCleanup(signal.signal, signum, signal.getsignal(signum))
        with mock.patch.object(backfill, "read_page", read_and_signal):
            result = self.tool("--json", "--batch-size", 10 * backfill.PAGE_ROWS)
        self.assertEqual((result.code, len(pages)), (130, 1))
        self.assertEqual(result.summary["filled"], 0)
        self.assertEqual(set(self.columns()), {(None, None)})

    def test_a_signal_ends_a_run_after_the_batch_at_hand_also_within_a_page(self) -> None:
        self.make([{}] * 9)
        write = backfill.backfill_batch

        def signal_in_the_second(*arguments: Any) -> None:
            if arguments[1][0].audit_id == 2:
                signal.raise_signal(signal.SIGTERM)
            write(*arguments)

        for name in (*backfill.INTERRUPTS, "SIGTSTP", "SIGTTOU"):  # an interrupted run keeps them
            signum = getattr(signal, name)
            self.addCleanup(signal.signal, signum, signal.getsignal(signum))
        with (
            mock.patch.object(backfill, "backfill_batch", signal_in_the_second),
            mock.patch.object(backfill, "choose_rest", return_value=0.0),
        ):
            result = self.tool("--json", "--batch-size", 1)
        self.assertEqual((result.code, result.summary["filled"]), (143, 2))

    def test_a_signal_ends_the_wait_for_a_lock(self) -> None:
        self.make([{}])
        other = self.connect()
        other.execute("BEGIN EXCLUSIVE")
        log = self.folder / "begun.log"
        process = self.start("--busy-timeout", 600, "--log-file", log)
        while not log.exists() and process.poll() is None:
            time.sleep(0.01)
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        self.assertEqual(self.finish(process).code, 130)
        other.execute("ROLLBACK")
        self.assertEqual(self.columns(), [(None, None)])

    def test_writers_beside_a_run_are_not_refused_overwritten_or_lost(self) -> None:
        for mode in JOURNAL_MODES:
            with self.subTest(mode):
                path = self.folder / f"{mode}.db"
                rows = 40_000 if HEAVY else 1500
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
        rows = 100
        fields = {"timestamp": DONE, "filler": "\N{CJK UNIFIED IDEOGRAPH-7B56}" * 200_000}
        payload = json.dumps(fields, ensure_ascii=False)
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
                self.assertLess(int(kilobytes), 100 * 1024)
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

    def test_that_a_lock_is_waited_for_is_shown(self) -> None:
        self.make([{}])
        other = self.connect()
        other.execute("BEGIN EXCLUSIVE")
        with mock.patch.object(backfill, "PLAIN_SECONDS", 0):
            result = self.tool("--busy-timeout", 0.2)
        self.assertRegex(result.err, "(?m)^Opening  waiting for another process's lock, 0:01 more$")

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

    def test_whatever_is_asked_of_the_store_waits_for_a_lock(self) -> None:
        self.make([{}, {}])
        wait = backfill.Patience.wait
        inside: list[object] = []

        def waiting(patience: Any, action: Any, *arguments: Any) -> Any:
            inside.append(action)
            try:
                return wait(patience, action, *arguments)
            finally:
                inside.pop()

        class Watched(sqlite3.Connection):
            asked: ClassVar[list[str]] = []

            def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
                needs_no_lock = re.match(r"PRAGMA \w+ = |PRAGMA page_size|EXPLAIN UPDATE", sql)
                if not (inside or self.in_transaction or needs_no_lock):
                    self.asked.append(sql)
                return super().execute(sql, *parameters)

        connect = sqlite3.connect
        with (
            mock.patch.object(backfill.Patience, "wait", waiting),
            mock.patch.object(
                sqlite3, "connect", lambda *a, **o: connect(*a, **o, factory=Watched)
            ),
        ):
            self.fill("--batch-size", 1)
        self.assertEqual(Watched.asked, [])

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


def is_held(lock: Any) -> bool:
    """Whether this thread holds a lock that it could take again."""

    def attempt() -> bool:
        if lock.acquire(blocking=False):
            lock.release()
            return False
        return True

    with ThreadPoolExecutor(1) as other:
        return other.submit(attempt).result()


class RestTest(StoreTest):
    """The manners towards other writers: when the run rests, and for how long."""

    def rests(self, *options: object, company: bool) -> tuple[list[Any], list[float]]:
        """Run over three batches that lock for 30 ms: what each rest was chosen by, and slept."""
        self.make([{}] * 6, journal_mode="wal")
        other = self.connect()
        fill_at_once, backfill_batch = backfill.fill_at_once, backfill.backfill_batch
        chosen: list[Any] = []
        slept: list[float] = []

        def slow(*arguments: Any, **options: Any) -> Any:
            time.sleep(0.03)
            return fill_at_once(*arguments, **options)

        def beside(*arguments: Any) -> None:
            if company:
                other.execute("UPDATE schema_version SET applied_at = 1")
            backfill_batch(*arguments)

        def choose(*by: Any, company: bool) -> float:
            chosen.append((*by, company))
            return 0.25

        with (
            mock.patch.object(backfill, "fill_at_once", slow),
            mock.patch.object(backfill, "backfill_batch", beside),
            mock.patch.object(backfill, "choose_rest", choose),
            mock.patch.object(backfill.Patience, "sleep", lambda _self, s: slept.append(s)),
        ):
            self.fill("--batch-size", 2, *options)
        self.assertEqual((len(chosen), len(slept)), (3, 3))
        return chosen, slept

    def test_the_rest_before_a_batch_follows_from_the_batch_before(self) -> None:
        chosen, slept = self.rests(company=False)
        self.assertEqual(chosen[0], (0, math.inf, False))
        for locked, unlocked, company in chosen[1:]:
            self.assertGreaterEqual(locked, 0.03)
            self.assertGreater(unlocked, 0)
            self.assertLess(unlocked, 60)
            self.assertFalse(company)
        self.assertEqual(slept, [0.25] * 3)

    def test_another_process_that_commits_is_company(self) -> None:
        self.assertEqual([company for _, _, company in self.rests(company=True)[0]], [True] * 3)

    def test_company_that_has_gone_is_forgotten(self) -> None:
        with mock.patch.object(backfill, "COMPANY_SECONDS", 0.0):
            chosen = self.rests(company=True)[0]
        self.assertEqual([company for _, _, company in chosen], [False] * 3)

    def test_a_pause_is_added_between_two_batches(self) -> None:
        self.assertEqual(self.rests("--pause", 7, company=False)[1], [0.25, 7.25, 7.25])

    def test_rests(self) -> None:
        for locked, unlocked, company, rest in (
            (0.0, 0.0, False, 0.0),
            (1.0, 0.0, False, 0.25),
            (1.0, 0.25, False, 0.0),
            (0.4, 0.0, True, 1.6),
            (0.4, 0.6, True, 1.0),
            (0.4, 9.0, True, 0.0),
            (20.0, 0.0, True, 2.0),
        ):
            with self.subTest(locked=locked, unlocked=unlocked, company=company):
                self.assertAlmostEqual(
                    backfill.choose_rest(locked, unlocked, company=company), rest
                )

    def test_a_sleep_lasts_as_long_as_asked(self) -> None:
        patience = backfill.Patience(30)
        slept: list[float] = []
        clock = [tick * 0.05 for tick in range(100)]
        with (
            mock.patch.object(time, "monotonic", side_effect=clock),
            mock.patch.object(time, "sleep", slept.append),
        ):
            patience.sleep(0.32)
        for seconds, expected in zip(slept, (0.1, 0.1, 0.1, 0.1, 0.07, 0.02), strict=True):
            self.assertAlmostEqual(seconds, expected)

    def checkpoints(self, mode: str) -> int:
        """Run over six batches: how many checkpoints came."""
        self.path.unlink(missing_ok=True)
        self.make([{}] * 6, journal_mode=mode)
        with mock.patch.object(backfill, "checkpoint", wraps=backfill.checkpoint) as counted:
            self.fill("--batch-size", 1)
        return counted.call_count

    def test_checkpoints_come_after_batches_by_the_time_of_writing(self) -> None:
        for seconds, mode, expected in ((0.0, "wal", 6), (1e9, "wal", 0), (0.0, "delete", 0)):
            with (
                self.subTest(seconds, mode=mode),
                mock.patch.object(backfill, "CHECKPOINT_SECONDS", seconds),
            ):
                self.assertEqual(self.checkpoints(mode), expected)

    def test_the_time_of_writing_is_counted_anew_after_a_checkpoint(self) -> None:
        fill_at_once, clock = backfill.fill_at_once, time.monotonic
        written: list[float] = []

        def slow(*arguments: Any) -> Any:
            written.append(10.0)
            return fill_at_once(*arguments)

        with (
            mock.patch.object(backfill, "CHECKPOINT_SECONDS", 15.0),
            mock.patch.object(backfill, "choose_rest", return_value=0.0),
            mock.patch.object(backfill, "fill_at_once", slow),
            mock.patch.object(time, "monotonic", side_effect=lambda: clock() + sum(written)),
        ):
            self.assertEqual(self.checkpoints("wal"), 3)

    def test_a_checkpoint_that_fails_ends_the_run(self) -> None:
        self.make([{}] * 4, journal_mode="wal")
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
        error.sqlite_errorname = "SQLITE_IOERR_FSYNC"
        for size, filled in ((1, 1), (4, 4)):  # the last one, too
            with (
                self.subTest(size),
                mock.patch.object(backfill, "CHECKPOINT_SECONDS", 0.0),
                mock.patch.object(backfill, "checkpoint", side_effect=error),
            ):
                result = self.tool("--json", "--batch-size", size)
                self.assertEqual((result.code, result.summary["filled"]), (1, filled))
                self.assertIn("reading or writing it failed", result.err)
            self.query("UPDATE task_audits SET source_event_ts = NULL")

    def test_a_checkpoint_that_a_read_of_our_own_held_up_is_made_again_without_it(self) -> None:
        self.make([{}] * 2, journal_mode="wal")
        answers = iter([backfill.HELD_UP_BYTES, 0])
        locked: list[bool] = []

        def held_up(_store: sqlite3.Connection) -> int:
            locked.append(is_held(ahead[0].turn))
            return next(answers)

        ahead: list[backfill.ReadAhead] = []
        begin = backfill.ReadAhead.begin

        def beginning(self: backfill.ReadAhead, *arguments: Any) -> None:
            ahead.append(self)
            begin(self, *arguments)

        with (
            mock.patch.object(backfill, "CHECKPOINT_SECONDS", 0.0),
            mock.patch.object(backfill, "checkpoint", held_up),
            mock.patch.object(backfill.ReadAhead, "begin", beginning),
        ):
            result = self.tool("--batch-size", 2)
        self.assertEqual(locked, [False, True])
        self.assertNotIn("-wal", result.err)

    def test_a_checkpoint_that_a_reader_holds_up_is_noted_once_with_its_size(self) -> None:
        self.make([{}] * 400, journal_mode="wal")
        reader = self.connect()
        with (
            mock.patch.object(backfill, "CHECKPOINT_SECONDS", 0.0),
            mock.patch.object(backfill, "HELD_UP_BYTES", 400_000),
        ):
            result = self.tool("--batch-size", 20)
            self.assertNotIn("-wal", result.err)
            self.query("UPDATE task_audits SET source_event_ts = NULL")
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM task_audits").fetchone()
            result = self.tool("--batch-size", 5)
        notes = re.findall("(?m)^note: the -wal has grown to .* MB, because .*$", result.err)
        self.assertEqual(len(notes), 1)


class ReadAheadTest(StoreTest):
    """Pages are read in a thread while a batch is written, and all is as without it."""

    def pages(self, *options: object, mode: str = "wal") -> dict[int, bool]:
        """Run over five pages: whether each, by its first audit_id, was read in the thread."""
        self.path.unlink(missing_ok=True)
        self.make([{}] * 10, journal_mode=mode)
        read_page = backfill.read_page
        pages: dict[int, bool] = {}

        def watch(store: sqlite3.Connection, page: backfill.Page, *arguments: Any) -> Any:
            pages[page.first] = threading.current_thread() is not threading.main_thread()
            return read_page(store, page, *arguments)

        with (
            mock.patch.object(backfill, "PAGE_ROWS", 2),
            mock.patch.object(backfill, "read_page", watch),
        ):
            self.fill("--batch-size", 2, *options)
        return pages

    def test_all_but_the_first_page_are_read_ahead_where_that_keeps_nobody_waiting(self) -> None:
        for mode, options, ahead in (
            ("wal", (), True), ("delete", (), False), ("wal", ("--dry-run",), False),
        ):  # fmt: skip
            with self.subTest(mode, options=options):
                pages = self.pages(*options, mode=mode)
                self.assertEqual(pages, {1: False, 3: ahead, 5: ahead, 7: ahead, 9: ahead})

    def test_where_batches_are_written_row_by_row_nothing_is_read_meanwhile(self) -> None:
        backfill_batch = backfill.backfill_batch
        for name, sql, ahead in (
            ("nothing", "SELECT 1", True),
            ("company", "UPDATE schema_version SET applied_at = 1", False),
            ("a trigger", "CREATE TRIGGER IF NOT EXISTS t AFTER UPDATE ON task_audits "
                          "BEGIN SELECT 1; END", False),
        ):  # fmt: skip
            waits: list[int] = []

            def beside(*arguments: Any) -> None:
                self.query(sql)  # noqa: B023
                with mock.patch.object(backfill.ReadAhead, "finish") as wait:
                    backfill_batch(*arguments)
                waits.append(wait.call_count)  # noqa: B023

            with (
                self.subTest(name),
                mock.patch.object(backfill, "backfill_batch", beside),
                # Without company that lasts, a trigger is a reason of its own.
                mock.patch.object(backfill, "COMPANY_SECONDS", 2.0 * (name == "company")),
            ):
                self.assertEqual(self.pages(), {1: False, 3: True, 5: True, 7: ahead, 9: ahead})
                self.assertEqual(waits, [0 if ahead else 1] * 5)
                self.assertEqual(self.columns(), [(EVENT, DONE)] * 10)

    def test_where_an_update_of_many_rows_would_walk_the_table_it_is_one_by_one(self) -> None:
        choose = backfill.choose_updates

        def walking(store: sqlite3.Connection, rows: int) -> Any:
            return choose(store, rows)[0], None

        with (
            mock.patch.object(backfill, "choose_updates", walking),
            mock.patch.object(backfill, "fill_one", wraps=backfill.fill_one) as one_by_one,
        ):
            self.assertEqual(self.pages(), dict.fromkeys((1, 3, 5, 7, 9), False))
        self.assertEqual(one_by_one.call_count, 10)
        self.assertEqual(self.columns(), [(EVENT, DONE)] * 10)

    def test_a_slow_read_does_not_hold_up_a_batch(self) -> None:
        read_rows = backfill._read_rows
        committed = threading.Event()
        in_time: list[bool] = []

        def slow(store: sqlite3.Connection, page: backfill.Page) -> Any:
            if page.first == 5:
                in_time.append(committed.wait(5))
            return read_rows(store, page)

        def on_batch(_summary: Any, outcomes: Sequence[backfill.Plan]) -> None:
            if outcomes[-1].audit_id == 4:
                committed.set()

        with (
            mock.patch.object(backfill, "_read_rows", slow),
            mock.patch.object(backfill.Summary, "add", on_batch),
            mock.patch.object(backfill, "CHECKPOINT_SECONDS", 1e9),
        ):
            self.pages()
        self.assertEqual(in_time, [True])

    def test_after_a_checkpoint_the_wal_begins_anew_and_reads_wait_for_that(self) -> None:
        read_rows = backfill._read_rows

        def slow(store: sqlite3.Connection, page: backfill.Page) -> Any:
            rows = read_rows(store, page)
            if threading.current_thread() is not threading.main_thread():
                store.execute("BEGIN")
                store.execute("SELECT 1 FROM task_audits").fetchone()
                time.sleep(0.01)
                store.execute("ROLLBACK")
            return rows

        self.make([{"payload": SOUND + " " * 3000}] * 60, journal_mode="wal")
        self.connect().execute("SELECT count(*) FROM task_audits").fetchall()
        with (
            mock.patch.object(backfill, "PAGE_ROWS", 2),
            mock.patch.object(backfill, "_read_rows", slow),
            mock.patch.object(backfill, "CHECKPOINT_SECONDS", 0.0),
        ):
            self.fill("--batch-size", 2)
        self.assertLess(Path(f"{self.path}-wal").stat().st_size, 30 * 4096)

    def test_an_error_is_met_again_where_it_can_be_waited_for_or_told(self) -> None:
        read_page = backfill.read_page
        failed: list[int] = []

        def fail(store: sqlite3.Connection, page: backfill.Page, *arguments: Any) -> Any:
            if threading.current_thread() is not threading.main_thread():
                failed.append(page.first)
                raise sqlite3.OperationalError("database is locked")
            return read_page(store, page, *arguments)

        with mock.patch.object(backfill, "read_page", fail):
            pages = self.pages()
        self.assertEqual(failed, [3, 5, 7, 9])
        self.assertEqual(pages, dict.fromkeys((1, 3, 5, 7, 9), False))
        self.assertEqual(self.columns(), [(EVENT, DONE)] * 10)

    def test_where_no_thread_is_to_be_had_all_is_read_between_two_batches(self) -> None:
        refused = mock.Mock(side_effect=RuntimeError("can't start new thread"))
        for name, patch in (
            ("a limit of the system", mock.patch.object(ThreadPoolExecutor, "submit", refused)),
            ("a SQLite built without threads", mock.patch.object(sqlite3, "threadsafety", 0)),
        ):
            with self.subTest(name):
                with patch:
                    pages = self.pages()
                self.assertEqual(pages, dict.fromkeys((1, 3, 5, 7, 9), False))
                self.assertEqual(self.columns(), [(EVENT, DONE)] * 10)

    def test_no_more_than_two_pages_are_kept(self) -> None:
        with contextlib.closing(backfill.ReadAhead(self.connect())) as ahead:
            pages = [backfill.Page(1, first, first, 1, 1) for first in (1, 2, 3)]
            with mock.patch.object(backfill, "read_page") as read:
                ahead.begin(pages, 1)
                ahead.begin(pages, 1)
                ahead.finish()
                self.assertEqual([call.args[1] for call in read.call_args_list], pages[:2])
                self.assertIsNone(ahead.take(pages[2]))
                self.assertIsNotNone(ahead.take(pages[0]))
                self.assertIsNone(ahead.take(pages[0]))

    def test_ctrl_z_waits_until_no_read_is_open_and_none_begins(self) -> None:
        read_rows, write = backfill._read_rows, backfill.backfill_batch
        begun, stopped = threading.Event(), threading.Event()
        open_reads: list[int] = []
        seen: list[list[int]] = []

        def slow(store: sqlite3.Connection, page: backfill.Page) -> Any:
            open_reads.append(page.first)
            begun.set()
            if threading.current_thread() is not threading.main_thread():
                stopped.wait(0.1)
            rows = read_rows(store, page)
            open_reads.remove(page.first)
            return rows

        def stop(_signum: int) -> None:
            for _ in range(2):
                seen.append([*open_reads])
                time.sleep(0.05)
            stopped.set()

        def stop_after(*arguments: Any) -> None:
            patience = arguments[2]._patience
            if not seen:
                self.assertTrue(begun.wait(30))
                patience.stop_asked = True
                patience.check()
            write(*arguments)

        with (
            mock.patch.object(backfill, "_read_rows", slow),
            mock.patch.object(backfill, "backfill_batch", stop_after),
            mock.patch.object(signal, "raise_signal", stop),
        ):
            self.pages()
        self.assertEqual(seen, [[], []])
        self.assertEqual(self.columns(), [(EVENT, DONE)] * 10)

    def test_it_leaves_pythons_switch_interval_as_it_was(self) -> None:
        before = sys.getswitchinterval()
        seen: list[float] = []
        backfill_batch = backfill.backfill_batch

        def watch(*arguments: Any) -> None:
            seen.append(round(sys.getswitchinterval(), 6))
            backfill_batch(*arguments)

        with mock.patch.object(backfill, "backfill_batch", watch):
            self.pages()
            self.pages(mode="delete")
        self.assertEqual(seen, [backfill.SWITCH_SECONDS] * 5 + [before] * 5)
        self.assertEqual(sys.getswitchinterval(), before)


class PromiseTest(unittest.TestCase):
    """The numbers that the manual's promises hang on: who changes one has measured it anew."""

    def test_numbers(self) -> None:
        for name, number in (
            ("MOST_LEVELS", 500), ("MIGRATION", (0, 21)), ("LONGEST_PATH", 504),
            ("DEFAULT_BATCH_SIZE", 1000), ("DEFAULT_BUSY_TIMEOUT", 30.0),
            ("PAGE_ROWS", 1000), ("PAGE_BYTES", 4_000_000), ("BATCH_BYTES", 16_000_000),
            ("PAGES_AHEAD", 2), ("SWITCH_SECONDS", 0.0002), ("ROWS_AT_ONCE", 1000),
            ("CACHE_KIB", 8_000), ("BACKUP_PAGES", 1000), ("PROBE_BYTES", 65_536),
            ("LOCK_SLICES", (0.1, 0.1, 0.2, 0.5, 1.0)), ("LOCK_PAUSE", 0.4),
            ("SLEEP_SLICE", 0.1), ("LONGEST_REST", 2.0), ("COMPANY_SECONDS", 2.0),
            ("FREE_SHARE_ALONE", 0.2), ("FREE_SHARE_IN_COMPANY", 0.8),
            ("CHECKPOINT_SECONDS", 0.02),
            ("HELD_UP_BYTES", 16_000_000), ("EXAMPLES", 3), ("PREVIEW_KINDS", 10),
            ("REDRAW_SECONDS", 0.1), ("PLAIN_SECONDS", 5.0), ("CUT", 200), ("PIECE", 1000),
            ("EXIT_DONE", 0), ("EXIT_FAILED", 1), ("EXIT_SIGNAL", 128),
        ):  # fmt: skip
            with self.subTest(name):
                self.assertEqual(getattr(backfill, name), number)


class TransactionTest(StoreTest):
    """The lock that a batch takes, and what is counted when."""

    def in_a_batch(self, look: Any) -> Result:
        """Run the tool; call `look` within its first transaction."""
        fill_at_once = backfill.fill_at_once

        def looking(*arguments: Any, **options: Any) -> Any:
            look()
            return fill_at_once(*arguments, **options)

        with mock.patch.object(backfill, "fill_at_once", looking):
            return self.tool("--json")

    def test_it_locks_readers_out_of_a_rollback_journal_and_only_writers_of_a_wal(self) -> None:
        for mode, read_is_refused in (("delete", True), ("wal", False)):
            with self.subTest(mode):
                self.path.unlink(missing_ok=True)
                self.make([{}], journal_mode=mode)
                other = sqlite3.connect(self.path, timeout=0, isolation_level=None)
                self.addCleanup(other.close)
                refused: list[bool] = []

                def look() -> None:
                    for sql in ("SELECT count(*) FROM task_audits", "BEGIN IMMEDIATE"):
                        try:
                            other.execute(sql).fetchall()  # noqa: B023
                            refused.append(False)  # noqa: B023
                        except sqlite3.OperationalError:
                            refused.append(True)  # noqa: B023

                self.assertEqual(self.in_a_batch(look).code, 0)
                self.assertEqual(refused, [read_is_refused, True])

    def test_a_reader_is_waited_for_and_others_get_in_meanwhile(self) -> None:
        self.make([{}])
        reader = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
        self.addCleanup(reader.close)
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM task_audits").fetchall()
        other = self.connect()
        waits: list[float] = []

        def read_beside(_patience: Any, seconds: float) -> None:
            if seconds:  # in the pause between two slices nothing is held
                waits.append(seconds)
                other.execute("PRAGMA busy_timeout = 0")
                other.execute("SELECT count(*) FROM task_audits").fetchall()
                if len(waits) == 3:
                    reader.execute("ROLLBACK")

        with mock.patch.object(backfill.Patience, "sleep", read_beside):
            self.fill()
        self.assertEqual(waits[:3], [0.4] * 3)
        self.assertEqual(self.columns(), [(EVENT, DONE)])

    def test_a_reader_held_past_the_timeout_ends_the_run_with_nothing_counted(self) -> None:
        self.make([{}])
        reader = self.connect()
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM task_audits").fetchall()
        result = self.tool("--json", "--busy-timeout", 0.3)
        reader.execute("ROLLBACK")
        self.assertEqual(result.code, 1)
        self.assertEqual((result.summary["filled"], result.summary["batches"]), (0, 0))
        self.assertEqual(self.columns(), [(None, None)])

    def test_the_lock_is_asked_for_in_slices_that_grow(self) -> None:
        self.make([{}])
        other = self.connect()
        other.execute("BEGIN IMMEDIATE")
        with contextlib.closing(sqlite3.connect(self.path, isolation_level=None)) as store:
            asked: list[float] = []

            def lock(_courtesy: Any, seconds: float) -> None:
                asked.append(seconds)
                store.execute("PRAGMA busy_timeout = 0")
                store.execute("BEGIN EXCLUSIVE")

            courtesy = backfill.Courtesy(
                store, backfill.Patience(0.3), backfill.ReadAhead(None), pause=0, rows=1
            )
            with (
                mock.patch.object(backfill.Courtesy, "_lock", lock),
                mock.patch.object(backfill, "LOCK_PAUSE", 0.05),
                self.assertRaises(sqlite3.OperationalError),
                courtesy.transaction(),
            ):
                self.fail("the lock was granted")
        self.assertEqual(asked[:5], [0.1, 0.1, 0.2, 0.5, 1.0])
        self.assertEqual(set(asked[5:]), {1.0})

    def test_a_batch_in_which_nothing_is_to_be_written_takes_no_lock(self) -> None:
        self.make([{"payload": MALFORMED}] * 3)
        other = self.connect()
        other.execute("BEGIN")
        other.execute("SELECT * FROM task_audits").fetchall()
        with mock.patch.object(backfill.Courtesy, "transaction", side_effect=AssertionError):
            summary = self.fill()
        self.assertEqual(summary["left_null"]["malformed_json"], 3)

    def test_a_batch_whose_commit_fails_is_not_counted(self) -> None:
        self.make([{}] * 5)
        open_store = backfill.open_store

        class Failing(sqlite3.Connection):
            commits = 0

            def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
                if sql == "COMMIT":
                    self.commits += 1
                    if self.commits == 2:
                        error = sqlite3.OperationalError("disk I/O error")
                        error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
                        error.sqlite_errorname = "SQLITE_IOERR_FSYNC"
                        raise error
                return super().execute(sql, *parameters)

        connect = sqlite3.connect

        def open_failing(*arguments: Any, **options: Any) -> sqlite3.Connection:
            with mock.patch.object(
                sqlite3, "connect", lambda *a, **o: connect(*a, **o, factory=Failing)
            ):
                return open_store(*arguments, **options)

        with mock.patch.object(backfill, "open_store", open_failing):
            result = self.tool("--json", "--batch-size", 2)
        self.assertEqual(result.code, 1)
        self.assertEqual((result.summary["filled"], result.summary["batches"]), (2, 1))
        self.assertEqual(self.columns(), [(EVENT, DONE)] * 2 + [(None, None)] * 3)

    def test_a_dry_run_could_not_write_if_it_would(self) -> None:
        self.make([{}])

        def write(store: sqlite3.Connection, *_rest: Any) -> None:
            store.execute("UPDATE task_audits SET payload = NULL")

        with mock.patch.object(backfill, "survey", write):
            result = self.tool("--dry-run")
        self.assertEqual(result.code, 1)
        self.assertIn("readonly database", result.err)


class SummaryTest(unittest.TestCase):
    def test_percent_is_rounded_down(self) -> None:
        for part, whole, percent in (
            (0, 0, 100.0), (0, 3, 0.0), (1, 3, 33.3333), (2, 3, 66.6666), (3, 3, 100.0),
            (999_999, 1_000_000, 99.9999), (9_999_999, 10_000_000, 99.9999),
        ):  # fmt: skip
            self.assertEqual(backfill.percent(part, whole), percent)
        self.assertEqual(backfill.format_percent(99.9999), "99.9 %")
        self.assertEqual(backfill.format_percent(100.0), "100.0 %")
        self.assertEqual(backfill.format_percent(None), "unknown")

    def test_figures_of_a_run_that_broke_off(self) -> None:
        summary = backfill.Summary("store.db", dry_run=False, batch_size=10)
        self.assertEqual((summary.coverage_before, summary.coverage_after), (None, None))
        self.assertEqual((summary.supervisor_rows, summary.rows_per_second), (0, 0.0))
        summary.pages = [backfill.Page(20, 1, 20, 20, 12), backfill.Page(20, 21, 40, 20, 8)]
        row = (5, "SUPERVISOR_ERROR", SOUND, CREATED, None, None)
        bad = (25, "SUPERVISOR_ERROR", MALFORMED, CREATED, None, None)
        summary.add([backfill.plan_row(row)] * 5 + [backfill.plan_row(bad)] * 2)
        summary.gone = 3
        summary.elapsed_seconds = 4.0
        self.assertEqual(
            (summary.supervisor_rows, summary.already_filled, summary.to_fill), (40, 20, 20)
        )
        self.assertEqual((summary.filled, summary.reached), (5, 10))
        self.assertEqual(summary.rows_per_second, 2.5)
        self.assertEqual(summary.coverage_before, 50.0)
        self.assertEqual(summary.coverage_after, backfill.percent(25, 37))
        self.assertEqual(summary.left_open, {1: 2})
        summary.elapsed_seconds = 4.00049
        figures = summary.as_json()
        self.assertEqual((figures["elapsed_seconds"], figures["rows_per_second"]), (4.0, 2.5))

    def test_durations(self) -> None:
        for seconds, text in ((0, "0:00"), (0.2, "0:01"), (59.5, "1:00"), (3599, "59:59"),
                              (3600, "1:00:00"), (36_061, "10:01:01")):  # fmt: skip
            self.assertEqual(backfill.format_duration(seconds), text)

    def test_a_line_of_progress_loses_what_matters_least_where_it_is_narrow(self) -> None:
        def line(width: int | None, total: int = 200_000) -> str:
            return backfill.format_progress("Filling", "rows", 50_000, total, 2.0, width)

        whole = "[##--------] Filling  25.0 %  50,000/200,000 rows  25,000 rows/s  0:06 left"
        self.assertEqual(line(80), whole)
        self.assertEqual(line(len(whole) + 1), whole)
        for width, words in (
            (len(whole), "[##--------] Filling  25.0 %  50,000/200,000 rows  0:06 left"),
            (60, "Filling  25.0 %  50,000/200,000 rows  0:06 left"),
            (47, "25.0 %  50,000/200,000 rows  0:06 left"),
            (38, "25.0 %  0:06 left"),
            (17, "25.0 %"),
            (None, whole.partition("] ")[2]),
        ):
            with self.subTest(width):
                self.assertEqual(line(width), words)
        self.assertEqual(line(80, total=0), "Filling  50,000 rows  25,000 rows/s")
        self.assertEqual(
            backfill.format_progress("Filling", "rows", 0, 9, 2.0, 80),
            "[----------] Filling  0.0 %  0/9 rows",
        )


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
        for audit_id in sorted(refused)[: backfill.EXAMPLES]:
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

    def test_a_trigger_that_takes_no_text_of_this_row(self) -> None:
        self.make(
            [{}] * 6,
            extra="""CREATE TABLE log (task_id INTEGER PRIMARY KEY);
                     CREATE TRIGGER log AFTER UPDATE ON task_audits WHEN new.audit_id = 4
                     BEGIN INSERT INTO log VALUES (new.task_id); END;""",
        )
        self.check_refused({4}, "datatype mismatch")

    def test_a_constraint_that_would_replace_another_row_replaces_none(self) -> None:
        self.query(
            """CREATE TABLE task_audits (audit_id INTEGER PRIMARY KEY, event_type TEXT,
               payload TEXT, created_at, source_event_ts TEXT UNIQUE ON CONFLICT REPLACE,
               supervisor_processed_at TEXT, task_id)"""
        )
        self.insert(self.connect(), [{}] * 3)
        result = self.tool("--json")
        self.assertEqual(self.columns(), [(EVENT, DONE), (None, None), (None, None)])
        self.assertEqual((result.summary["filled"], result.summary["left_null"]["refused"]), (1, 2))
        self.assertRegex(result.err, "audit_id 2: .*UNIQUE constraint failed")

    def test_a_triggers_own_conflict_clause_is_kept(self) -> None:
        self.make(
            [{}] * 3,
            extra="""CREATE TABLE log (task_id UNIQUE);
                     CREATE TRIGGER log AFTER UPDATE ON task_audits
                     BEGIN INSERT OR IGNORE INTO log VALUES (new.task_id); END;""",
        )
        self.check_refused(set(), "")
        self.assertEqual(self.query("SELECT * FROM log"), [("task",)])

    def test_a_batch_is_one_transaction_whatever_is_refused(self) -> None:
        for kind, transactions in (("ABORT", 2), ("FAIL", 2), ("ROLLBACK", 11)):
            with self.subTest(kind):
                self.path.unlink(missing_ok=True)
                self.make(
                    [{}] * 10,
                    extra=f"""CREATE TRIGGER refuse BEFORE UPDATE ON task_audits
                              WHEN new.audit_id % 2 = 0
                              BEGIN SELECT RAISE({kind}, 'no'); END;""",
                )
                begun = []
                transaction = backfill.Courtesy.transaction

                def counting(courtesy: Any) -> Any:
                    begun.append(courtesy)  # noqa: B023
                    return transaction(courtesy)  # noqa: B023

                with mock.patch.object(backfill.Courtesy, "transaction", counting):
                    self.check_refused({2, 4, 6, 8, 10}, "no")
                self.assertEqual(len(begun), transactions)

    def test_what_filling_needs_and_is_not_there_is_said_once_and_nothing_is_written(self) -> None:
        for name, extra, words, foreseen in (
            ("a function", "CREATE TRIGGER t AFTER UPDATE ON task_audits BEGIN"
             " SELECT only_the_program_has_it(new.task_id); END;",
             "no such function: only_the_program_has_it", True),
            ("a table", "CREATE TRIGGER t AFTER UPDATE ON task_audits BEGIN"
             " INSERT INTO renamed VALUES (1); END;", "no such table: main.renamed", True),
            ("a column", "CREATE TABLE log (a); CREATE TRIGGER t AFTER UPDATE ON task_audits BEGIN"
             " INSERT INTO log (b) VALUES (1); END;", "no column named b", True),
            ("in a dry run unseen", "", "unknown function: absent", False),
        ):  # fmt: skip
            with self.subTest(name):
                self.path.unlink(missing_ok=True)
                schema = sample_store.SCHEMA
                if not foreseen:
                    schema = schema.replace(
                        "source_event_ts TEXT,",
                        "source_event_ts TEXT CHECK (absent(source_event_ts)),",
                    )
                with mock.patch.object(sample_store, "SCHEMA", schema):
                    connect = sqlite3.connect

                    def connect_with_function(*arguments: Any, **options: Any) -> Any:
                        store = connect(*arguments, **options)  # noqa: B023
                        store.create_function("absent", 1, lambda _: 1)
                        return store

                    with mock.patch.object(sqlite3, "connect", connect_with_function):
                        self.make([{}] * 30, extra=extra)
                runs: list[list[str]] = [[], ["--dry-run"]] if foreseen else [[]]
                for options in runs:
                    result = self.tool("--json", *options)
                    self.assertEqual(result.code, 1, result.err)
                    errors = re.findall("(?m)^error: .*$", result.err)
                    self.assertEqual(len(errors), 1)
                    self.assertIn(words, errors[0])
                    self.assertEqual(sum(result.summary["left_null"].values()), 0)
                    self.assertEqual(result.summary["batches"], 0)

    def test_what_shows_only_while_it_runs_ends_the_run_too(self) -> None:
        self.make([{}] * 3)
        missing = sqlite3.OperationalError("no such tokenizer: chinese")
        missing.sqlite_errorcode = sqlite3.SQLITE_ERROR
        missing.sqlite_errorname = "SQLITE_ERROR"
        with mock.patch.object(backfill, "fill_at_once", side_effect=missing):
            self.assertEqual(self.tool("--json").code, 1)
        for code, words, nobodys in (
            (sqlite3.SQLITE_ERROR, "no such tokenizer: x", True),
            (sqlite3.SQLITE_ERROR, "unknown function: x()", True),
            (sqlite3.SQLITE_ERROR, "something else", False),
            (sqlite3.SQLITE_CONSTRAINT_TRIGGER, "no such luck", False),
            (sqlite3.SQLITE_MISMATCH, "datatype mismatch", False),
            (sqlite3.SQLITE_TOOBIG, "string or blob too big", False),
            (sqlite3.SQLITE_BUSY, "database is locked", True),
            (sqlite3.SQLITE_LOCKED, "database table is locked", True),
            (sqlite3.SQLITE_FULL, "database or disk is full", True),
            (sqlite3.SQLITE_IOERR_WRITE, "disk I/O error", True),
            (sqlite3.SQLITE_CORRUPT_VTAB, "malformed", True),
            (sqlite3.SQLITE_READONLY_DBMOVED, "readonly", True),
            (sqlite3.SQLITE_NOMEM, "out of memory", True),
            (sqlite3.SQLITE_CANTOPEN, "unable to open", True),
        ):
            with self.subTest(words, code=code):
                error = sqlite3.OperationalError(words)
                error.sqlite_errorcode = code
                self.assertEqual(backfill.is_nobodys_row(error), nobodys)

    def test_what_is_nobodys_row_ends_the_run_also_where_rows_are_written_one_by_one(self) -> None:
        self.make(
            [{}] * 4,
            extra="""CREATE TRIGGER refuse BEFORE UPDATE ON task_audits WHEN new.audit_id = 1
                     BEGIN SELECT RAISE(ABORT, 'no'); END;""",
        )

        fill_one = backfill.fill_one

        def full(cursor: sqlite3.Cursor, plan: backfill.Plan, *arguments: Any) -> Any:
            if plan.audit_id == 3:
                error = sqlite3.OperationalError("database or disk is full")
                error.sqlite_errorcode = sqlite3.SQLITE_FULL
                error.sqlite_errorname = "SQLITE_FULL"
                raise error
            return fill_one(cursor, plan, *arguments)

        with mock.patch.object(backfill, "fill_one", full):
            result = self.tool("--json")
        self.assertEqual((result.code, result.summary["filled"]), (1, 0))
        self.assertIn("is full", result.err)
        self.assertEqual(set(self.columns()), {(None, None)})

    @OWN_MODULE
    def test_a_row_too_long_to_be_read_ends_the_run_and_is_named(self) -> None:
        self.make([{}, {}, {"payload": json.dumps({"x": "x" * 5000})}, {}])
        open_store = backfill.open_store

        def open_limited(*arguments: Any, **options: Any) -> sqlite3.Connection:
            store = open_store(*arguments, **options)
            store.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 4000)
            return store

        with mock.patch.object(backfill, "open_store", open_limited):
            for options in ([], ["--dry-run"]):
                result = self.tool("--json", *options)
                self.assertEqual(result.code, 1)
                self.assertRegex(
                    result.err, "error: the row that is to be filled after audit_id 2 is longer"
                )

    @OWN_MODULE
    def test_a_row_too_long_behind_the_rows_to_fill_is_not_touched(self) -> None:
        self.make([{}, {"payload": json.dumps({"x": "x" * 5000}), "event_type": "TASK"}])
        open_store = backfill.open_store

        def open_limited(*arguments: Any, **options: Any) -> sqlite3.Connection:
            store = open_store(*arguments, **options)
            store.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 4000)
            return store

        with (
            mock.patch.object(backfill, "open_store", open_limited),
            mock.patch.object(backfill, "PAGE_ROWS", 1),
        ):
            self.assertEqual(self.fill()["filled"], 1)


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

    def test_a_store_cut_off_in_the_middle(self) -> None:
        sample_store.make_store(self.path, rows=2000, journal_mode="delete")
        with self.path.open("r+b") as file:
            file.truncate(self.path.stat().st_size // 4096 // 8 * 4096)
        self.check_failed(self.tool("--json"), "it is damaged: PRAGMA integrity_check")

    @OWN_MODULE
    def test_a_damaged_index_keeps_what_was_committed(self) -> None:
        self.make([{}] * 200 + [{"event_type": "TASK"}] * 2000)
        (root,) = self.query(
            "SELECT rootpage FROM sqlite_master WHERE name = 'idx_task_audits_lag'"
        )[0]
        write = backfill.backfill_batch
        batches: list[Any] = []

        def damage_later(store: sqlite3.Connection, *rest: Any) -> None:
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
            write(store, *rest)

        with mock.patch.object(backfill, "backfill_batch", damage_later):
            result = self.tool("--json", "--batch-size", 50)
        summary = self.check_failed(result, "an index is damaged: REINDEX mends it")
        self.assertEqual((summary["filled"], summary["batches"]), (100, 2))
        self.query("REINDEX")
        self.assertEqual(self.columns()[:200], [(EVENT, DONE)] * 100 + [(None, None)] * 100)

    def test_a_table_that_goes_away_in_the_middle(self) -> None:
        self.make([{}] * 30)
        other = self.connect()
        write = backfill.backfill_batch

        def rename_after(*arguments: Any) -> None:
            write(*arguments)
            other.execute("ALTER TABLE task_audits RENAME TO elsewhere")

        with mock.patch.object(backfill, "backfill_batch", rename_after):
            result = self.tool("--json", "--batch-size", 10)
        summary = self.check_failed(
            result, r"is not there: .*migration to end.* \(no such table: task_"
        )
        self.assertEqual((summary["filled"], summary["batches"]), (10, 1))
        other.execute("ALTER TABLE elsewhere RENAME TO task_audits")
        self.assertEqual(self.fill()["filled"], 20)


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

    def test_the_summary_and_the_report_name_it(self) -> None:
        self.make([{}])
        self.assertIsNone(
            self.tool("--json", "--backup", self.backup, "--dry-run").summary["backup"]
        )
        shown = self.tool("--backup", self.backup).out
        self.assertIn(f"Backup {self.backup}, {self.backup.stat().st_size:,} bytes", shown)
        self.query("UPDATE task_audits SET source_event_ts = NULL")
        second = self.folder / "second.db"
        summary = self.fill("--backup", second)
        self.assertEqual((summary["backup"], summary["error"]), (str(second), None))

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


# --- The machine: names, places, signals, streams, words ----------------------------------------


class MachineTest(ProcessTest):
    """Starts the tool in every way that a machine can."""

    SLOW_BACKUP = (
        "b.BACKUP_PAGES = 5; b.REDRAW_SECONDS = b.PLAIN_SECONDS = 0.01; update = b.Screen.update\n"
        "def slowly(screen, *figures):\n"
        "    if screen._label == 'Backup': time.sleep(0.01)\n"
        "    update(screen, *figures)\n"
        "b.Screen.update = slowly"
    )

    def launch(
        self,
        *options: object,
        path: Path | None = None,
        prepared: str | None = None,
        **streams: Any,
    ) -> subprocess.Popen[bytes]:
        """Start the tool as a process of its own, with streams of the test's own.

        With `prepared`, statements in which `b` is the tool, it is not a new Python but a fork
        of this one, which starts ten times faster. This process must not have the store open.
        """
        arguments = ["--db-path", str(path or self.path), *map(str, options)]
        settings: dict[str, Any] = {
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            **streams,
        }
        if prepared is not None:
            settings["preexec_fn"] = lambda: self.become_the_tool(prepared, arguments)
            settings["restore_signals"] = False  # of which Python ignores some
        process = subprocess.Popen([sys.executable, str(SCRIPT), *arguments], **settings)
        self.addCleanup(process.communicate)
        self.addCleanup(process.kill)
        return process

    @staticmethod
    def become_the_tool(prepared: str, arguments: list[str]) -> None:
        """Run the tool in a child that has just been forked, and end with its exit code."""
        os.closerange(3, 1024)  # with it the pipe on which Popen() waits for another program
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
        code = 70
        try:
            exec(prepared, {"b": backfill, "os": os, "signal": signal, "time": time})
            code = backfill.main(arguments)
            sys.stdout.flush()
        except BaseException:  # what Python would print
            traceback.print_exc()
        finally:
            os._exit(code)

    def end(self, process: subprocess.Popen[bytes], seconds: float = 30) -> Result:
        """Wait for the tool, which must not hang, and return what it said."""
        out, err = process.communicate(timeout=seconds)
        result = Result(process.returncode, (out or b"").decode(), (err or b"").decode())
        self.assertNotIn("Traceback", result.out + result.err)
        return result

    def assert_failed(self, result: Result, words: str, unlike: str | None = None) -> None:
        """One error line with the cause and the next step, exit code 1, no traceback."""
        self.assertEqual(result.code, 1, result)
        self.assertNotIn("Traceback", result.out + result.err)
        errors = [line for line in result.err.splitlines() if line.startswith("error: ")]
        self.assertEqual(len(errors), 1, result.err)
        self.assertRegex(errors[0], words)
        if unlike is not None:
            self.assertNotRegex(errors[0], unlike)

    def assert_refused(self, words: str, *options: object, path: Path | None = None) -> None:
        """Run and dry run end with one error line before anything is written."""
        store = path or self.path
        before = store.read_bytes()
        for dry in ([], ["--dry-run"]):
            with self.subTest(options=[*options, *dry]):
                result = run("--db-path", store, *options, *dry)
                self.assert_failed(result, words)
                self.assertEqual(result.out, "")
                self.assertEqual(len(result.err.splitlines()), 1, result.err)
                self.assertEqual(store.read_bytes(), before)

    def assert_filled(self, path: Path | None = None) -> None:
        """Every row whose payload is sound is filled."""
        self.assertEqual(
            self.query(
                "SELECT count(*) FROM task_audits WHERE payload LIKE '{\"%'"
                " AND (source_event_ts IS NULL OR supervisor_processed_at IS NULL)",
                path,
            ),
            [(0,)],
        )

    def assert_open(self, path: Path | None = None) -> None:
        """No row has been written."""
        self.assertEqual(set(self.columns(path)), {(None, None)})

    def wait_until(self, condition: Callable[[], object], what: str) -> None:
        give_up = time.monotonic() + 8
        while not condition():
            self.assertLess(time.monotonic(), give_up, f"in vain: {what}")
            time.sleep(0.005)

    def write_at_once(self) -> None:
        """Another writer, who waits for hardly longer than a page is read."""
        other = sqlite3.connect(self.path, isolation_level=None, timeout=0.5)
        try:
            other.execute("BEGIN IMMEDIATE")
            other.execute("INSERT INTO schema_version (version) VALUES (hex(randomblob(8)))")
            other.execute("COMMIT")
        finally:
            other.close()


# --- One name, one place ------------------------------------------------------------------------


class NameTest(MachineTest):
    """SQLite finds -wal and -journal by the store's name, so the store must have one only."""

    def mount_table(self, *mounts: tuple[bytes, str]) -> Any:
        """Let the tool see these mount points and types, in the form of /proc."""
        lines = []
        for number, (point, kind) in enumerate(mounts, 30):
            escaped = re.sub(rb"[ \t\n\\]", lambda char: b"\\%03o" % char[0][0], point)
            lines.append(
                b"%d 1 0:%d / %s rw,relatime shared:1 - %s source rw\n"
                % (number, number, escaped, kind.encode())
            )
        table = self.folder / "mountinfo"
        table.write_bytes(b"".join(lines))
        return mock.patch.object(backfill, "MOUNTS", table)

    def real(self, path: Path) -> bytes:
        return os.fsencode(os.path.realpath(path))

    def test_a_second_hard_link_is_refused_under_either_name(self) -> None:
        for mode in JOURNAL_MODES:
            path, other = self.folder / f"{mode}.db", self.folder / f"{mode} second.db"
            self.make([{}], path=path, journal_mode=mode)
            other.hardlink_to(path)
            for name in (path, other):
                self.assert_refused(
                    r"has 2 names .*use the name that the agents use.*find FOLDER -samefile",
                    path=name,
                )
            other.unlink()
            self.assertEqual(run("--db-path", path).code, 0)
            self.assertEqual(self.columns(path), [(EVENT, DONE)])

    def test_a_refused_run_makes_neither_backup_nor_log_file(self) -> None:
        self.make([{}])
        (self.folder / "second.db").hardlink_to(self.path)
        before = set(self.folder.iterdir())
        self.assert_refused(
            "hard link", "--backup", self.folder / "backup.db", "--log-file", self.folder / "log"
        )
        self.assertEqual(set(self.folder.iterdir()), before)

    def test_a_symbolic_link_is_fine_and_its_companions_lie_beside_the_file(self) -> None:
        for mode in JOURNAL_MODES:
            with self.subTest(mode):
                place = self.folder / mode
                place.mkdir()
                self.make([{}], path=place / "store.db", journal_mode=mode)
                link = self.folder / f"{mode}.db"
                link.symlink_to(place / "store.db")
                self.assertEqual(run("--db-path", link, "--dry-run").code, 0)
                self.assertEqual(run("--db-path", link).code, 0)
                self.assertEqual(self.columns(link), [(EVENT, DONE)])
                self.assertEqual([p for p in self.folder.iterdir() if "-wal" in p.name], [])

    def test_a_mount_of_the_file_alone_is_refused_whatever_its_name(self) -> None:
        for name in (b"store.db", b"with blank.db", b"tab\tand\nline.db", b"back\\slash\\040.db",
                     "größe.db".encode(), b"not utf-8 \xff\xfe.db"):  # fmt: skip
            with self.subTest(name):
                path = self.folder / os.fsdecode(name)
                self.make([{}], path=path)
                with self.mount_table((b"/", "ext4"), (self.real(path), "ext4")):
                    self.assert_refused(
                        "is a mount of the file alone.*mount its folder instead", path=path
                    )
                with self.mount_table((b"/", "ext4"), (self.real(path) + b"x", "ext4")):
                    self.assertEqual(run("--db-path", path).code, 0)

    def test_a_mount_of_the_file_alone_is_seen_through_a_symbolic_link(self) -> None:
        self.make([{}])
        link = self.folder / "link.db"
        link.symlink_to(self.path)
        with self.mount_table((b"/", "ext4"), (self.real(self.path), "ext4")):
            self.assert_refused("is a mount of the file alone", path=link)

    def test_a_mount_of_the_folder_is_fine(self) -> None:
        self.make([{}])
        with self.mount_table((b"/", "ext4"), (self.real(self.folder), "ext4")):
            result = self.tool("--dry-run")
        self.assertEqual(result.code, 0, result.err)
        self.assertNotIn("mount", result.err)

    def test_a_system_without_a_mount_table_is_no_obstacle(self) -> None:
        self.make([{}])
        with mock.patch.object(backfill, "MOUNTS", self.folder / "nowhere"):
            self.assertEqual(self.tool().code, 0)

    def test_a_network_mount_gets_one_note_and_a_local_one_none(self) -> None:
        self.make([{}])
        here = self.real(self.folder)
        for kind in ("nfs", "nfs4", "cifs", "smb3", "9p", "virtiofs", "fuse.sshfs", "fuse.rclone"):
            with self.subTest(kind), self.mount_table((b"/", "ext4"), (here, kind)):
                result = self.tool("--dry-run")
                self.assertEqual(result.code, 0, result.err)
                self.assertRegex(
                    result.err,
                    rf"\Anote: .* \({re.escape(kind)}\): every process must .*same mount",
                )
                self.assertEqual(result.err.count("same mount"), 1)
                self.assertEqual(self.tool("--dry-run", "--quiet").err, "")
        for kind in ("ext4", "xfs", "overlay", "fuseblk", "tmpfs", "nfsd", "zfs"):
            with self.subTest(kind), self.mount_table((b"/", "ext4"), (here, kind)):
                self.assertNotIn("mount", self.tool("--dry-run").err)

    def test_the_mount_that_counts_is_the_nearest_and_of_two_there_the_later(self) -> None:
        self.make([{}])
        here, above = self.real(self.folder), self.real(self.folder.parent)
        for name, mounts, noted in (
            ("network around local", [(b"/", "nfs4"), (here, "ext4")], False),
            ("local around network", [(b"/", "ext4"), (here, "nfs4")], True),
            ("in whatever order", [(here, "nfs4"), (b"/", "ext4")], True),
            ("mounted over, local on top", [(here, "nfs4"), (here, "ext4")], False),
            ("mounted over, network on top", [(here, "ext4"), (here, "nfs4")], True),
            ("a name that only begins alike", [(b"/", "ext4"), (here + b"2", "nfs4")], False),
            ("a folder further up", [(b"/", "ext4"), (above, "cifs")], True),
            ("the root", [(b"/", "9p")], True),
        ):
            with self.subTest(name), self.mount_table(*mounts):
                self.assertEqual("same mount" in self.tool("--dry-run").err, noted)

    def test_a_real_mount_of_the_file_alone_is_refused_and_one_of_the_folder_is_not(self) -> None:
        place, elsewhere = self.folder / "real place", self.folder / "elsewhere"
        place.mkdir()
        elsewhere.mkdir()
        self.path = place / "store.db"
        self.make([{}], path=self.path, journal_mode="wal")
        mounted = in_own_mounts(
            """
            touch "$2/alone \\\\ x.db" "$2/plain.db"
            mount --bind "$1/store.db" "$2/alone \\\\ x.db"
            mount --bind "$1/store.db" "$2/plain.db"
            for name in "alone \\\\ x.db" plain.db; do
                for dry in "" --dry-run; do
                    code=0
                    "$3" "$4" --db-path "$2/$name" $dry || code=$?
                    echo "code $code"
                done
            done
            umount "$2/plain.db"
            mount --bind "$1" "$2"
            "$3" "$4" --db-path "$2/store.db" --quiet
            """,
            place,
            elsewhere,
            sys.executable,
            SCRIPT,
        )
        self.assertEqual(mounted.returncode, 0, mounted.stderr)
        self.assertEqual(mounted.stdout.count("code 1\n"), 4, mounted.stdout)
        self.assertEqual(mounted.stderr.count("is a mount of the file alone"), 4, mounted.stderr)
        self.assertEqual(self.columns(), [(EVENT, DONE)])


class CompanionTest(MachineTest):
    """SQLite makes and deletes the files beside a store: they are no place for anything else."""

    def test_neither_backup_nor_log_file_may_have_the_name_of_one(self) -> None:
        self.make([{}])
        inner = self.folder / "inner"
        inner.symlink_to(self.folder)
        link = self.folder / "link.db"
        link.symlink_to(self.path)
        for suffix in ("-wal", "-shm", "-journal"):
            for folder in (self.folder, inner, self.folder / ".." / self.folder.name):
                for option in ("--backup", "--log-file"):
                    for store in (self.path, link):
                        file = folder / f"store.db{suffix}"
                        self.assert_refused(f"{option} names a file that SQLite keeps beside",
                                            option, file, path=store)  # fmt: skip
                        self.assertFalse(file.exists())

    def test_a_name_that_only_looks_alike_is_fine(self) -> None:
        self.make([{}])
        self.assertEqual(
            self.tool("--backup", self.folder / "store.db-wal2", "--log-file",
                      self.folder / "store-wal").code, 0,
        )  # fmt: skip

    def test_a_journal_that_lies_beside_the_backups_name_is_not_played_into_it(self) -> None:
        self.make([{}] * 50)
        backup = self.folder / "backup.db"
        for suffix in ("-journal", "-wal"):
            stale = Path(f"{backup}{suffix}")
            stale.write_bytes(b"of a store that is gone")
            before = self.path.read_bytes()
            result = self.tool("--backup", backup)
            self.assert_failed(result, f"{suffix}.*--backup")
            self.assertEqual(self.path.read_bytes(), before)
            self.assertFalse(backup.exists())
            stale.unlink()


# --- Backup: the place it lies in ---------------------------------------------------------------


class BackupPlaceTest(MachineTest):
    def setUp(self) -> None:
        super().setUp()
        self.backup = self.folder / "backup.db"

    def leftovers(self) -> list[str]:
        return [p.name for p in self.folder.iterdir() if p.name.startswith("backup")]

    def test_a_place_without_owners_or_modes_keeps_the_backup_and_opens_it_to_nobody(self) -> None:
        for function in ("chown", "chmod"):
            for number in (errno.EINVAL, errno.EPERM, errno.ENOTSUP):
                for mode in (0o600, 0o640, 0o644):
                    with self.subTest(function, errno=errno.errorcode[number], mode=oct(mode)):
                        for file in (self.path, self.backup):
                            file.unlink(missing_ok=True)
                        self.make([{}])
                        self.path.chmod(mode)
                        refused = mock.Mock(side_effect=OSError(number, os.strerror(number)))
                        with mock.patch.object(os, function, refused):
                            result = self.tool("--backup", self.backup)
                        self.assertEqual(result.code, 0, result.err)
                        refused.assert_called()
                        self.assertEqual(self.columns(self.backup), [(None, None)])
                        self.assertEqual(self.backup.stat().st_mode & 0o777 & ~mode, 0)
                        self.assertEqual(self.leftovers(), ["backup.db"])

    def test_a_place_that_opens_every_file_to_all_is_noted(self) -> None:
        self.make([{}])
        self.path.chmod(0o600)
        copy_permissions = backfill._copy_permissions

        def open_to_all(source: Path, copy: Path) -> None:
            copy_permissions(source, copy)
            copy.chmod(0o666)

        with mock.patch.object(backfill, "_copy_permissions", open_to_all):
            result = self.tool("--backup", self.backup)
        self.assertEqual(result.code, 0, result.err)
        self.assertRegex(result.err, r"note: .* keeps no permissions")

    def test_a_name_that_is_taken_in_between_is_not_overwritten(self) -> None:
        self.make([{}])
        copy_permissions = backfill._copy_permissions

        def take(source: Path, copy: Path) -> None:
            copy_permissions(source, copy)
            self.backup.write_text("precious")

        with mock.patch.object(backfill, "_copy_permissions", take):
            result = self.tool("--backup", self.backup)
        self.assert_failed(result, "name a new file with --backup")
        self.assertEqual(self.backup.read_text(), "precious")
        self.assertEqual(self.leftovers(), ["backup.db"])
        self.assert_open()

    def test_a_rename_that_fails_leaves_no_file(self) -> None:
        self.make([{}])
        with mock.patch.object(Path, "replace", side_effect=OSError(errno.EIO, "I/O error")):
            result = self.tool("--backup", self.backup)
        self.assert_failed(result, "cannot be made, so nothing was written")
        self.assertEqual(self.leftovers(), [])
        self.assert_open()

    def test_a_store_that_cannot_be_written_is_said_before_a_backup_is_made(self) -> None:
        for mode in JOURNAL_MODES:
            with self.subTest(mode):
                place = self.folder / mode
                place.mkdir()
                path = place / "store.db"
                self.make([{}], path=path, journal_mode=mode)
                path.chmod(0o444)
                place.chmod(0o777)
                self.folder.chmod(0o777)
                result = as_nobody("--db-path", path, "--backup", place / "backup.db")
                self.assert_failed(result, "the file cannot be written by this user")
                self.assertEqual(result.out, "")
                self.assertFalse((place / "backup.db").exists())

    def test_a_signal_in_a_backup_leaves_no_file_and_writes_nothing(self) -> None:
        sample_store.make_store(self.path, rows=1500, journal_mode="delete")
        before = self.path.read_bytes()
        for signum, code in ((signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)):
            with self.subTest(signum):
                process = self.launch("--backup", self.backup, prepared=self.SLOW_BACKUP)
                self.wait_until(self.leftovers, "a backup that is begun")
                process.send_signal(signum)
                result = self.end(process)
                self.assertEqual(result.code, code, result.err)
                self.assertRegex(result.err, rf"(?m)^interrupted by {signum.name}: ")
                self.assertEqual(self.leftovers(), [])
                self.assertEqual(self.path.read_bytes(), before)

    def test_a_backup_that_is_moved_away_meanwhile_costs_no_report(self) -> None:
        self.make([{}] * 5)
        fill_rows = backfill.fill_rows

        def move_first(*arguments: Any) -> None:
            self.backup.rename(self.folder / "in the archive.db")
            fill_rows(*arguments)

        with mock.patch.object(backfill, "fill_rows", move_first):
            result = self.tool("--backup", self.backup)
        self.assertEqual(result.code, 0, result.err)
        self.assertRegex(result.out, "(?m)^completed: 5 of 5 rows filled")

    @OWN_MODULE
    def test_what_ends_a_backup_is_named_as_elsewhere(self) -> None:
        sample_store.make_store(self.path, rows=800, journal_mode="delete")
        result = self.end(
            self.launch("--backup", self.backup,
                        prepared="import resource\n"
                        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))")
        )  # fmt: skip
        self.assert_failed(result, "cannot be made, so nothing was written.*ulimit -f")
        self.assertEqual(self.leftovers(), [])


class PoorSystemTest(MachineTest):
    """What some systems lack, Windows above all, is looked up with care."""

    # Names that Python has not on Windows, and a select() that takes no files.
    WITHOUT = """
import os, signal, select, sys, runpy
for module, names in ((os, "chown fchmod fchown geteuid getuid getgid set_blocking statvfs kill "
                           "O_NONBLOCK waitid"),
                      (signal, "SIGHUP SIGTSTP SIGTTOU SIGCONT SIGKILL")):
    for name in names.split():
        if hasattr(module, name): delattr(module, name)
os.supports_dir_fd.clear()
def no_select(*_): raise OSError(10038, "not a socket")
select.select = no_select
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""

    def test_a_run_there_fills_and_backs_up(self) -> None:
        for name, options in (
            ("plain", []),
            ("log file", ["--log-file", self.folder / "run.log"]),
            ("dry run", ["--dry-run"]),
            ("backup", ["--backup", self.folder / "backup.db"]),
        ):
            with self.subTest(name):
                self.path.unlink(missing_ok=True)
                self.make([{}, {"payload": MALFORMED}], journal_mode="wal")
                process = subprocess.run(
                    [sys.executable, "-c", self.WITHOUT, SCRIPT, "--db-path", self.path, "--json",
                     *options],
                    check=False, capture_output=True, text=True,
                )  # fmt: skip
                self.assertEqual(process.returncode, 0, process.stderr)
                self.assertNotIn("Traceback", process.stderr)
                self.assertEqual(json.loads(process.stdout)["filled"], 1)
        self.assertEqual(self.columns(), [(EVENT, DONE), (None, None)])
        self.assertEqual(set(self.columns(self.folder / "backup.db")), {(None, None)})


# --- Signals ------------------------------------------------------------------------------------


class SignalTest(MachineTest):
    # Slow enough to be met in the middle, quick enough for a test.
    SLOWLY = ("--batch-size", 5, "--pause", 0.02)

    def test_three_signals_end_a_run_with_the_summary_and_a_code_of_their_own(self) -> None:
        processes = []
        for signum, code in ((signal.SIGHUP, 129), (signal.SIGINT, 130), (signal.SIGTERM, 143)):
            path = self.folder / f"{signum.name}.db"
            self.make([{}] * 300, path=path, journal_mode="wal")
            process = self.launch("--json", *self.SLOWLY, path=path, prepared="")
            processes.append((signum, code, path, process))
        for signum, code, path, process in processes:
            with self.subTest(signum):
                self.wait_until_filled(10, path)
                process.send_signal(signum)
                result = self.end(process)
                self.assertEqual(result.code, code, result.err)
                self.assertEqual(result.summary["status"], "interrupted")
                self.assertIsNone(result.summary["error"])
                self.assertEqual(result.summary["filled"], self.count_filled(path))
                self.assertRegex(
                    result.err.splitlines()[-1], rf"^interrupted by {signum.name}: .*to go on$"
                )

    def test_a_signal_that_was_ignored_at_the_start_stays_ignored(self) -> None:
        processes = []
        for name in ("HUP", "INT", "TERM", "TSTP"):
            path = self.folder / f"{name}.db"
            self.make([{}] * 40, path=path)
            process = subprocess.Popen(
                ["sh", "-c", f"trap '' {name}; exec \"$@\"", "sh", sys.executable, SCRIPT,
                 "--db-path", path, "--quiet", *map(str, self.SLOWLY)],
                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, process_group=0,
            )  # fmt: skip
            self.addCleanup(process.communicate)
            self.addCleanup(process.kill)
            processes.append((name, path, process))
        for name, path, process in processes:
            with self.subTest(name):
                self.wait_until_filled(5, path)
                process.send_signal(getattr(signal, f"SIG{name}"))
        for name, path, process in processes:
            with self.subTest(name):
                self.assertEqual(process.wait(30), 0)
                self.assertEqual(self.count_filled(path), 40)

    def test_nohup_outlives_a_dropped_session(self) -> None:
        nohup = shutil.which("nohup")
        if nohup is None:
            self.skipTest("there is no nohup here")
        self.make([{}] * 40)
        process = subprocess.Popen(
            [nohup, sys.executable, SCRIPT, "--db-path", self.path, *map(str, self.SLOWLY)],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self.addCleanup(process.kill)
        self.wait_until_filled(5)
        process.send_signal(signal.SIGHUP)
        self.assertEqual(process.wait(30), 0)
        self.assertEqual(self.count_filled(), 40)

    def stop(self, process: subprocess.Popen[Any]) -> None:
        process.send_signal(signal.SIGTSTP)
        self.wait_until(lambda: is_stopped(process), "a stop by Ctrl-Z")

    def test_ctrl_z_stops_where_no_lock_is_held_and_the_run_goes_on_to_its_end(self) -> None:
        chance = random.Random(7)
        rows = 1000 if HEAVY else 200
        for mode in JOURNAL_MODES:
            with self.subTest(mode):
                self.path.unlink(missing_ok=True)
                self.make([{}] * rows, journal_mode=mode)
                process = self.launch(
                    "--json", "--batch-size", 5, "--pause", 0.03, prepared="", process_group=0
                )
                self.wait_until_filled(1)
                for _ in range(20 if HEAVY else 2):
                    self.stop(process)
                    stood = self.count_filled()
                    self.write_at_once()
                    time.sleep(0.05)
                    self.assertEqual(self.count_filled(), stood)
                    process.send_signal(signal.SIGCONT)
                    time.sleep(chance.uniform(0.001, 0.03))
                result = self.end(process)
                self.assertEqual(result.code, 0, result.err)
                self.assertEqual(result.summary["filled"], rows)
                self.assertEqual(self.count_filled(), rows)

    def test_the_time_that_it_was_stopped_is_not_counted(self) -> None:
        self.make([{}] * 15)
        process = self.launch("--json", *self.SLOWLY, prepared="", process_group=0)
        self.wait_until_filled(5)
        began = time.monotonic()
        self.stop(process)
        time.sleep(0.4)
        process.send_signal(signal.SIGCONT)
        summary = self.end(process).summary
        self.assertLess(summary["elapsed_seconds"], time.monotonic() - began - 0.1)

    def test_ctrl_z_in_a_backup_is_answered_at_once_and_obeyed_at_its_end(self) -> None:
        sample_store.make_store(self.path, rows=1200, journal_mode="delete")
        backup = self.folder / "backup.db"
        process = self.launch(
            "--json", "--backup", backup, prepared=self.SLOW_BACKUP, process_group=0
        )
        self.wait_until(lambda: list(self.folder.glob("backup.db.*")), "a backup that is begun")
        for _ in range(3):
            process.send_signal(signal.SIGTSTP)
            time.sleep(0.02)
        self.assertFalse(is_stopped(process))
        self.wait_until(lambda: is_stopped(process), "a stop by Ctrl-Z")
        self.assertTrue(backup.exists())
        self.write_at_once()
        process.send_signal(signal.SIGCONT)
        result = self.end(process)
        self.assertEqual(result.code, 0, result.err)
        self.assertEqual(result.err.count("stops as soon as the backup is made"), 1)
        self.assertEqual(self.query("PRAGMA integrity_check", backup), [("ok",)])

    def test_ctrl_z_ends_in_a_stop_also_while_a_lock_is_waited_for(self) -> None:
        self.make([{}])
        other = self.connect()
        other.execute("BEGIN EXCLUSIVE")
        process = self.launch("--json", process_group=0)
        time.sleep(0.3)
        self.stop(process)
        other.execute("ROLLBACK")
        self.write_at_once()
        process.send_signal(signal.SIGCONT)
        self.assertEqual(self.end(process).code, 0)
        self.assertEqual(self.columns(), [(EVENT, DONE)])

    def test_a_background_job_that_may_not_write_to_its_terminal_is_not_stopped_by_it(self) -> None:
        self.make([{}, {"payload": MALFORMED}] * 10)
        process = self.launch(prepared="update = b.Screen.update\n"
                              "def ttou(*a):\n"
                              "    os.kill(os.getpid(), signal.SIGTTOU); update(*a)\n"
                              "b.Screen.update = ttou", process_group=0)  # fmt: skip
        self.assertEqual(self.end(process).code, 0)

    def test_ctrl_c_in_the_first_moments_ends_without_a_traceback_of_ours(self) -> None:
        self.make([{}] * 400)
        chance = random.Random(3)
        rounds, swallowed = 60 if HEAVY else 4, 0
        for _ in range(rounds):
            processes = [self.launch("--batch-size", 1, "--pause", 1) for _ in range(3)]
            for process in processes:
                time.sleep(chance.uniform(0.0, 0.08))
                process.send_signal(signal.SIGINT)
            for process in processes:
                try:
                    err = process.communicate(timeout=2)[1].decode()
                except subprocess.TimeoutExpired:  # by Python itself, while it starts
                    swallowed += 1
                    process.kill()
                    continue
                with self.subTest(err):
                    # Line 0: Python has read the file, and run nothing of it yet.
                    self.assertNotRegex(err, rf"{SCRIPT.name}\", line (?!0,)")
                    if not err:  # else Python was not ready itself
                        self.assertIn(process.returncode, (130, -signal.SIGINT), err)
        self.assertLessEqual(swallowed, rounds)


# --- Streams ------------------------------------------------------------------------------------


class StreamTest(MachineTest):
    def make_ready(self, *, mode: str = "delete", sound: int = 40, malformed: int = 0) -> None:
        for suffix in ("", *backfill.COMPANIONS):
            Path(f"{self.path}{suffix}").unlink(missing_ok=True)
        self.make([{}] * sound + [{"payload": MALFORMED}] * malformed, journal_mode=mode)

    @unittest.skipUnless(FULL.exists(), "this system has no /dev/full")
    def test_a_report_that_cannot_be_written_is_one_error_and_exit_code_1(self) -> None:
        for options in ([], ["--json"], ["--dry-run"], ["--dry-run", "--json", "--quiet"]):
            with self.subTest(options), FULL.open("w") as full:
                self.make_ready()
                result = self.end(self.launch(*options, stdout=full))
                self.assert_failed(result, "output cannot be written: No space left on device")
                self.assertEqual(self.count_filled(), 0 if "--dry-run" in options else 40)

    @unittest.skipUnless(FULL.exists(), "this system has no /dev/full")
    def test_help_and_version_that_cannot_be_written_make_no_traceback(self) -> None:
        for option in ("--help", "--version"):
            with self.subTest(option), FULL.open("w") as full:
                self.assertNotIn("Error", self.end(self.launch(option, stdout=full)).err)
            closed = ["sh", "-c", 'exec "$@" >&-', "sh", sys.executable, str(SCRIPT), option]
            done = subprocess.run(closed, capture_output=True, text=True, check=False)
            self.assertEqual((done.returncode, done.stderr), (0, ""))

    @unittest.skipUnless(FULL.exists(), "this system has no /dev/full")
    def test_a_full_disk_behind_stderr_ends_no_work(self) -> None:
        for options in ([], ["--json"]):
            with self.subTest(options), FULL.open("w") as full:
                self.make_ready(malformed=10)
                result = self.end(self.launch("--batch-size", 5, *options, stderr=full))
                self.assertEqual(result.code, 0)
                self.assertEqual(self.count_filled(), 40)
                self.assertRegex(result.out, '"filled": 40' if options else "completed: 40 of 50")

    def test_closed_streams_end_no_work(self) -> None:
        for closed in ("2>&-", ">&-", "<&- >&- 2>&-"):
            for options in ("", f"--json --log-file {shlex.quote(str(self.folder / 'log'))}"):
                with self.subTest(closed, options=options):
                    self.make_ready(malformed=4)
                    process = subprocess.run(
                        ["sh", "-c", f'"$@" {options} {closed}', "sh", sys.executable, SCRIPT,
                         "--db-path", self.path],
                        check=False, capture_output=True, text=True,
                    )  # fmt: skip
                    self.assertEqual(process.returncode, 0, process.stderr)
                    self.assertEqual(self.count_filled(), 40)
                    self.assertEqual(self.query("PRAGMA integrity_check"), [("ok",)])
                    self.assertNotIn("Traceback", process.stderr)

    def test_a_reader_that_closes_early_is_no_error(self) -> None:
        reader, writer = os.pipe()
        os.close(reader)
        processes = []
        for number, (stream, *options) in enumerate(
            (
                ("stdout",),
                ("stdout", "--json"),
                ("stdout", "--dry-run"),
                ("stdout", "--help"),
                ("stdout", "--version"),
                ("stderr",),
                ("stderr", "--json"),
            )
        ):
            path = self.folder / f"{number}.db"
            self.make([{}] * 40 + [{"payload": MALFORMED}] * 4, path=path)
            streams: dict[str, Any] = {stream: writer}
            process = self.launch(*options, path=path, **streams)
            processes.append((stream, options, path, process))
        os.close(writer)
        for stream, options, path, process in processes:
            with self.subTest(stream, options=options):
                result = self.end(process)
                self.assertEqual(result.code, 0, result.err)
                self.assertNotRegex(result.err, "(?i)error|exception|pipe")
                if options in ([], ["--json"]):
                    self.assertEqual(self.count_filled(path), 40)

    def test_head_sees_the_first_line_and_nothing_complains(self) -> None:
        self.make_ready(malformed=4)
        process = subprocess.run(
            ["sh", "-c", '"$@" --quiet | head -1', "sh", sys.executable, SCRIPT, "--db-path",
             self.path, "--dry-run"],
            check=False, capture_output=True, text=True,
        )  # fmt: skip
        self.assertEqual((len(process.stdout.splitlines()), process.stderr), (1, ""))

    def test_a_stream_that_a_neighbour_made_non_blocking_loses_nothing(self) -> None:
        for stream, options in (("stdout", ["--json"]), ("stdout", []), ("stderr", [])):
            with self.subTest(stream, options=options):
                self.make_ready(malformed=4)
                reader, writer = full_pipe()
                os.set_blocking(writer, False)
                streams: dict[str, Any] = {stream: writer}
                process = self.launch("--batch-size", 5, *options, prepared="", **streams)
                if stream == "stdout":
                    self.wait_until_filled(40)
                else:
                    time.sleep(0.3)
                os.close(writer)
                written = read_all(reader).lstrip(b"x").decode()
                os.close(reader)
                result = self.end(process)
                self.assertEqual(result.code, 0, result.err)
                self.assertEqual(self.count_filled(), 40)
                if options:
                    self.assertEqual(json.loads(written)["filled"], 40)
                elif stream == "stdout":
                    self.assertRegex(written, r"\ABackfill of (?s:.*)\ncompleted: 40 of 44 .*\n\Z")
                else:
                    self.assertEqual(written.count("warning: audit_id"), 3)
                    self.assertIn("warning: 4 rows left NULL", written)

    def test_progress_goes_on_unseen_where_nobody_reads_it(self) -> None:
        draw = "b.REDRAW_SECONDS = b.PLAIN_SECONDS = 0.0"
        for mode in JOURNAL_MODES:
            for options in ([], ["--backup", self.folder / f"{mode}.backup"]):
                with self.subTest(mode, options=options):
                    self.make_ready(mode=mode)
                    reader, writer = full_pipe()
                    process = self.launch("--batch-size", 2, *options, prepared=draw, stderr=writer)
                    os.close(writer)
                    result = self.end(process, seconds=10)
                    os.close(reader)
                    self.assertEqual(result.code, 0)
                    self.assertEqual(self.count_filled(), 40)
                    self.write_at_once()

    def test_a_terminal_that_nobody_reads_delays_nothing(self) -> None:
        draw = "b.REDRAW_SECONDS = 0.0; b.BACKUP_PAGES = 1"
        sample_store.make_store(self.path, rows=1500, journal_mode="delete")
        screen, terminal = make_terminal(80)
        with contextlib.suppress(BlockingIOError):
            os.set_blocking(terminal, False)
            while True:
                os.write(terminal, b"x" * 60)
        os.set_blocking(terminal, True)
        process = self.launch("--quiet", prepared=draw, stderr=terminal)
        self.assertEqual(self.end(process, seconds=10).code, 0)
        process = self.launch(
            "--dry-run", "--batch-size", 1, "--quiet", prepared="", stderr=terminal
        )
        self.assertEqual(self.end(process, seconds=10).code, 0)
        os.close(terminal)
        os.close(screen)

    def test_ctrl_s_in_a_backup_keeps_neither_writers_out_nor_signals(self) -> None:
        backup = self.folder / "backup.db"
        for signum, code in ((None, 0), (signal.SIGTERM, 143)):
            with self.subTest(signum):
                self.make_ready(sound=1500)
                backup.unlink(missing_ok=True)
                screen, terminal = make_terminal(80)
                process = self.launch(
                    "--backup", backup, prepared=self.SLOW_BACKUP, stderr=terminal
                )
                self.assertTrue(select.select([screen], [], [], 20)[0], "no progress")
                os.write(screen, b"\x13")  # Ctrl-S
                try:
                    if signum is not None:
                        process.send_signal(signum)
                        self.wait_until(
                            lambda: not list(self.folder.glob("backup*")), "the backup's end"
                        )
                        self.write_at_once()
                    result = self.end(process, seconds=6)
                finally:
                    os.write(screen, b"\x11")
                    os.close(terminal)
                    os.close(screen)
                self.assertEqual(result.code, code)
                self.assertEqual(backup.exists(), signum is None)
                self.write_at_once()

    def test_what_is_said_of_ctrl_z_in_a_backup_waits_with_no_lock_held(self) -> None:
        self.make_ready(sound=1500)
        reader, writer = full_pipe()
        process = self.launch("--backup", self.folder / "backup.db", prepared=self.SLOW_BACKUP,
                              stderr=writer, process_group=0)  # fmt: skip
        os.close(writer)
        self.wait_until(lambda: list(self.folder.glob("backup.db.*")), "a backup that is begun")
        process.send_signal(signal.SIGTSTP)
        self.wait_until((self.folder / "backup.db").exists, "a backup that is made")
        self.write_at_once()
        os.close(reader)
        self.wait_until(lambda: is_stopped(process), "a stop by Ctrl-Z")
        process.send_signal(signal.SIGCONT)
        self.assertEqual(self.end(process).code, 0)

    def test_a_warning_that_nobody_reads_holds_no_lock_and_a_signal_ends_the_wait(self) -> None:
        self.make_ready(malformed=4)
        reader, writer = full_pipe()
        process = self.launch("--batch-size", 1, prepared="", stderr=writer)
        os.close(writer)
        self.wait_until_filled(40)
        time.sleep(0.3)
        self.write_at_once()
        process.send_signal(signal.SIGTERM)
        try:
            self.assertEqual(self.end(process, seconds=5).code, 143)
        except subprocess.TimeoutExpired:
            self.fail("a run that waits for the reader of its warnings is deaf to SIGTERM")
        finally:
            os.close(reader)

    def test_json_is_all_that_stands_on_stdout(self) -> None:
        self.make_ready(malformed=4)
        screen, terminal = make_terminal(80)
        for name, options, code in (
            ("dry run", ["--dry-run"], 0),
            ("run", [], 0),
            ("nothing to do", [], 0),
            ("backup there already", ["--backup", self.path], 1),
            ("no log", ["--log-file", self.folder / "nowhere" / "log"], 1),
        ):
            with self.subTest(name):
                result = self.end(self.launch("--json", *options, prepared="", stderr=terminal))
                self.assertEqual(result.code, code)
                self.assertEqual(result.out.count("\n"), 1)
                self.assertEqual(result.summary["error"] is None, code == 0)
                self.assertEqual(result.summary["status"], "failed" if code else "completed")
        os.close(terminal)
        os.close(screen)

    def on_a_terminal(self, *options: object, columns: int, **settings: Any) -> str:
        """Run with stderr on a terminal and stdout in a file; return what the screen got."""
        screen, terminal = make_terminal(columns)
        with (self.folder / "report.txt").open("w") as report:
            process = self.launch(*options, stdout=report, stderr=terminal, **settings)
            os.close(terminal)
            written = read_all(screen).decode()
        os.close(screen)
        self.assertEqual(process.wait(30), 0, written)
        return written

    def test_a_line_of_progress_is_as_wide_as_the_terminal_behind_stderr_lets_it(self) -> None:
        draw = "b.REDRAW_SECONDS = 0.0; b.BACKUP_PAGES = 50"
        for columns in (60, 24):
            with self.subTest(columns=columns):
                self.path.unlink(missing_ok=True)
                (self.folder / "backup.db").unlink(missing_ok=True)
                sample_store.make_store(self.path, rows=600, journal_mode="delete")
                with mock.patch.dict(os.environ, {"TERM": "xterm", "COLUMNS": "200"}):
                    screen = self.on_a_terminal("--batch-size", 20, "--backup",
                                                self.folder / "backup.db", columns=columns,
                                                prepared=draw)  # fmt: skip
                drawn = [
                    line
                    for line in re.split(r"\r\x1b\[K|\r\n", screen)
                    if "%" in line or line.startswith("Counting")
                ]
                self.assertGreater(len(drawn), 10)
                self.assertLess(max(map(len, drawn)), columns)
                self.assertIn("100.0 %", drawn[-1])

    def test_quiet_leaves_stderr_empty_whatever_is_in_the_rows(self) -> None:
        for options in ([], ["--dry-run"], ["--json"]):
            with self.subTest(options):
                self.make_ready(malformed=10)
                self.assertEqual(self.tool("--quiet", *options).err, "")
                self.make_ready(malformed=10)
                screen = self.on_a_terminal("--quiet", *options, columns=80, prepared="")
                self.assertEqual(screen, "")

    def test_quiet_still_says_errors(self) -> None:
        result = self.tool("--quiet")
        self.assert_failed(result, "there is no file")


class LogFileTest(MachineTest):
    def setUp(self) -> None:
        super().setUp()
        self.make([{}, {"payload": MALFORMED}])
        self.log = self.folder / "run.log"

    def test_a_pipe_that_nobody_reads_is_said_at_once(self) -> None:
        os.mkfifo(self.log)
        for dry in ([], ["--dry-run"]):
            result = self.end(self.launch("--log-file", self.log, *dry, prepared=""), seconds=5)
            self.assert_failed(result, f"{FIFO_WORDS}.*--log-file")
        self.assert_open()

    def test_a_pipe_with_a_reader_gets_the_whole_record(self) -> None:
        os.mkfifo(self.log)
        reader = os.open(self.log, os.O_RDONLY | os.O_NONBLOCK)
        result = self.end(self.launch("--json", "--log-file", self.log, prepared=""))
        os.set_blocking(reader, True)
        lines = read_all(reader).decode().splitlines()
        os.close(reader)
        self.assertEqual(result.code, 0, result.err)
        self.assertEqual(len(lines), 3)
        self.assertIn("begin: ", lines[0])
        self.assertIn("audit_id 2", lines[1])
        self.assertIn("end: ", lines[2])

    def start_into_a_full_pipe(self) -> tuple[subprocess.Popen[bytes], int]:
        """Start a run with 3,000 warnings; the pipe is full by now, and its reader still there."""
        self.path.unlink()
        self.make([{"payload": MALFORMED}] * 3000)
        os.mkfifo(self.log)
        reader = os.open(self.log, os.O_RDONLY | os.O_NONBLOCK)
        process = self.launch("--quiet", "--log-file", self.log, prepared="")
        time.sleep(0.5)
        return process, reader

    def test_a_pipe_that_is_read_no_more_holds_no_lock_and_a_signal_ends_the_wait(self) -> None:
        process, reader = self.start_into_a_full_pipe()
        self.write_at_once()
        process.send_signal(signal.SIGTERM)
        try:
            self.assertIn(self.end(process, seconds=5).code, (1, 143))
        except subprocess.TimeoutExpired:
            self.fail("a run that waits for the reader of its log is deaf to SIGTERM")
        finally:
            os.close(reader)

    def test_a_pipe_that_is_read_slowly_gets_the_whole_record(self) -> None:
        process, reader = self.start_into_a_full_pipe()
        os.set_blocking(reader, True)
        lines = read_all(reader).decode().splitlines()
        os.close(reader)
        result = self.end(process)
        self.assertEqual(result.code, 0, result.err)
        self.assertEqual(len(lines), 3002)

    @unittest.skipUnless(FULL.exists(), "this system has no /dev/full")
    def test_a_full_disk_behind_it_is_said_before_anything_is_written(self) -> None:
        before = self.path.read_bytes()
        backup = self.folder / "backup.db"
        for options in ([], ["--dry-run"], ["--backup", backup]):
            result = self.tool("--log-file", FULL, *options)
            self.assert_failed(result, "log file /dev/full cannot be written: No space left")
        self.assertEqual(self.path.read_bytes(), before)
        self.assertFalse(backup.exists())

    def test_a_line_that_is_written_in_part_only_ends_the_run(self) -> None:
        limit = 1_000_000
        with self.log.open("wb") as file:
            file.truncate(limit - 300)  # room for the first line, not for all the others
        self.path.unlink()
        self.make([{"payload": MALFORMED}] * 50)
        limited = f"import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))"
        result = self.end(
            self.launch("--json", "--batch-size", 1, "--log-file", self.log, prepared=limited)
        )
        self.assert_failed(result, "the log file .* cannot be written: File too large")
        self.assertEqual(result.summary["status"], "failed")
        self.assertEqual(self.log.stat().st_size, limit)

    def test_a_last_line_that_cannot_be_written_makes_it_a_failed_run(self) -> None:
        write = backfill.Log.write

        def fail_at_the_end(log: backfill.Log, lines: Iterable[tuple[str, str]]) -> None:
            lines = list(lines)
            if any(words.startswith("end: ") for _level, words in lines):
                raise backfill.StoreError("the log file cannot be written")
            write(log, lines)

        with mock.patch.object(backfill.Log, "write", fail_at_the_end):
            result = self.tool("--json", "--log-file", self.log)
        self.assert_failed(result, "the log file cannot be written")
        self.assertEqual((result.summary["status"], result.summary["filled"]), ("failed", 1))
        with mock.patch.object(backfill.Log, "write", fail_at_the_end):
            result = self.tool("--log-file", self.log)
        self.assertRegex(result.out.splitlines()[-1], "^failed: the log file cannot be written")

    def test_a_folder_or_the_store_is_no_log_file(self) -> None:
        link = self.folder / "link"
        link.symlink_to(self.path)
        for place in (self.folder, self.path, link):
            with self.subTest(place.name):
                self.assert_refused("--log-file", "--log-file", place)


# --- Where the store is -------------------------------------------------------------------------


class DefaultPathTest(MachineTest):
    def setUp(self) -> None:
        super().setUp()
        self.home = self.folder / "my home"
        self.home.mkdir()
        self.enterContext(contextlib.chdir(self.folder))
        self.environment = {
            name: value
            for name, value in os.environ.items()
            if name not in (*backfill.STORE_VARIABLES, "HOME")
        }

    def ask(self, *options: object, **variables: object) -> Result:
        """Run without --db-path."""
        environment = {
            **self.environment, "HOME": str(self.home), **{k: str(v) for k, v in variables.items()}
        }  # fmt: skip
        with mock.patch.dict(os.environ, environment, clear=True):
            return run(*options)

    def options_in(self, result: Result) -> list[str]:
        """The stores that an error names, as a shell would read its options."""
        self.assert_failed(result, "there is no file .*which is the default.*--db-path")
        words = shlex.split(result.err.partition("(found here: ")[2].rstrip(")\n"))
        return [
            path.rstrip(",") for option, path in itertools.pairwise(words) if option == "--db-path"
        ]

    def test_each_place_of_a_release_is_named_as_the_option_to_type(self) -> None:
        self.assertEqual(self.options_in(self.ask()), [])
        for path in (self.home / ".octopusos/store/octopusos/db.sqlite",
                     self.home / ".agentos/store/agentos/db.sqlite",
                     Path("store/registry.sqlite")):  # fmt: skip
            with self.subTest(path.name):
                path.parent.mkdir(parents=True)
                self.make([{}], path=path)
                for dry in ([], ["--dry-run"]):
                    self.assertEqual(self.options_in(self.ask(*dry)), [str(path)])
                self.assert_open(path)
                self.assertEqual(self.ask("--db-path", path).code, 0)
                path.unlink()

    def test_each_variable_of_a_release_is_named_and_a_store_only_once(self) -> None:
        elsewhere = self.folder / "it's elsewhere.db"
        self.make([{}], path=elsewhere)
        for name in ("AGENTOS_DB_PATH", "OCTOPUSOS_DB_PATH", "SQLITE_PATH"):
            with self.subTest(name):
                self.assertEqual(self.options_in(self.ask(**{name: elsewhere})), [str(elsewhere)])
                self.assertEqual(self.options_in(self.ask(**{name: self.folder / "gone"})), [])
        both = {"AGENTOS_DB_PATH": elsewhere, "SQLITE_PATH": elsewhere}
        self.assertEqual(self.options_in(self.ask(**both)), [str(elsewhere)])
        self.assert_open(elsewhere)

    def test_all_of_them_are_named_and_none_is_picked(self) -> None:
        paths = [self.home / ".octopusos/store/octopusos/db.sqlite",
                 self.home / ".agentos/store/agentos/db.sqlite"]  # fmt: skip
        for path in paths:
            path.parent.mkdir(parents=True)
            self.make([{}], path=path)
        self.assertEqual(set(self.options_in(self.ask())), set(map(str, paths)))
        for path in paths:
            self.assert_open(path)

    def test_a_default_that_is_there_is_used(self) -> None:
        default = self.home / ".agentos" / "store.db"
        default.parent.mkdir()
        self.make([{}], path=default)
        self.assertEqual(self.ask().code, 0)
        self.assertEqual(self.columns(default), [(EVENT, DONE)])

    def test_a_user_without_a_home_gets_the_advice_and_not_exit_code_2(self) -> None:
        Path("store").mkdir()
        self.make([{}], path=Path("store/registry.sqlite"))
        with (
            mock.patch.dict(os.environ, self.environment, clear=True),
            mock.patch("pwd.getpwuid", side_effect=KeyError("no such user")),
        ):
            result = run()
        self.assertEqual(self.options_in(result), ["store/registry.sqlite"])

    @unittest.skipUnless(IS_ROOT, "only root can become somebody else")
    def test_a_home_that_may_not_be_searched_ends_in_a_sentence(self) -> None:
        self.home.chmod(0o700)
        self.folder.chmod(0o755)
        with mock.patch.dict(os.environ, {**self.environment, "HOME": str(self.home)}, clear=True):
            result = as_nobody()
        self.assert_failed(result, "(cannot be|no file) .*store.db.*--db-path")


# --- Pythons ------------------------------------------------------------------------------------


class OtherPythonTest(MachineTest):
    def test_an_older_python_is_told_in_one_line(self) -> None:
        old = interpreters(range(8, 11))
        if not old:
            self.skipTest("this machine has no Python 3.8, 3.9 or 3.10")
        for minor, python in old.items():
            with self.subTest(python):
                process = subprocess.run(
                    [python, SCRIPT], check=False, capture_output=True, text=True
                )
                self.assertEqual((process.returncode, process.stdout), (1, ""))
                self.assertEqual(len(process.stderr.splitlines()), 1, process.stderr)
                self.assertIn(f"needs Python 3.11 or later, and {python} is 3.{minor}",
                              process.stderr)  # fmt: skip

    @OWN_MODULE
    def test_a_python_without_sqlite3_is_told_in_one_line(self) -> None:
        hidden = (
            "import runpy, sys; sys.modules['_sqlite3'] = None; sys.argv = sys.argv[1:]\n"
            "runpy.run_path(sys.argv[0], run_name='__main__')"
        )
        process = subprocess.run(
            [sys.executable, "-c", hidden, SCRIPT], check=False, capture_output=True, text=True
        )
        self.assertEqual((process.returncode, process.stdout), (1, ""))
        self.assertEqual(len(process.stderr.splitlines()), 1, process.stderr)
        self.assertIn(f"{sys.executable} was built without sqlite3", process.stderr)

    def test_modules_beside_the_script_neither_break_it_nor_are_run(self) -> None:
        self.make([{}])
        script = shutil.copy(SCRIPT, self.folder)
        for name in ("json", "logging", "sqlite3", "argparse", "__future__", "signal", "os",
                     "typing", "select", "tempfile", "re", "pathlib", "dataclasses"):  # fmt: skip
            (self.folder / f"{name}.py").write_text(
                "open(__file__ + '.was-run', 'w').close(); raise SystemExit('not ours')"
            )
        (self.folder / "importlib").mkdir()
        (self.folder / "importlib" / "__init__.py").write_text("raise SystemExit('not ours')")
        for how in ([script], ["-I", script], ["-P", script], ["-m", Path(script).stem]):
            with self.subTest(how):
                process = subprocess.run(
                    [sys.executable, *how, "--db-path", self.path, "--json"],
                    check=False, capture_output=True, text=True, cwd=self.folder,
                )  # fmt: skip
                if how[0] != "-m":  # there Python itself imports what is beside it
                    self.assertEqual(process.returncode, 0, process.stderr)
                    self.assertEqual(list(self.folder.glob("*.was-run")), [])
        self.assertEqual(self.columns(), [(EVENT, DONE)])


# --- Words that name the cause ------------------------------------------------------------------


class CauseTest(MachineTest):
    """Each cause has exit code 1, one error line that names it and the next step."""

    def patch_header(self, path: Path, offset: int, content: bytes) -> None:
        with path.open("r+b") as file:
            file.seek(offset)
            file.write(content)

    def test_a_file_that_sqlite_cannot_read_is_called_what_it_is(self) -> None:
        newer = "newer SQLite"
        for name, offset, content, words, unlike in (
            ("not a database", 0, b"XXXX", "not a SQLite database, or is encrypted", "damaged"),
            ("a newer schema format", 44, b"\0\0\0\x05", newer, "damaged|user who may"),
            ("a newer format to read", 19, b"\x03", newer, "damaged|not a SQLite database"),
            ("a newer format to write", 18, b"\x03", newer, "damaged|user who may"),
        ):
            with self.subTest(name):
                self.path.unlink(missing_ok=True)
                self.make([{}])
                self.patch_header(self.path, offset, content)
                before = self.path.read_bytes()
                self.assert_failed(self.tool(), words, unlike)
                self.assertEqual(self.path.read_bytes(), before)

    def test_a_schema_that_this_sqlite_cannot_read_is_not_called_damaged(self) -> None:
        self.make([{}], extra="CREATE TABLE later (a);")
        other = self.connect()
        other.execute("PRAGMA writable_schema = ON")
        other.execute(
            "UPDATE sqlite_master SET sql = 'CREATE TABLE later (a) FUTURE' WHERE name = 'later'"
        )
        other.close()
        version = re.escape(sqlite3.sqlite_version)
        self.assert_refused(rf"SQLite {version} cannot read its schema.*newer SQLite \(malformed")

    def test_damaged_pages_are_called_damaged(self) -> None:
        self.make([{}] * 500)
        self.patch_header(self.path, 4096 * 3, b"\xff" * 4096 * 20)
        result = self.tool()
        self.assert_failed(result, "it is damaged: PRAGMA integrity_check")

    def test_a_wal_store_copied_without_its_wal_says_so(self) -> None:
        other = self.connect()
        other.execute("PRAGMA journal_mode = wal")
        other.executescript(sample_store.SCHEMA)
        copy = self.folder / "copy.db"
        shutil.copy(self.path, copy)
        self.assert_refused("copy of a WAL store needs its -wal", path=copy)

    @OWN_MODULE
    def test_a_search_index_out_of_step_is_named_with_its_cure(self) -> None:
        self.make([{}])
        other = self.connect()
        try:
            other.executescript(
                """
                CREATE VIRTUAL TABLE words USING fts5 (payload, content = 'task_audits',
                                                       content_rowid = 'audit_id');
                CREATE TRIGGER words_kept AFTER UPDATE ON task_audits BEGIN
                    INSERT INTO words (words, rowid, payload)
                        VALUES ('delete', old.audit_id, old.payload);
                    INSERT INTO words (rowid, payload) VALUES (new.audit_id, new.payload);
                END;
                """
            )
        except sqlite3.OperationalError as error:
            self.skipTest(str(error))
        self.assert_failed(self.tool(), r"search index .*VALUES\('rebuild'\)", "backup")
        self.assert_open()
        other.execute("INSERT INTO words (words) VALUES ('rebuild')")
        self.fill()
        self.assertEqual(self.columns(), [(EVENT, DONE)])

    def test_a_path_that_is_too_long_for_sqlite_is_named_to_its_end(self) -> None:
        real = Path(os.path.realpath(self.folder))
        for mode, (length, code) in itertools.product(JOURNAL_MODES, ((504, 0), (505, 1))):
            with self.subTest(mode, length=length):
                place = real / (mode[0] + "x" * 200) / ("y" * 150)
                place /= "z" * (length - len(os.fsencode(place)) - len("//store.db"))
                place.mkdir(parents=True)
                path = place / "store.db"
                made = self.folder / "made.db"
                self.make([{}], path=made, journal_mode=mode)
                made.rename(path)
                for dry in ([], ["--dry-run"]):
                    result = run("--db-path", path, *dry)
                    if code:
                        self.assert_failed(result, "more than the 504 bytes", "permission")
                        self.assertIn("z/store.db: ", result.err)
                    else:
                        self.assertEqual(result.code, 0, result.err)
                if code:
                    with contextlib.chdir(place):
                        self.assert_failed(run("--db-path", "store.db"), "504 bytes")

    def start_limited(
        self, limits: Iterable[int], resource: str, rows: int
    ) -> Iterator[tuple[str, int, list[str], Path, Result]]:
        """Run, and run dry, under limits of its process, on a store of each mode, all at once."""
        processes = []
        for mode, limit, options in itertools.product(JOURNAL_MODES, limits, ([], ["--dry-run"])):
            path = self.folder / f"{mode}{limit}{len(options)}.db"
            self.make([{}] * rows, path=path, journal_mode=mode)
            prepared = (
                f"import resource\nresource.setrlimit(resource.{resource}, ({limit}, {limit}))"
            )
            process = self.launch("--quiet", *options, path=path, prepared=prepared)
            processes.append((mode, limit, options, path, process))
        for mode, limit, options, path, process in processes:
            yield mode, limit, options, path, self.end(process)

    def test_no_file_descriptors_are_called_that(self) -> None:
        # How many the tool may have open, the three streams among them: from too few to enough.
        codes = set()
        limits = (3, 4, 5, 8)
        for mode, limit, options, _, result in self.start_limited(limits, "RLIMIT_NOFILE", 1):
            with self.subTest(mode, limit=limit, options=options):
                codes.add(result.code)
                if result.code:
                    self.assert_failed(result, "no file descriptors .*ulimit -n", "permissions")
        self.assertEqual(codes, {0, 1})

    def test_a_limit_of_file_sizes_is_among_the_causes_that_are_named(self) -> None:
        limits = (512, 8192)
        for mode, limit, options, path, result in self.start_limited(limits, "RLIMIT_FSIZE", 200):
            with self.subTest(mode, limit=limit, options=options):
                if mode == "delete" and options:
                    self.assertEqual(result.code, 0, result.err)
                else:
                    words = r"limit of file sizes \(ulimit -f\).*; File too large\)"
                    self.assert_failed(result, words, "shared memory|copy all")
                self.assert_open(path)

    def test_a_disk_that_cannot_be_read_is_called_that_in_a_dry_run_too(self) -> None:
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR_READ
        error.sqlite_errorname = "SQLITE_IOERR_READ"
        for mode in JOURNAL_MODES:
            path = self.folder / f"{mode}.db"
            self.make([{}], path=path, journal_mode=mode)
            for options in ([], ["--dry-run"]):
                with (
                    self.subTest(mode, options=options),
                    mock.patch.object(backfill, "fill_rows", side_effect=error),
                ):
                    result = run("--db-path", path, *options)
                    self.assert_failed(result, "reading or writing it failed", "copy all")

    @OWN_MODULE
    def test_the_journal_that_a_kill_left_is_named_in_a_dry_run_and_cured_by_a_run(self) -> None:
        self.make([{}] * 200)
        killed = subprocess.run(
            [sys.executable, "-c",
             "import os, sqlite3, sys; store = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
             "store.execute('PRAGMA cache_size = 2'); store.execute('BEGIN')\n"
             "store.execute('UPDATE task_audits SET level = payload')\n"
             "os.kill(os.getpid(), 9)", self.path],
            check=False,
        )  # fmt: skip
        self.assertEqual(killed.returncode, -signal.SIGKILL)
        self.assertTrue(Path(f"{self.path}-journal").stat().st_size)
        before = self.path.read_bytes()
        result = self.tool("--dry-run")
        self.assert_failed(result, "killed left its journal: a run without --dry-run", "permission")
        self.assertEqual(self.path.read_bytes(), before)
        self.fill()
        self.assertEqual(self.columns(), [(EVENT, DONE)] * 200)
        self.assert_whole()

    def test_a_file_or_folder_that_this_user_may_not_use_is_told_apart(self) -> None:
        for name, mode, folder, options, words in (
            ("file", 0o444, 0o777, [], "the file cannot be written by this user: run as a user"),
            ("file", 0o000, 0o777, [], "the file cannot be (read|written) by this user: run as"),
            ("file", 0o000, 0o777, ["--dry-run"], "the file cannot be read by this user"),
            ("folder", 0o666, 0o555, [], "its folder, .*cannot be written by this user"),
            ("way", 0o666, 0o600, [], r"Permission denied\): run as a user who may"),
        ):
            for journal_mode in JOURNAL_MODES:
                with self.subTest(name, mode=oct(mode), options=options, journal=journal_mode):
                    place = self.folder / f"{journal_mode}{mode}{folder}{len(options)}"
                    place.mkdir()
                    path = place / "store.db"
                    self.make([{}], path=path, journal_mode=journal_mode)
                    path.chmod(mode)
                    place.chmod(folder)
                    self.folder.chmod(0o755)
                    result = as_nobody("--db-path", path, *options)
                    place.chmod(0o755)
                    path.chmod(0o644)
                    self.assert_failed(result, words)
                    self.assert_open(path)

    def test_the_folder_that_counts_is_the_one_behind_a_symbolic_link(self) -> None:
        place, other = self.folder / "place", self.folder / "other"
        place.mkdir()
        other.mkdir()
        self.make([{}], path=place / "store.db")
        (place / "store.db").chmod(0o666)
        (other / "link.db").symlink_to(place / "store.db")
        place.chmod(0o555)
        other.chmod(0o777)
        self.folder.chmod(0o755)
        result = as_nobody("--db-path", other / "link.db")
        place.chmod(0o755)
        self.assert_failed(result, "its folder, .*cannot be written by this user")

    @unittest.skipUnless(IS_ROOT, "only root can become somebody else")
    def test_a_dry_run_of_an_idle_wal_store_is_the_owners_business(self) -> None:
        self.folder.chmod(0o777)
        self.make([{}], journal_mode="wal")
        self.path.chmod(0o666)
        before = self.files()
        result = as_nobody("--db-path", self.path, "--dry-run")
        self.assert_failed(result, r"run as its owner \(user id 0\)")
        self.assertEqual(self.files(), before)
        os.chown(self.path, 65534, 65534)
        self.assertEqual(as_nobody("--db-path", self.path, "--dry-run").code, 0)
        os.chown(self.path, 0, 0)
        other = self.connect()
        other.execute("SELECT count(*) FROM task_audits").fetchone()
        for suffix in ("-wal", "-shm"):
            Path(f"{self.path}{suffix}").chmod(0o666)
        self.assertEqual(as_nobody("--db-path", self.path, "--dry-run").code, 0)

    def test_a_mount_that_is_read_only_is_told_apart(self) -> None:
        for mode in JOURNAL_MODES:
            with self.subTest(mode):
                path = self.folder / f"{mode}.db"
                self.make([{}], path=path, journal_mode=mode)
                mounted = in_own_mounts(
                    """
                    mount -t tmpfs tmpfs /mnt
                    cp "$1" /mnt/store.db
                    mount -o remount,bind,ro /mnt
                    shift
                    code=0; "$@" --quiet || code=$?; echo "code $code"
                    code=0; "$@" --quiet --dry-run || code=$?; echo "code $code"
                    """,
                    path, sys.executable, SCRIPT, "--db-path", "/mnt/store.db",
                )  # fmt: skip
                errors = mounted.stderr.splitlines()
                self.assertIn("code 1\n", mounted.stdout)
                self.assertRegex(errors[0], "mounted read-only: run where it can be written")
                if mode == "wal":  # SQLite cannot look at it without a -shm
                    self.assertEqual(mounted.stdout.count("code 1"), 2)
                    self.assertRegex(errors[1], "copy all its files, with -wal")
                    self.assertNotIn("check the permissions", errors[1])
                else:
                    self.assertRegex(mounted.stdout, r"(?m)^dry run: 1 of 1 rows(.*\n)+code 0")

    def test_a_disk_without_room_or_inodes_is_called_that(self) -> None:
        for mode in JOURNAL_MODES:
            for what, options in (("room", "size=2m"), ("inodes", "size=2m,nr_inodes=6")):
                if not HEAVY and (mode, what) not in (("wal", "room"), ("delete", "inodes")):
                    continue
                with self.subTest(mode, without=what):
                    path = self.folder / f"{mode}{what}.db"
                    self.make([{}] * 200, path=path, journal_mode=mode)
                    mounted = in_own_mounts(
                        """
                        mount -t tmpfs -o "$2" tmpfs /mnt
                        cp "$1" /mnt/store.db
                        for n in 1 2 3 4 5 6 7 8; do touch /mnt/$n 2>/dev/null || true; done
                        dd if=/dev/zero of=/mnt/1 bs=4096 2>/dev/null || true
                        shift 2
                        for option in "" "--backup /mnt/backup.db" "--log-file /mnt/log" ; do
                            code=0; "$@" --quiet $option >/dev/null || code=$?; echo "code $code"
                        done
                        cd /mnt; echo *backup*
                        """,
                        path, options, sys.executable, SCRIPT, "--db-path", "/mnt/store.db",
                    )  # fmt: skip
                    errors = mounted.stderr.splitlines()
                    self.assertEqual(len(errors), 3, mounted.stderr)
                    self.assertEqual(mounted.stdout, "code 1\n" * 3 + "*backup*\n")
                    for error in errors:
                        self.assertRegex(error, "(?i)full|no room|No space left")
                        self.assertNotRegex(error, "permission|shared memory")

    def test_an_immutable_file_is_named_before_a_backup_is_made(self) -> None:
        for mode in JOURNAL_MODES:
            path = self.folder / f"{mode}.db"
            self.make([{}], path=path, journal_mode=mode)
            chattr = shutil.which("chattr")
            if (
                chattr is None
                or subprocess.run([chattr, "+i", path], check=False, capture_output=True).returncode
            ):
                self.skipTest("nobody can make a file immutable here")
            try:
                with self.subTest(mode):
                    result = run("--db-path", path, "--backup", self.folder / "backup.db")
                    self.assert_failed(result, r"the file is immutable \(lsattr tells\)")
                    self.assertFalse((self.folder / "backup.db").exists())
                    self.assert_open(path)
            finally:
                subprocess.run([chattr, "-i", path], check=True)

    def test_a_store_that_is_moved_away_or_replaced_in_mid_run_ends_it(self) -> None:
        for mode in JOURNAL_MODES:
            for what in ("moved", "replaced"):
                with self.subTest(mode, what=what):
                    place = self.folder / f"{mode}-{what}"
                    place.mkdir()
                    path, away, other = place / "store.db", place / "away.db", place / "new.db"
                    self.make([{}] * 30, path=path, journal_mode=mode)
                    self.make([{}], path=other, journal_mode=mode)
                    write = backfill.backfill_batch

                    def move_after(
                        *arguments: Any,
                        write: Any = write,
                        path: Path = path,
                        away: Path = away,
                        other: Path | None = other if what == "replaced" else None,
                    ) -> Any:
                        done = write(*arguments)
                        if not away.exists():
                            path.rename(away)
                            if other is not None:
                                other.rename(path)
                        return done

                    with mock.patch.object(backfill, "backfill_batch", move_after):
                        result = run("--db-path", path, "--json", "--batch-size", 10)
                    self.assert_failed(
                        result, "moved (away|or replaced).*the agents use", "permission|damaged"
                    )
                    self.assertEqual(result.summary["status"], "failed")
                    self.assertLess(result.summary["batches"], 3)
                    if what == "replaced" and mode == "delete":
                        self.assert_open(path)
                    elif what == "replaced":  # the new file must not be given the old one's -wal
                        self.assertRegex(result.err, "-wal")

    def test_a_store_that_is_replaced_while_it_is_opened_is_not_filled(self) -> None:
        other = self.folder / "other.db"
        self.make([{}] * 3, path=self.path, journal_mode="wal")
        self.make([{}] * 3, path=other, journal_mode="wal")
        open_store = backfill.open_store

        def open_and_replace(*arguments: Any, **options: Any) -> sqlite3.Connection:
            store = open_store(*arguments, **options)
            if other.exists():
                self.path.rename(self.folder / "away.db")
                other.rename(self.path)
            return store

        with mock.patch.object(backfill, "open_store", open_and_replace):
            result = run("--db-path", self.path, "--json")
        self.assert_failed(result, "is not the file any more", "damaged")
        self.assertIsNone(result.summary["coverage_before_pct"])
        self.assert_open(self.path)

    def test_a_working_folder_that_is_gone_disturbs_nothing(self) -> None:
        self.make([{}])
        gone = self.folder / "gone"
        gone.mkdir()
        process = subprocess.run(
            ["sh", "-c", 'rmdir "$PWD"; exec "$@"', "sh", sys.executable, SCRIPT,
             "--db-path", self.path, "--json"],
            cwd=gone, check=False, capture_output=True, text=True,
        )  # fmt: skip
        self.assertEqual(process.returncode, 0, process.stderr)
        self.assertEqual(json.loads(process.stdout)["filled"], 1)
        gone.mkdir()
        process = subprocess.run(
            ["sh", "-c", 'rmdir "$PWD"; exec "$@"', "sh", sys.executable, SCRIPT,
             "--db-path", "store.db", "--log-file", self.folder / "log"],
            cwd=gone, check=False, capture_output=True, text=True,
        )  # fmt: skip
        self.assert_failed(Result(process.returncode, process.stdout, process.stderr), "store.db")

    def test_a_store_of_several_causes_is_never_created(self) -> None:
        for name in ("nowhere.db", "nowhere/store.db", "store.db/below"):
            with self.subTest(name):
                self.path.unlink(missing_ok=True)
                self.make([{}])
                result = run("--db-path", self.folder / name)
                self.assert_failed(result, "there is no file .*--db-path")
                self.assertEqual([p.name for p in self.folder.iterdir()], ["store.db"])

    def test_an_error_code_that_this_python_has_no_name_for_goes_by_its_primary_code(self) -> None:
        self.make([{}])
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR | 99 << 8
        error.sqlite_errorname = "unknown"
        with mock.patch.object(backfill, "fill_rows", side_effect=error):
            self.assert_failed(self.tool(), "reading or writing it failed", "SQLite gave up")


# --- Neighbours ---------------------------------------------------------------------------------

NEIGHBOURS = """
CREATE TABLE neighbour (
    id INTEGER PRIMARY KEY,
    body TEXT CHECK (json_valid(body)),
    kind TEXT GENERATED ALWAYS AS (json_extract(body, '$.kind')) VIRTUAL
);
CREATE INDEX neighbour_kind ON neighbour (json_extract(body, '$.kind'));
CREATE INDEX neighbour_valid ON neighbour (kind) WHERE json_valid(body);
CREATE VIEW neighbour_kinds AS SELECT json_extract(body, '$.kind') AS kind FROM neighbour;
CREATE TRIGGER neighbour_seen AFTER INSERT ON neighbour BEGIN
    UPDATE neighbour SET body = json_set(new.body, '$.seen', 1) WHERE id = new.id;
END;
INSERT INTO neighbour (body) VALUES ('{"kind": "x"}');
INSERT INTO schema_version (version) VALUES ('49'), ('v66'), ('0.99.0-v99'), ('Größe'), ('');
"""
SEARCH = """
CREATE VIRTUAL TABLE search USING fts5 (payload);
INSERT INTO search (rowid, payload) SELECT audit_id, payload FROM task_audits;
CREATE TRIGGER search_kept AFTER UPDATE ON task_audits BEGIN
    UPDATE search SET payload = new.payload WHERE rowid = new.audit_id;
END;
"""


class NeighbourTest(MachineTest):
    def test_a_store_whose_neighbours_call_json_functions_is_filled(self) -> None:
        for mode in JOURNAL_MODES:
            with self.subTest(mode):
                path = self.folder / f"{mode}.db"
                self.make([{}] * 5, path=path, journal_mode=mode, extra=NEIGHBOURS)
                for dry in (["--dry-run"], []):
                    result = run("--db-path", path, "--json", *dry)
                    self.assertEqual(result.code, 0, result.err)
                    self.assertEqual(result.summary["filled"], 5)
                self.assertEqual(self.columns(path), [(EVENT, DONE)] * 5)
                self.assert_whole(path)

    def test_a_search_index_kept_by_a_trigger_is_no_obstacle(self) -> None:
        self.make([{}] * 5)
        try:
            self.connect().executescript(SEARCH)
        except sqlite3.OperationalError as error:
            self.skipTest(str(error))
        self.assertEqual(self.fill()["filled"], 5)
        self.assertEqual(self.columns(), [(EVENT, DONE)] * 5)

    def test_odd_version_texts_are_read_as_what_they_are(self) -> None:
        for version, accepted in (("49", True), ("v66", True), ("0.99.0-v99", True),
                                  ("0.20.9", False), ("20", False), ("v9", False),
                                  ("0.9.0-v9", False)):  # fmt: skip
            with self.subTest(version):
                self.path.unlink(missing_ok=True)
                self.make([{}])
                self.query("DELETE FROM schema_version")
                self.query(f"INSERT INTO schema_version (version) VALUES ('{version}')")
                if accepted:
                    self.assertEqual(self.tool().code, 0)
                else:
                    self.assert_refused("apply AgentOS's migration v21 first")

    def test_a_table_that_cannot_be_walked_or_written_is_refused_with_its_reason(self) -> None:
        columns = "event_type, payload, created_at"
        both = "source_event_ts, supervisor_processed_at"
        key = "audit_id is not the INTEGER PRIMARY KEY"
        for name, schema, words in (
            ("WITHOUT ROWID",
             f"(audit_id INTEGER PRIMARY KEY, {columns}, {both}) WITHOUT ROWID", key),
            ("DESC", f"(audit_id INTEGER PRIMARY KEY DESC, {columns}, {both})", key),
            ("GENERATED, virtual",
             f"(audit_id INTEGER PRIMARY KEY, {columns}, supervisor_processed_at,"
             " source_event_ts TEXT GENERATED ALWAYS AS (created_at) VIRTUAL)",
             "source_event_ts is a GENERATED column"),
            ("GENERATED, stored",
             f"(audit_id INTEGER PRIMARY KEY, {columns}, source_event_ts,"
             " supervisor_processed_at TEXT AS (created_at) STORED)",
             "supervisor_processed_at is a GENERATED column"),
        ):  # fmt: skip
            with self.subTest(name):
                self.path.unlink(missing_ok=True)
                self.query(f"CREATE TABLE task_audits {schema}")
                self.query(
                    "INSERT INTO task_audits (audit_id, event_type, payload)"
                    " VALUES (1, 'SUPERVISOR_ERROR', '{}')"
                )
                self.assert_refused(words)

    def test_a_generated_column_beside_the_two_is_no_obstacle(self) -> None:
        self.make([{}], extra="ALTER TABLE task_audits ADD COLUMN day TEXT"
                              " GENERATED ALWAYS AS (substr(source_event_ts, 1, 10)) VIRTUAL;"
                              " CREATE INDEX by_day ON task_audits (day);")  # fmt: skip
        self.fill()
        self.assertEqual(self.query("SELECT day FROM task_audits"), [(EVENT[:10],)])


# --- verify_backfill.sql --------------------------------------------------------------------

VERIFY = HERE / "verify_backfill.sql"
SHELL = shutil.which("sqlite3")

# Letters of every kind, as they stand in a payload's text beside the timestamps.
LETTERS = [
    "plain", "no findings — allowed", "“high”, ‘low’", "策略 matched", "é", "e\u0301", "🛑 stopped",
    "\N{NO-BREAK SPACE}«»\N{NO-BREAK SPACE}", "\x7f", "\u202e", "\ufffd", "\uffff", "[{}]", '"\\"',
    "\\u00e9", "ﬁ" * 500,
]  # fmt: skip

# One row among many is changed: (id, what is changed, the checks that must fail).
TAMPERINGS: list[tuple[str, str, set[int]]] = [
    ("500 ms off", "source_event_ts = replace(source_event_ts, '.0', '.5')", {2}),
    ("2 ms off", "supervisor_processed_at = replace(supervisor_processed_at, '.5', '.502')", {2}),
    ("an epoch", "source_event_ts = 946684800000", {2, 5}),
    ("an epoch with a fraction", "source_event_ts = 1770112800.5", {2, 5}),
    ("the other field's value", "source_event_ts = supervisor_processed_at", {2}),
    ("another row's value", "source_event_ts = (SELECT source_event_ts FROM task_audits"
     " WHERE audit_id = 1)", {2}),
    ("another row's values", "(source_event_ts, supervisor_processed_at) = (SELECT source_event_ts,"
     " supervisor_processed_at FROM task_audits WHERE audit_id = 1)", {2}),
    ("exchanged", "source_event_ts = supervisor_processed_at,"
     " supervisor_processed_at = source_event_ts", {2}),
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
    ("a day that is none", "source_event_ts = '2026-02-30T08:00:01.000000Z'", {2, 5}),
    ("hour 24", "source_event_ts = '2026-01-05T24:00:00Z'", {2, 5}),
    ("a day alone", "source_event_ts = substr(source_event_ts, 1, 10)", {2, 5}),
    ("created_at", "supervisor_processed_at = created_at", {2}),
    ("created_at for both",
     "supervisor_processed_at = created_at, source_event_ts = created_at", {2}),
    ("one forgotten", "source_event_ts = NULL", {6}),
    ("the other forgotten", "supervisor_processed_at = NULL", {6}),
    ("both forgotten", "source_event_ts = NULL, supervisor_processed_at = NULL", {6}),
]  # fmt: skip

# The same where the payload has a field in another spelling: (id, field as JSON, column, checks).
SPELLED: list[tuple[str, str, str | None, set[int]]] = [
    ("an offset dropped", '"2026-01-05T10:00:01+02:00"', "2026-01-05T10:00:01Z", {2}),
    ("an offset changed", '"2026-01-05T10:00:01+02:00"', "2026-01-05T10:00:01+01:00", {2}),
    ("created_at for a comma", '"2026-01-05 08:00:01,5"', CREATED, {2}),
    ("created_at for a line feed", '"2026-01-05T08:00:01Z\\n"', CREATED, {2}),
    ("created_at for UTC", '"2026-01-05 08:00:01 UTC"', CREATED, {2}),
    ("created_at for milliseconds", "1767600001000", CREATED, {2}),
    ("created_at for seconds as text", '"1767600001.5"', CREATED, {2}),
    ("created_at for nanoseconds", "1767600001000000000", CREATED, {2}),
    ("the year 1999", '"1999-01-05T08:00:01Z"', "1999-01-05T08:00:01Z", {2}),
    ("the year 2100", '"2100-01-05T08:00:01Z"', "2100-01-05T08:00:01Z", {2}),
    ("the year 1", '"0001-01-01T00:00:00Z"', "0001-01-01T00:00:00Z", {2}),
    ("a day, as its midnight", '"2026-01-05"', "2026-01-05T00:00:00Z", {2}),
    ("NULL for a comma", '"2026-01-05 08:00:01,5"', None, {6}),
    ("NULL for milliseconds", "1767600001000", None, {6}),
]

# What an index holds, and what check 4 says of it: (id, indexes, verdict, missing ones).
ON_SOURCE = "CREATE INDEX a ON task_audits (source_event_ts) WHERE source_event_ts IS NOT NULL;"
ON_BOTH = """CREATE INDEX b ON task_audits (source_event_ts, supervisor_processed_at)
    WHERE source_event_ts IS NOT NULL AND supervisor_processed_at IS NOT NULL;"""
ON_EVENT = """CREATE INDEX c ON task_audits (event_type, source_event_ts)
    WHERE source_event_ts IS NOT NULL;"""
INDEXES: list[tuple[str, str, str, int]] = [
    ("all, by other names", ON_SOURCE + ON_BOTH + ON_EVENT, "PASS", 0),
    ("without the one that v24 leaves out", ON_SOURCE + ON_BOTH, "INFO", 1),
    ("without the one on a column", ON_BOTH + ON_EVENT, "WARN", 1),
    ("without the one on both columns", ON_SOURCE + ON_EVENT, "WARN", 1),
    ("one that does for two", """CREATE INDEX a ON task_audits
     ("source_event_ts" DESC, [supervisor_processed_at]) WHERE ("source_event_ts" NOTNULL)""",
     "INFO", 1),
    ("where, in a name", ON_SOURCE.replace(" a ", " nowhere "), "WARN", 2),
    ("none", "", "FAIL", 3),
    ("another collation", "CREATE INDEX a ON task_audits (source_event_ts COLLATE NOCASE)",
     "FAIL", 3),
    ("an expression before it", "CREATE INDEX a ON task_audits (lower(level), source_event_ts)",
     "FAIL", 3),
    ("a part of the rows", """CREATE INDEX a ON task_audits (source_event_ts)
     WHERE event_type = 'SUPERVISOR_ERROR'""", "FAIL", 3),
    ("the right names", """
     CREATE INDEX idx_task_audits_source_event_ts ON task_audits (level);
     CREATE INDEX idx_task_audits_decision_lag ON task_audits (task_id);""", "FAIL", 3),
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

    def without_plan(self) -> str:
        """The text without the one part that is each shell's own."""
        return re.sub(r"(?m)^QUERY PLAN\n.*\n", "", self.text)

    def figures(self, finding: str) -> tuple[int, int]:
        """The two figures that stand behind a finding."""
        found = re.search(rf"(?m)^{finding} +(\d+) +(\d+)$", self.text)
        return (int(found[1]), int(found[2])) if found else (0, 0)


def in_the_shell(path: Path, script: str) -> tuple[int, str, str]:
    """Run the checks as an operator does."""
    shell = subprocess.run(
        [str(SHELL), path], check=False, input=script.encode(), capture_output=True
    )
    return shell.returncode, shell.stdout.decode(), shell.stderr.decode()


def in_python(path: Path, script: str, store: sqlite3.Connection | None = None) -> Any:
    """Run them where there is no shell: what stands between dot-commands, one by one."""
    text = statement = ""
    store = store or sqlite3.connect(path, isolation_level=None)
    with contextlib.closing(store):
        for line in script.splitlines(keepends=True):
            if line.startswith((".", "--")):
                continue
            statement += line
            if not sqlite3.complete_statement(statement):
                continue
            try:
                rows = store.execute(statement).fetchall()
            except sqlite3.Error as error:
                return 1, text, f"{error}\n"
            if statement.startswith("EXPLAIN"):
                text += "QUERY PLAN\n"
            text += "".join(f"{row[-1]}\n" for row in rows if row[-1] is not None)
            statement = ""
    return 0, text, ""


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
        self.assertEqual(self.files(), before)
        lines = re.findall(r"(?m)^([1-8])  (\S.*?)  (PASS|WARN|FAIL|INFO)  (\S.*)$", text)
        found = Verification(
            code,
            text,
            errors,
            {int(number): verdict for number, _name, verdict, _detail in lines},
            {int(number): detail for number, _name, _verdict, detail in lines},
        )
        if lines:
            self.assertEqual(list(found.verdicts), list(range(1, 9)), errors)
            names = [f"{number} {name}" for number, name, verdict, _ in lines if verdict == "FAIL"]
            last = f"FAIL: {', '.join(names)}" if names else "No check fails."
            self.assertEqual(text.splitlines()[-1], last)
            self.assertEqual((code, errors != ""), (1, True) if names else (0, False), errors)
        else:  # no store that it can judge
            self.assertEqual((code, errors.count("\n")), (1, 1), errors)
        return found

    def change(self, sql: str, path: Path | None = None) -> None:
        with contextlib.closing(sqlite3.connect(path or self.path)) as store:
            store.executescript(sql)

    def make_filled(self, count: int = 2000, **options: Any) -> None:
        """A store whose rows all differ, with letters of every kind, filled by the tool."""

        def rows() -> Iterator[dict[str, object]]:
            for number in range(count):
                time = f"2026-01-05T{number // 3600:02}:{number // 60 % 60:02}:{number % 60:02}"
                fields = {
                    "reason": LETTERS[number % len(LETTERS)],
                    "source_ts": f"{time}.000000Z",
                    "timestamp": f"{time}.500000Z",
                }
                yield {
                    "payload": json.dumps(
                        fields, ensure_ascii=number // 16 % 8 == 7 and fields["reason"] != "\x7f"
                    ),
                    "created_at": f"{time}.900000Z",
                }

        self.make(rows(), **options)
        self.fill()

    def test_before_a_run_two_checks_fail_and_after_it_none(self) -> None:
        sample_store.make_store(self.path, rows=1000, journal_mode="delete")
        before = self.verify()
        self.assertEqual(before.failed, {1, 6})
        self.fill()
        found = self.verify()
        self.assertEqual(found.failed, set(), found.text)
        self.assertRegex(found.text, r"^1,000 rows in task_audits: about 1 s")
        self.assertRegex(found.details[2], "^0 values differ, [1-9]\\d+ agree, 0 not judged$")
        self.assertRegex(found.details[8], r"^\d+ pairs, average [\d.]+ s, [1-9]\d* negative")
        wide = [line for line in (before.text + found.text).splitlines() if len(line) > 80]
        self.assertEqual([line for line in wide if "SEARCH" not in line], [])
        in_wal = self.folder / "wal.db"
        shutil.copy(self.path, in_wal)
        self.query("PRAGMA journal_mode = wal", in_wal)
        note = found.text[found.text.index("\nNot in WAL") : found.text.index("\n\n1. ")]
        self.assertEqual(self.verify(in_wal).text, found.text.replace(note, ""))

    @unittest.skipIf(SHELL is None, "the sqlite3 shell is not installed")
    def test_python_prints_what_the_shell_prints(self) -> None:
        self.make(hostile_rows(seed=7, count=200))
        shell, python = self.verify(), self.verify(by=in_python)
        self.assertEqual(shell.code, python.code)
        self.assertEqual(shell.without_plan(), python.without_plan())

    def test_one_row_tampered_with_among_thousands_is_noticed(self) -> None:
        self.make_filled()
        self.assertEqual(self.verify().failed, set())
        original = self.path.read_bytes()
        for number, (name, change, failed) in enumerate(TAMPERINGS):
            with self.subTest(name):
                self.path.write_bytes(original)
                self.change(f"UPDATE task_audits SET {change} WHERE audit_id = {1000 + number}")
                found = self.verify()
                self.assertEqual(found.failed, failed, found.text)

    def test_one_value_that_is_not_what_another_spelling_says_is_noticed(self) -> None:
        self.make_filled(count=300)
        original = self.path.read_bytes()
        for name, spelled, value, failed in SPELLED:
            with self.subTest(name):
                self.path.write_bytes(original)
                payload = f'{{"reason": "“{name}”", "source_ts": {spelled}, "timestamp": "{DONE}"}}'
                row = {
                    "payload": payload,
                    "source_event_ts": value,
                    "supervisor_processed_at": DONE,
                }
                with contextlib.closing(sqlite3.connect(self.path)) as store, store:
                    self.insert(store, [row])
                found = self.verify()
                self.assertEqual(found.failed, failed, found.text)

    def test_every_row_is_judged_whatever_letters_its_payload_has(self) -> None:
        self.make_filled(count=len(LETTERS) * 8)
        self.change("UPDATE task_audits SET source_event_ts = '2026-03-01T00:00:00Z'")
        found = self.verify()
        count = len(LETTERS) * 8
        self.assertEqual(found.details[2], f"{count} values differ, {count} agree, 0 not judged")
        self.change("UPDATE task_audits SET source_event_ts = NULL")
        self.assertIn(f"{count} should be filled", self.verify().details[6])

    def test_a_utf_16_store_is_judged_like_any_other(self) -> None:
        self.make({"payload": json.dumps({"source_ts": EVENT, "note": letters},
                                          ensure_ascii=False)} for letters in LETTERS)  # fmt: skip
        self.fill()
        path = self.folder / "utf16.db"
        with contextlib.closing(sqlite3.connect(path)) as store, store:
            store.execute("PRAGMA encoding = 'UTF-16le'")
            store.executescript(sample_store.SCHEMA)
            rows = self.query("SELECT * FROM task_audits")
            marks = ", ".join("?" * len(rows[0]))
            store.executemany(f"INSERT INTO task_audits VALUES ({marks})", rows)
        self.assertEqual(self.query("PRAGMA encoding", path), [("UTF-16le",)])
        self.assertEqual(self.verify(path).text, self.verify().text)
        self.change("UPDATE task_audits SET source_event_ts = created_at WHERE audit_id = 4", path)
        self.change("UPDATE task_audits SET source_event_ts = NULL WHERE audit_id = 5", path)
        self.assertEqual(self.verify(path).failed, {1, 2, 6})

    def test_what_the_tool_writes_is_never_called_wrong(self) -> None:
        """Ties the rules in SQL to the rules in Python, over thousands of payloads."""
        nothing = dict.fromkeys(COLUMNS)
        for seed in (1, 2, 3, 4, 5) if HEAVY else (1,):
            with self.subTest(seed):
                self.path.unlink(missing_ok=True)
                self.make({**row, **nothing} for row in hostile_rows(seed, count=2000))
                self.fill()
                found = self.verify()
                self.assertLessEqual(found.failed, {1}, found.text)
                agree = re.search(r", (\d+) agree", found.details[2])
                assert agree is not None
                self.assertGreater(int(agree[1]), 400)

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
                if not isinstance(value, (list, dict)) and (
                    not isinstance(value, int) or abs(value) < 2**63
                ):
                    yield {"payload": "{}", "created_at": value}
            for _name, payload in WITHOUT_FIELDS[:-2]:  # the last have too many brackets
                yield {"payload": payload}

        self.make(rows())
        before = self.verify()
        summary = self.fill()
        found = self.verify()
        self.assertLessEqual(found.failed, {1}, found.text)
        self.assertIn(f"{summary['filled']} should be filled", before.details[6])
        self.assertRegex(found.details[2], "^0 values differ, [1-9][0-9]+ agree, 0 not judged$")
        unusable = tuple(summary["unusable"].values())
        self.assertEqual(found.figures("payload fields there and unusable"), unusable)

    def test_every_timestamp_it_takes_python_takes(self) -> None:
        chance = random.Random(8)
        rows: list[dict[str, object]] = []
        for _ in range(2000):
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
        self.assertEqual(found.failed, set(), found.text)

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
                self.path.unlink(missing_ok=True)
                filled = dict.fromkeys(COLUMNS, "2026-01-01T00:00:00Z")
                self.make([{"payload": payload}, {"payload": payload, **filled}])
                self.change("UPDATE task_audits SET payload = CAST(payload AS TEXT)")
                found = self.verify()
                self.assertEqual(found.figures(f"not judged: {name}"), (1, 1), found.text)
                self.assertEqual((found.verdicts[2], found.verdicts[6]), ("WARN", "WARN"))

    def test_rubbish_of_every_sort_aborts_nothing(self) -> None:
        self.make(hostile_rows(seed=5, count=600))
        for column in ("payload", "created_at", *COLUMNS):
            self.query(
                f"UPDATE task_audits SET {column} = CAST({column} AS TEXT)"
                f" WHERE typeof({column}) = 'blob' AND audit_id % 2"
            )
        self.assertEqual(self.verify().verdicts[5], "FAIL")
        self.fill()
        text = self.verify().text
        self.assertEqual({char for char in text if not " " <= char <= "~"}, {"\n"})
        wide = [line for line in text.splitlines() if len(line) > 80 and "SEARCH" not in line]
        self.assertEqual(wide, [])

    def test_an_index_is_judged_by_what_it_holds(self) -> None:
        self.make([{}])
        for (index,) in self.query("SELECT name FROM sqlite_master WHERE name LIKE 'idx_%'"):
            self.change(f"DROP INDEX {index}")
        original = self.path.read_bytes()
        for name, indexes, verdict, missing in INDEXES:
            with self.subTest(name):
                self.path.write_bytes(original)
                self.change(indexes)
                found = self.verify()
                made = re.findall(r"(?m)^CREATE INDEX (\w+)\n .*\n .*;$", found.text)
                self.assertEqual((found.verdicts[4], len(made)), (verdict, missing), found.text)
                self.assertIn(made[0] if missing == 1 else "indexes", found.details[4])
                if made:
                    statements = re.findall(r"(?m)^CREATE INDEX \w+\n .*\n .*;$", found.text)
                    for index in made:
                        self.change(f"DROP INDEX IF EXISTS {index}")
                    self.change("".join(statements))
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

    def test_nothing_passes_where_nothing_is(self) -> None:
        self.make()
        self.assertEqual(
            self.verify().verdicts, {n: "PASS" if n == 4 else "INFO" for n in range(1, 9)}
        )

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
        tables = "".join(
            f"CREATE TABLE {name} (x); INSERT INTO {name} VALUES (1), (2), (3);" for name in names
        )
        self.make([{}], extra=tables)
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
        steps = []
        for count in (300, 1200):
            path = self.folder / f"{count}.db"
            self.make([{}], path=path)
            self.change("ANALYZE", path)
            with contextlib.closing(sqlite3.connect(path)) as store, store:
                self.insert(store, [{"payload": "{}"}] * count)
            store = sqlite3.connect(path, isolation_level=None)
            looks = [0]
            store.set_progress_handler(lambda looks=looks: looks.append(0), 100)  # type: ignore[misc]
            self.assertEqual(in_python(path, VERIFY.read_text(encoding="utf-8"), store)[0], 1)
            steps.append(len(looks))
        self.assertLess(steps[1] / steps[0], 6)

    def test_every_name_is_in_temp_and_the_first_error_ends_it(self) -> None:
        text = VERIFY.read_text(encoding="utf-8")
        lines = [line for line in text.splitlines() if line and not line.startswith("--")]
        self.assertEqual(lines[0], ".bail on")
        self.assertNotIn("trusted_schema", text)
        for made in re.findall(r"(?m)^(?:CREATE \w+|INSERT INTO|UPDATE|DROP \w+) (\w\S+)", text):
            self.assertRegex(made, r"^temp\.\w+$")
        if SHELL is not None:  # no text in double quotes: SQLite can be told to refuse it
            self.make([{}])
            refuse = ".dbconfig dqs_ddl off\n.dbconfig dqs_dml off\n"
            found = self.verify(script=f".output {os.devnull}\n{refuse}.output\n{text}")
            self.assertEqual(len(found.verdicts), 8, found.errors)


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
            out = run("--db-path", "demo.db", *options).out
        return out.replace(f" {VERIFY}\n", f" {VERIFY.name}\n")

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
            said = shell.stdout.decode()
            for line in self.sample("README.md", "the verification of demo.db").splitlines():
                self.assertIn(f"\n{line}\n", said)

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
        self.assertEqual(
            line[0].strip(), backfill.format_progress("Filling", "rows", done, total, elapsed, 80)
        )

    def test_the_table_of_options_is_the_programs_own(self) -> None:
        documented = self.table("README_BACKFILL.md", "## Options")
        actual = []
        for action in backfill.build_parser()._actions:
            option = " ".join(filter(None, [action.option_strings[-1], action.metavar]))  # type: ignore[list-item]
            help_text = re.sub(r" \(default .*\)", "", action.help or "")
            plain = action.default is None or action.default in (True, "==SUPPRESS==")
            default = "" if plain or action.nargs == 0 else action.default
            if action.dest == "db_path":
                default = backfill.DEFAULT_STORE
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
        self.assertEqual(len(examples), 6)
        self.make({"payload": payload, "created_at": "2026-01-05T08:00:11Z"}
                  for payload, _source, _processed in examples)  # fmt: skip
        self.fill()
        for (payload, *expected), columns in zip(examples, self.columns(), strict=True):
            with self.subTest(payload):
                self.assertEqual([f"`{value}`" if value else "NULL" for value in columns], expected)

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

    def test_the_readme_has_the_two_commands(self) -> None:
        readme = self.read("README.md")
        for command in (
            "python3 benchmarks/sample_store.py demo.db &&"
            " python3 backfill_audit_decision_fields.py --db-path demo.db",
            "python3 test_backfill.py",
        ):
            self.assertRegex(readme, rf"(?m)^    {re.escape(command)}$")

    def test_each_spelling_of_rule_3_is_read_and_written_as_the_manual_says(self) -> None:
        section = self.read("README_BACKFILL.md").partition("| spelling | a value |")[2]
        spellings = re.findall(r"(?m)^\| .+? \| `(.+?)` \| (.+?) \|$", section.partition("\n\n")[0])
        self.assertGreater(len(spellings), 15)
        for value, written in spellings:
            with self.subTest(value):
                said = backfill.as_timestamp(json.loads(value))
                self.assertEqual(f"`{said}`" if said else "unusable", written)

    def test_the_queries_of_the_manual_run(self) -> None:
        sample_store.make_store(self.path, rows=300, journal_mode="delete")
        queries = re.findall(r"```sql\n(-- .*?)```", self.read("README_BACKFILL.md"), re.S)
        store = self.connect()
        for query in "".join(queries).split(";\n"):
            if query.strip():
                with self.subTest(query):
                    self.assertTrue(store.execute(query).fetchall())
        not_json = next(query for query in queries[0].split(";\n") if "not JSON" in query)
        for audit_id, _payload in store.execute(not_json).fetchall():
            (payload,) = store.execute(
                "SELECT payload FROM task_audits WHERE audit_id = ?", (audit_id,)
            ).fetchone()
            self.assertTrue(backfill.find_timestamps(payload, None)[4])

    def test_both_ways_back_to_the_backup_do_what_the_manual_says(self) -> None:
        sample_store.make_store(self.path, rows=500)
        before = self.columns()
        backup = self.folder / "store.before"
        link = self.folder / "link.db"
        link.symlink_to(self.path)
        self.assertEqual(run("--db-path", link, "--backup", backup).code, 0)
        store = self.connect()
        self.insert(store, [{"source_event_ts": EVENT, "supervisor_processed_at": DONE}])
        undo = re.search(r"```sql\n(ATTACH .*?)```", self.read("README_BACKFILL.md"), re.S)
        assert undo is not None
        store.executescript(undo[1].replace("STORE.before", str(backup)))
        store.close()
        self.assertEqual(self.columns(), [*before, (EVENT, DONE)])
        self.assertEqual(run("--db-path", link).code, 0)
        if SHELL is not None:
            subprocess.run([SHELL, link, f".restore '{backup}'"], check=True)
            self.assertEqual(self.columns(), before)
            self.assertEqual(self.query("PRAGMA integrity_check"), [("ok",)])
            self.assertTrue(link.is_symlink())

    def test_a_damaged_payload_is_mended_as_the_manual_shows(self) -> None:
        self.make([{}, {"payload": '{"reason": "cut o'}, {}])
        manual = self.read("README_BACKFILL.md").partition("### A damaged payload")[2]
        command = re.search(r'sqlite3 STORE "(UPDATE .*?)"', manual)
        assert command is not None
        self.assertEqual(self.fill()["left_null"]["malformed_json"], 1)
        self.query(command[1].replace("82", "2"))
        self.assertEqual(self.fill()["filled"], 1)
        self.assertEqual(self.columns()[1], (CREATED, CREATED))


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


def run_all() -> int:
    """Run all tests in a few processes side by side, for most of them wait most of the time."""
    begun = time.monotonic()
    names = [
        f"{name}.{test}"
        for name, value in globals().items()
        if isinstance(value, type) and issubclass(value, unittest.TestCase)
        for test in unittest.defaultTestLoader.getTestCaseNames(value)
    ]
    with contextlib.ExitStack() as stack:
        parts = []
        for number in range(PROCESSES):
            said = stack.enter_context(tempfile.TemporaryFile("w+"))
            command = [sys.executable, __file__, *names[number::PROCESSES]]
            process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT)
            parts.append((process, said))
        failed = tests = 0
        for process, said in parts:
            failed += process.wait() != 0
            said.seek(0)
            text = said.read()
            print(text)
            tests += int((re.findall(r"(?m)^Ran (\d+) tests?", text) or ["0"])[-1])
    print(f"{tests} tests in {time.monotonic() - begun:.1f} s: {'FAILED' if failed else 'OK'}")
    return 1 if failed else 0


if __name__ == "__main__":
    if len(sys.argv) > 1:
        unittest.main()
    raise SystemExit(run_all())
