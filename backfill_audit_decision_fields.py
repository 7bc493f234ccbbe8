#!/usr/bin/env python3
"""Fill the decision columns of an AgentOS audit store from the JSON beside them.

    python3 backfill_audit_decision_fields.py --db-path STORE --dry-run
    python3 backfill_audit_decision_fields.py --db-path STORE --backup STORE.before
    python3 backfill_audit_decision_fields.py --db-path STORE --verify

Each payload that the Supervisor writes to `task_audits` holds two times: when the event
happened, and when the Supervisor decided. Migration v21 added a column for each of them,
`source_event_ts` and `supervisor_processed_at`. This script fills the ones that are NULL,
batch by batch, while the store stays in use. It never changes a value. It can be stopped
and run again at any moment.

It rests on one idea: what is written follows from rows that nobody has changed since they
were read. If somebody has, the batch is read again under the write lock.

The rules for the data have the same numbers here as in README_BACKFILL.md.
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 - whoever copies one file checks no metadata
    sys.exit(
        "{} needs Python 3.11 or later, not {}.{}: run it with a newer one".format(
            sys.argv[0], *sys.version_info
        )
    )

import argparse
import gc
import io
import itertools
import json
import logging
import math
import os
import re
import shlex
import signal
import sqlite3
import stat
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from functools import cache
from pathlib import Path, PurePath
from types import FrameType
from typing import Any, NamedTuple, TextIO, TypeVar
from urllib.parse import quote

if sqlite3.sqlite_version_info < (3, 34):
    sys.exit(
        f"{sys.argv[0]} needs SQLite 3.34 or later, not {sqlite3.sqlite_version}: run it with a "
        "Python that has a newer one"
    )

__version__ = "3.0.0"

T = TypeVar("T")
log = logging.getLogger("backfill_audit_decision_fields")

# --- The rules as data, with the SQL --------------------------------------------------------

# Rule 2: the payload fields that can fill each column. The first usable one wins; after them
# comes the row's own created_at.
FIELDS = {
    "source_event_ts": ("source_event_ts", "source_ts", "event_timestamp", "task_created_at"),
    "supervisor_processed_at": ("supervisor_processed_at", "processed_at", "timestamp"),
}
FALLBACK = "created_at"

# Rule 3: the spellings of a timestamp. The expressions know which days exist, so what is usable
# doesn't depend on this Python's fromisoformat().
WHITE_SPACE = " \t\r\n\v\f"
_DAY = (
    r"20\d\d-(?:(?:0[1-9]|1[0-2])-(?:0[1-9]|1\d|2[0-8])"
    r"|(?:0[13-9]|1[0-2])-(?:29|30)|(?:0[13578]|1[02])-31)"
    r"|20(?:[02468][048]|[13579][26])-02-29"
)
_MINUTE = r"(?:[01]\d|2[0-3]):[0-5]\d"
_OFFSET_HOURS = r"[+-](?:0\d|1[0-4])"
AGENTOS_FORM = re.compile(  # the first line is what nearly every value looks like: it makes it fast
    r"20\d\d-(?:0[1-9]|1[0-2])-(?:0[1-9]|1\d|2[0-8])T(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d\.\d{6}Z|"
    rf"(?:{_DAY})[T ]{_MINUTE}(?::[0-5]\d(?:\.\d{{1,9}})?)?(?:Z|{_OFFSET_HOURS}:[0-5]\d)?",
    re.ASCII,
)
OTHER_FORMS = re.compile(
    rf"({_DAY})[Tt ]({_MINUTE}(?::[0-5]\d(?:[.,]\d{{1,9}})?)?)"
    rf"(?: ?([Zz]|UTC|{_OFFSET_HOURS}(?::?[0-5]\d)?))?",
    re.ASCII,
)
NUMBER_AS_TEXT = re.compile(r"[1-9]\d{8,18}(?:\.\d+)?", re.ASCII)

EPOCH = datetime(1970, 1, 1)
EARLIEST, LATEST = 946_684_800_000_000, 4_102_444_800_000_000  # 2000 and 2100, microseconds
# Epoch seconds, milli-, micro- and nanoseconds, in microseconds. Within the years 2000 to 2099
# the four ranges don't overlap.
EPOCH_UNITS = (1_000_000, 1000, 1, Fraction(1, 1000))

# Rule 4: our own bound. Python's varies from version to version, and some versions crash at it
# when a thread's stack is small.
MOST_LEVELS = 500
JSON_STRING = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
BRACKET = re.compile(r"[][{}]")
# An integer with more digits than any timestamp is read as the nearest float.
DECODER = json.JSONDecoder(parse_int=lambda text: int(text) if len(text) < 20 else float(text))
JSON_BLANKS = " \t\n\r"
JSON_TYPES = {dict: "an object", list: "an array", bool: "a boolean"}

# Why a row stays NULL: the keys of the summary, and what they mean.
LEFT_NULL = {
    "malformed_json": "the payload is not JSON",
    "no_timestamp": "no timestamp, not even created_at",
    "unreadable": "the other column does not hold text",
    "refused": "the database refused the row",
}
SKIPPED = "skipped"  # why else a row gets a warning: a field that is there and unusable
NEXT_STEP = "check it with --verify"

SUPERVISOR = "event_type LIKE '%SUPERVISOR%'"
OPEN = f"({SUPERVISOR} AND (source_event_ts IS NULL OR supervisor_processed_at IS NULL))"

# Count and read have one shape. NOT INDEXED makes SQLite walk the table itself, whatever indexes
# there are. The inner LIMIT bounds how many rows it looks at, whatever ANALYZE once saw.
SELECT_LAST = "SELECT max(audit_id) FROM task_audits NOT INDEXED"
ROWS = "FROM task_audits NOT INDEXED WHERE audit_id >= ? ORDER BY audit_id LIMIT ?"
COUNT_RANGE = f"""
    SELECT count(*), max(audit_id), count(*) FILTER (WHERE is_supervisors),
           count(*) FILTER (WHERE is_open)
      FROM (SELECT audit_id, {SUPERVISOR} AS is_supervisors, {OPEN} AS is_open {ROWS})
     WHERE audit_id <= ?
"""
# Gives closed rows too, so that we know where a batch ended. Without the CASE SQLite would load
# their payloads: four times as slow.
READ_BATCH = f"""
    SELECT audit_id, is_open, payload, event_type, created_at,
           source_event_ts, supervisor_processed_at
      FROM (SELECT audit_id, {OPEN} AS is_open, CASE WHEN {OPEN} THEN payload END AS payload,
                   event_type, created_at, source_event_ts, supervisor_processed_at {ROWS})
     WHERE audit_id <= ?
"""
# Rule 1: coalesce() keeps a value that is there.
UPDATE_ROW = """
    UPDATE task_audits
       SET source_event_ts = coalesce(source_event_ts, ?),
           supervisor_processed_at = coalesce(supervisor_processed_at, ?)
     WHERE audit_id = ?
"""
# The same for many rows: one statement, during which SQLite doesn't need Python's lock.
ROWS_PER_STATEMENT = 1000  # three variables each; SQLite allows 32,766 by default
UPDATE_ROWS = f"""
    UPDATE task_audits
       SET source_event_ts = coalesce(source_event_ts, found.column1),
           supervisor_processed_at = coalesce(supervisor_processed_at, found.column2)
      FROM (VALUES {", ".join(["(?, ?, ?)"] * ROWS_PER_STATEMENT)}) AS found
     WHERE audit_id = found.column3
"""
# Every statement above, with how many values it takes: each must find its rows by audit_id.
STATEMENTS = {COUNT_RANGE: 3, READ_BATCH: 3, UPDATE_ROW: 3, UPDATE_ROWS: 3000}

SELECT_TABLE = "SELECT sql FROM sqlite_master WHERE type = 'table' AND lower(name) = ?"
SELECT_COLUMNS = "SELECT lower(name) FROM pragma_table_xinfo(?)"
SELECT_TRIGGERS = "SELECT name FROM sqlite_master WHERE type = 'trigger' AND lower(tbl_name) = ?"
SELECT_UNIQUE = """
    SELECT lower(info.name)
      FROM pragma_index_list('task_audits') AS list, pragma_index_info(list.name) AS info
     WHERE list.origin = 'u'
"""
HAS_MANY_ROWS = "SELECT EXISTS (SELECT 1 FROM task_audits LIMIT 1 OFFSET 1000)"
BY_ROWID = "USING INTEGER PRIMARY KEY (rowid=?)"
WALK = re.compile(r"SCAN (?:TABLE )?task_audits")

DATA_VERSION = "PRAGMA data_version"  # a number that moves when another connection commits
SCHEMA_VERSION = "PRAGMA schema_version"

MIGRATION = (0, 21)
VERSION = re.compile(r"\s*v?(?:(\d{1,9})\.)?(\d{1,9})", re.ASCII)  # '0.21.0', 'v66'
NEEDED_COLUMNS = ("audit_id", "event_type", "payload", FALLBACK, *FIELDS)

# Where AgentOS's releases keep their audits: variables that name the file, and paths.
DEFAULT_STORE = "~/.agentos/store.db"
STORE_VARIABLES = ("OCTOPUSOS_DB_PATH", "SQLITE_PATH", "AGENTOS_DB_PATH")
STORE_PLACES = (
    "~/.octopusos/store/octopusos/db.sqlite",
    "~/.agentos/store/agentos/db.sqlite",
    "store/registry.sqlite",
)
COMPANIONS = ("-wal", "-shm", "-journal")  # SQLite's own files beside a store
MOUNTS = Path("/proc/self/mountinfo")
# A list of what is local ages better than a list of what is not.
LOCAL_FILE_SYSTEMS = (
    "ext2 ext3 ext4 xfs btrfs zfs f2fs bcachefs jfs reiserfs tmpfs ramfs overlay "
    "fuse.fuse-overlayfs exfat vfat ntfs3 fuseblk squashfs erofs"
)
LONGEST_PATH = 504  # bytes that SQLite takes
VERIFICATION = "verify_backfill.sql"
VERDICT_CONSTRAINT = "the line above names the checks that fail"  # its last, broken on purpose

# What an error of SQLite's means and what to do: by how its words begin, else by its extended
# code, else by its primary code. A sentence claims no more than the code says.
MISSING = ("no such", "unknown function")
CAUSES_BY_WORDS = {
    MISSING: "a trigger, an index or a CHECK needs what is not there: load it, or mend the schema",
    ("malformed database schema", "unsupported file format"): "this Python's SQLite "
    f"{sqlite3.sqlite_version} cannot read it: use a Python with a newer SQLite",
}
CAUSES = {
    "SQLITE_CORRUPT_VTAB": "a search index (a virtual table) is out of step with its table: mend "
    "it with INSERT INTO name(name) VALUES('rebuild')",
    "SQLITE_READONLY_ROLLBACK": "a killed process left its journal: a run without --dry-run, or "
    "any program that opens the store to write, puts it in order",
    "SQLITE_READONLY_DBMOVED": "it was moved, replaced or removed during the run: see which file "
    "the agents use, then run again on that",
    "SQLITE_BUSY": "another process held its lock for too long: run again, or with a longer "
    "--busy-timeout",
    "SQLITE_FULL": "the disk or the store is full: make room, then run again",
    "SQLITE_READONLY": "it cannot be written: run as a user who may write the file and its folder",
    "SQLITE_CANTOPEN": "it, or a file of SQLite's beside it, cannot be opened: check permissions",
    "SQLITE_IOERR": "reading or writing it failed: check the disk and its room, then run again",
    "SQLITE_PROTOCOL": "its file system has no locks that work: run where the agents run",
    "SQLITE_NOMEM": "there is not enough memory: end something else, then run again",
    "SQLITE_CORRUPT": "it is damaged: see PRAGMA integrity_check; REINDEX mends an index, only a "
    "backup a table (a copy of a WAL store needs its -wal)",
    "SQLITE_NOTADB": "it is not a SQLite database, or is encrypted: name the store with --db-path",
    "SQLITE_ERROR": "SQLite gave up: look in the schema for what it names, then run again",
}
NO_ROWS_FAULT = {getattr(sqlite3, name) for name in CAUSES} - {sqlite3.SQLITE_ERROR}

FIRST_BATCH = 100  # rows: on a slow disk a larger one would hold the lock for seconds
LEAST_RANGE = 1000  # rows that are counted at once, at least
GROW_BELOW, SHRINK_ABOVE = 0.1, 0.5  # seconds that a batch holds the lock
LONG_WAL = 16_000_000  # bytes: from here on nothing is read ahead, so that it can shrink
HUGE_WAL = 100_000_000  # bytes: worth a note
PROBE_BYTES = 65_536  # written beside a store that failed: more than a -shm takes
BACKUP_PAGES = 1000  # database pages that the backup copies between two looks at a signal
INTERRUPT_STEPS = 100_000  # of SQLite's machine between two looks at a signal, in --verify

# How long SQLite itself waits for a lock, in seconds, longer each time: meanwhile it keeps new
# readers out, to get a turn even if they leave no gap.
LOCK_SLICES = (0.1, 0.1, 0.2, 0.5, 1.0)
LOCK_PAUSE = 0.4  # seconds between two slices, in which others have their turn
SLEEP_SLICE = 0.1  # seconds of a rest between two looks at a signal
LONGEST_REST = 2.0  # seconds, beside --pause
COMPANY_SECONDS = 2.0  # how long another writer counts as present
FREE_SHARE_ALONE, FREE_SHARE_IN_COMPANY = 0.1, 0.8  # of the time the write lock is left free

EXAMPLES = 3  # rows shown on the terminal for each reason
PREVIEW_KINDS = 10
REDRAW_SECONDS = 0.1  # of the progress line on a terminal
PLAIN_SECONDS = 5.0  # between progress lines elsewhere
LABEL_WIDTH, FIGURE_WIDTH, BAR_WIDTH = 29, 12, 10  # characters
COLUMN_WIDTH = max(map(len, FIELDS))
CUT = 200  # characters of a stranger's text that are shown
NOTE = logging.INFO + 5  # a level of our own: worth a line on the terminal, but no warning
logging.addLevelName(NOTE, "NOTE")

INTERRUPTS = ("SIGHUP", "SIGINT", "SIGTERM")
ABOUT = """Fill source_event_ts and supervisor_processed_at of an AgentOS audit store from the JSON
payloads beside them. Fills only columns that are NULL; never changes a value. The store may be in
use."""
EXITS = """Exit code: 0 done, 1 the store cannot be used or the run failed, 2 wrong usage, 129, 130
or 143 interrupted by SIGHUP, SIGINT or SIGTERM. After an interruption or a failure run the same
command again to go on (without --backup, if it was made)."""
SWITCHES = {
    "--dry-run": "write nothing: report what a run would do, and show a row of each kind",
    "--verify": f"run the checks of {VERIFICATION} (goes only with --db-path and --busy-timeout)",
    "--json": "print the summary as one JSON object, and nothing else, on stdout",
    "--quiet": "no progress, warnings or notes on stderr, only errors",
}
UTC_FORMAT = "%Y-%m-%dT%H:%M:%SZ"
EXIT_DONE, EXIT_FAILED, EXIT_SIGNAL = 0, 1, 128  # plus the signal's number


# --- Extraction: what a row's timestamps are, by its payload ----------------------------------


class Found(NamedTuple):
    """What extraction found for one column."""

    value: str | None  # what to write
    field: str | None  # where it came from
    skipped: str | None  # the first payload field that was there and unusable, in words


NOT_FOUND = Found(None, None, None)


def extract_timestamps(payload: object, created_at: object) -> dict[str, str | None]:
    """Return both timestamps of a row, by column: rules 2 to 4.

    `payload` is the column as SQLite gives it: str, bytes or None. Its fields come first, in
    the order of FIELDS, then `created_at`. A payload without fields (NULL, blank, JSON but not
    an object) leaves only created_at. If it is not JSON, both values are None. Never raises.
    """
    source, processed, _malformed = find_timestamps(payload, created_at)
    return dict(zip(FIELDS, (source.value, processed.value), strict=True))


def find_timestamps(payload: object, created_at: object) -> tuple[Found, Found, str | None]:
    """Find both timestamps of a row and where they come from, or what makes it malformed."""
    try:
        fields = read_payload(payload)
    except ValueError as error:
        return NOT_FOUND, NOT_FOUND, str(error)
    source_names, processed_names = FIELDS.values()
    source = first_usable(fields, source_names, created_at)
    return source, first_usable(fields, processed_names, created_at), None


def first_usable(fields: dict[str, Any], names: Sequence[str], created_at: object) -> Found:
    """Return the first usable candidate, and the field that was skipped for it: rule 2."""
    skipped = None
    for name in names:
        candidate = fields.get(name)
        if candidate is not None:
            value = as_timestamp(candidate)
            if value is not None:
                return Found(value, name, skipped)
            if skipped is None:
                skipped = f"{name} is not a timestamp: {in_words(candidate)}"
    value = as_timestamp(created_at)
    return Found(value, None if value is None else FALLBACK, skipped)


def in_words(value: object) -> str:
    """Describe an unusable field: text as it is, anything else by type and length only."""
    if isinstance(value, str):
        return f'"{printable(value, CUT)}"'
    return f"{JSON_TYPES.get(type(value), 'a number')} of length {len(str(value))}"


def read_payload(payload: object) -> dict[str, Any]:
    """Return the payload's fields: rule 4. Raises ValueError, in words, if it is not JSON."""
    if isinstance(payload, bytes):
        try:
            payload = payload.decode()
        except UnicodeDecodeError:
            words = "it is not UTF-8 text (damaged, compressed, or SQLite's binary JSON)"
            raise ValueError(words) from None
    if not isinstance(payload, str) or not payload.strip(WHITE_SPACE):
        return {}
    if len(payload) > MOST_LEVELS and payload.count("{") + payload.count("[") > MOST_LEVELS:
        brackets = BRACKET.findall(JSON_STRING.sub("", payload))  # those in strings don't count
        levels = itertools.accumulate(1 if bracket in "[{" else -1 for bracket in brackets)
        if max(levels, default=0) > MOST_LEVELS:
            raise ValueError(f"it is nested more than {MOST_LEVELS} levels deep")
    text = payload.strip(JSON_BLANKS)
    try:  # a fifth faster than decode(), which looks for the blanks by itself
        content, end = DECODER.raw_decode(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg} (character {error.pos})") from None
    if end < len(text):
        raise ValueError(f"Extra data (character {end})")
    return content if isinstance(content, dict) else {}


def as_timestamp(value: object) -> str | None:
    """Return what to write for a candidate, None if it is not usable: rule 3."""
    if isinstance(value, str):
        return value if AGENTOS_FORM.fullmatch(value) else _from_other_forms(value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return _from_epoch(value)
    return None


def _from_other_forms(text: str) -> str | None:
    """Rewrite other writers' spellings, and text that is a number, in AgentOS's form."""
    text = text.strip(WHITE_SPACE)
    if NUMBER_AS_TEXT.fullmatch(text):
        return _from_epoch(float(text) if "." in text else int(text))
    match = OTHER_FORMS.fullmatch(text)
    if match is None:
        return None
    day, clock, offset = match.groups(default="")
    if offset in ("z", "UTC"):
        offset = "Z"
    elif offset not in ("", "Z"):
        offset = f"{offset[:3]}:{offset[-2:] if len(offset) > 3 else '00'}"
    return f"{day}T{clock.replace(',', '.')}{offset}"


def _from_epoch(number: float) -> str | None:
    """Write an epoch of the years 2000 to 2099 as ISO-8601, to the nearest microsecond."""
    if not 0 < number < 2**63:  # also keeps out NaN and infinity
        return None
    exact = number if isinstance(number, int) else Fraction(number)
    for unit in EPOCH_UNITS:
        microseconds = round(exact * unit)  # halves to even
        if EARLIEST <= microseconds < LATEST:
            moment = EPOCH + timedelta(microseconds=microseconds)
            return moment.isoformat(timespec="microseconds") + "Z"
    return None


# --- A row: what to write to it ----------------------------------------------------------------

# One for each of the two columns, in the order of FIELDS.
Pair = tuple[str | None, str | None]
NOTHING = (None, None)


class Row(NamedTuple):
    """A row of the table without its payload; bytes stand for a BLOB and for broken UTF-8."""

    audit_id: int
    event_type: object
    created_at: object
    source_event_ts: object
    supervisor_processed_at: object

    @property
    def existing(self) -> tuple[object, object]:
        return self.source_event_ts, self.supervisor_processed_at


class Kind(NamedTuple):
    """What a row is counted by."""

    sources: Pair  # the fields that values are written from
    left_null: str | None  # a key of LEFT_NULL if a column stays NULL


kind_of = cache(Kind)  # there are few kinds, and many rows of each


class Plan(NamedTuple):
    """What is to be written to a row, and later what was."""

    row: Row
    values: Pair  # None where nothing is to be written
    kind: Kind
    skipped: Pair  # for each value, the field that was there and unusable, and what it holds
    reason: str | None  # more words for kind.left_null


def plan_row(payload: object, row: Row) -> Plan:
    """Decide what to write to an open row: rule 1 (only where it is NULL) and rule 5."""
    source, processed, malformed = find_timestamps(payload, row.created_at)
    kept_first, kept_second = row.existing
    kept = kept_first if kept_second is None else kept_second
    values: Pair = NOTHING
    left_null = reason = None
    if malformed is not None:
        left_null, reason = "malformed_json", malformed
    elif kept is not None and not isinstance(kept, str):
        left_null, reason = "unreadable", "it is a BLOB, a number, or text that is not UTF-8"
    else:
        values = match_offsets(row.existing, (source.value, processed.value))
    first, second = values
    if first is None or second is None:
        if left_null is None and (kept is None or values == NOTHING):
            left_null = "no_timestamp"
        source = source if first is not None else NOT_FOUND  # nothing is said of what is not
        processed = processed if second is not None else NOT_FOUND  # written
    kind = kind_of((source.field, processed.field), left_null)
    return Plan(row, values, kind, (source.skipped, processed.skipped), reason)


def match_offsets(existing: tuple[object, object], found: Pair) -> Pair:
    """Return the values to write, None for a column that has one, so that readers can subtract.

    Rule 5: AgentOS's readers crash on a pair of which only one has a UTC offset. If the other
    value has an offset and ours has none, ours is read as UTC and gets a `Z`. If the value that
    is there has none, ours is written in UTC without offset.
    """
    first, second = found
    kept_first, kept_second = existing
    if kept_second is not None:
        return _match_offset(first, kept_second, is_kept=True), None
    if kept_first is not None:
        return None, _match_offset(second, kept_first, is_kept=True)
    if first is None or second is None or first[-1] == second[-1] == "Z":
        return found
    return (
        _match_offset(first, second, is_kept=False),
        _match_offset(second, first, is_kept=False),
    )


def _match_offset(value: str | None, other: object, *, is_kept: bool) -> str | None:
    """Write a value so that AgentOS's readers can subtract it from the other one, if they can."""
    try:  # the way they read it
        moment = datetime.fromisoformat(str(other).replace("Z", "+00:00"))
    except ValueError:
        return value
    if value is None or _has_offset(value) == (moment.tzinfo is not None):
        return value
    ours = datetime.fromisoformat(value)
    if not _has_offset(value):
        return ours.isoformat() + "Z"
    return ours.astimezone(UTC).replace(tzinfo=None).isoformat() if is_kept else value


def _has_offset(timestamp: str) -> bool:
    """Whether a timestamp of rule 3 has a UTC offset."""
    return timestamp[-1] == "Z" or timestamp[-6] in "+-"


# --- Signals and locks: how long the run waits ------------------------------------------------


class StoreError(Exception):
    """What is wrong and the next step, as a sentence for the operator."""


class Interrupted(Exception):
    """SIGHUP, SIGINT or SIGTERM came; raised only where nothing is half done."""


class Patience:
    """Waits for other processes' locks, rests, and looks out for signals meanwhile.

    A signal is only noted when it comes, so that the batch at hand can be finished first.
    """

    def __init__(self, busy_timeout: float, on_wait: Callable[[float], None]) -> None:
        self._busy_timeout = busy_timeout  # seconds
        self._on_wait = on_wait  # is told the seconds left
        self.before_stop: Callable[[], None] = lambda: None  # ends every read that is open
        self.signum: int | None = None
        self._stop_asked = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Note signals from now on, except those that were ignored when we started."""
        before = {}
        for name in (*INTERRUPTS, "SIGTSTP"):
            signum = getattr(signal, name, None)  # Windows doesn't have all of them
            if signum is not None and signal.getsignal(signum) != signal.SIG_IGN:
                before[signum] = signal.signal(signum, self._note)
        try:
            yield
        finally:
            # After a signal the process is about to end: another one must not change how.
            for signum, former in before.items():
                signal.signal(signum, former if self.signum is None else signal.SIG_IGN)

    def _note(self, signum: int, _frame: FrameType | None) -> None:
        if signal.Signals(signum).name in INTERRUPTS:
            self.signum = signum
        else:
            self._stop_asked = True

    def check(self) -> None:
        """Raise Interrupted after a signal, and stop after Ctrl-Z. Call it with no lock held."""
        if self._stop_asked:
            self._stop_asked = False
            self.before_stop()
            signal.signal(signal.SIGTSTP, signal.SIG_DFL)
            signal.raise_signal(signal.SIGTSTP)
            signal.signal(signal.SIGTSTP, self._note)
        if self.signum is not None:
            raise Interrupted

    def sleep(self, seconds: float) -> None:
        """Sleep, in slices that a signal can end. Raises Interrupted."""
        wake_up = time.monotonic() + seconds
        while time.monotonic() < wake_up:
            self.check()
            time.sleep(max(0.0, min(wake_up - time.monotonic(), SLEEP_SLICE)))

    def wait(self, action: Callable[..., T], *args: Any) -> T:
        """Return action(*args); try again while another process's lock is in the way.

        SQLite waits for a slice of the time itself, deaf to signals; between two slices
        nothing is held. Raises SQLite's error after the busy timeout, Interrupted after a signal.
        """
        give_up = time.monotonic() + self._busy_timeout
        while True:
            try:
                return action(*args)
            except sqlite3.OperationalError as error:
                left = give_up - time.monotonic()
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or left <= 0:
                    raise
            self._on_wait(left)
            self.sleep(min(left, LOCK_PAUSE))


class WriteLock:
    """Takes the write lock for a batch, after a rest that lets other processes have their turn.

    Keeps what must be known of the schema, and looks again when that moved.
    """

    def __init__(self, store: sqlite3.Connection, patience: Patience, pause: float) -> None:
        self.store = store
        self.patience = patience
        self.schema = patience.wait(check_schema, store)
        self.held = 0.0  # seconds from BEGIN to the end of COMMIT, last time
        self._pause = pause
        self._released = self._company_until = -math.inf

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Rest, take the lock, and commit at the end; on an error roll back.

        With a rollback journal a COMMIT waits for readers while it keeps new ones out.
        EXCLUSIVE waits for them beforehand; in WAL mode it is the same as IMMEDIATE.
        """
        now = time.monotonic()
        rest = choose_rest(self.held, now - self._released, company=now < self._company_until)
        self.patience.sleep(rest + (self._pause if self.held else 0))
        slices = itertools.chain(LOCK_SLICES, itertools.repeat(LOCK_SLICES[-1]))
        self.patience.wait(lambda: self._begin(next(slices)))
        locked_at = time.monotonic()
        try:
            yield
            if self.store.in_transaction:
                self.store.execute("COMMIT")
        finally:
            if self.store.in_transaction:
                self.store.execute("ROLLBACK")
            self._released = time.monotonic()
            self.held = self._released - locked_at

    def _begin(self, seconds: float) -> None:
        self.store.execute(f"PRAGMA busy_timeout = {seconds * 1000:.0f}")
        self.store.execute("BEGIN EXCLUSIVE")

    def changed_since(self, version: int) -> bool:
        """Whether another connection committed since the data_version was this. Under the lock.

        Raises StoreError if the schema moved and the store cannot be filled any more.
        """
        changed = bool(fetch(self.store, DATA_VERSION) != version)
        if changed:
            self._company_until = time.monotonic() + COMPANY_SECONDS
            if fetch(self.store, SCHEMA_VERSION) != self.schema.version:
                self.schema = check_schema(self.store)
        return changed


def choose_rest(held: float, free: float, *, company: bool) -> float:
    """Return how long to rest before a batch, in seconds.

    `held` is how long the last batch held the write lock, `free` how long it has been free
    since. SQLite's waiters poll, with growing sleeps: whether they get in depends on the share
    of the time that the lock is free, not only on how long it is held. Alone, we leave enough
    of it for another writer to get in and be noticed.
    """
    share = FREE_SHARE_IN_COMPANY if company else FREE_SHARE_ALONE
    return min(max(0.0, held * share / (1 - share) - free), LONGEST_REST)


# --- The store: find, open, check, count --------------------------------------------------------


class Schema(NamedTuple):
    """What a run must know of the schema."""

    version: int  # SQLite's, which moves with every change
    migration: tuple[int, int]  # the newest one of AgentOS's; (0, 0) if unknown
    triggers: list[str]  # on the table: if there is one, a write to a row may change others


class Range(NamedTuple):
    """A part of the table, from one audit_id to another, and what it held when it was counted."""

    first: int
    last: int
    supervisor_rows: int
    open_rows: int


def find_store(path: Path) -> Path:
    """Return the store's real path. Raises StoreError unless that is its one name and place.

    SQLite finds -wal and -journal by the file's name: under another one it doesn't see what
    other processes have there. Call it before the store is opened: to close a file drops this
    process's locks on it.
    """
    name_it = "name the store with --db-path"
    try:
        status, real = path.stat(), Path(os.path.realpath(path))
    except (FileNotFoundError, NotADirectoryError):
        if path == _path(DEFAULT_STORE):
            named = filter(None, map(os.environ.get, STORE_VARIABLES))
            places = dict.fromkeys(map(_path, (*named, *STORE_PLACES)))
            found = [shlex.quote(str(place)) for place in places if place.is_file()]
            name_it += f" (found here: {', '.join(found) or 'none'})"
        raise StoreError(f"there is no file {path}: {name_it}") from None
    if not stat.S_ISREG(status.st_mode):
        what = "a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file"
        raise StoreError(f"it is {what}: {name_it}")
    if status.st_size == 0:
        raise StoreError(f"it is empty: {name_it} (a copy of a WAL store needs its -wal)")
    if status.st_nlink > 1:
        raise StoreError(
            "it has a second name (a hard link), under which a run would destroy it: use the one "
            f"the agents use, remove the other (`find FOLDER -samefile {shlex.quote(str(path))}`)"
        )
    if os.fsencode(real) in read_mounts():
        raise StoreError(
            "it is a mount of the file alone, without its -wal and journal, so a run would destroy "
            "it: mount or name its folder there instead, and use the name the agents use"
        )
    if hasattr(os, "geteuid") and os.geteuid() not in (0, status.st_uid):
        check_shared_memory(real, status)
    return real


def check_shared_memory(path: Path, status: os.stat_result) -> None:
    """Raise StoreError if the owner of a WAL store could not write the -shm that we make.

    Such a -shm keeps the agents out, and after a kill or a dry run it stays. SQLite makes it with
    this user's id, the store's mode, and this user's group, or the folder's if that is setgid.
    """
    try:
        with path.open("rb") as file:
            in_wal = file.read(20)[18:] == b"\2\2"
    except OSError:  # SQLite will say so
        return
    folder = path.parent.stat()
    group = folder.st_gid if folder.st_mode & stat.S_ISGID else os.getegid()
    shared = status.st_mode & stat.S_IWGRP and group == status.st_gid
    if in_wal and not shared and not status.st_mode & stat.S_IWOTH:
        raise StoreError(
            f"it is a WAL store of another user, who could not write the -shm that we make: run as "
            f"its owner (user id {status.st_uid})"
        )


def read_mounts() -> dict[bytes, str]:
    """Return the mount points that this process sees, with their file system's type."""
    mounts = {}
    with suppress(OSError):  # a system without /proc
        for line in MOUNTS.read_bytes().splitlines():
            before, _, after = line.partition(b" - ")
            _id, _parent, _device, _root, point, *_ = before.split(b" ")
            kind, *_ = after.split(b" ")
            point = re.sub(rb"\\([0-7]{3})", lambda code: bytes([int(code[1], 8)]), point)
            mounts[point] = kind.decode()
    return mounts


def distant_file_system(path: Path) -> str | None:
    """Return the type of the file system that holds the file, None if it is known to be local."""
    mounts = read_mounts()
    kinds = (mounts.get(os.fsencode(folder)) for folder in path.parents)
    kind = next(filter(None, kinds), None)
    return None if kind in LOCAL_FILE_SYSTEMS.split() else kind


def store_uri(path: PurePath, mode: str) -> str:
    """Return SQLite's URI of an absolute path; one of a Windows share takes four slashes."""
    posix = path.as_posix()
    return f"file://{'' if posix.startswith('/') else '/'}{quote(os.fsencode(posix))}?mode={mode}"


def open_store(path: Path, patience: Patience, *, read_only: bool) -> sqlite3.Connection:
    """Open an existing store; creates no file. Raises sqlite3.Error, or Interrupted."""
    uri = store_uri(path, "ro" if read_only else "rw")
    store = sqlite3.connect(
        uri, uri=True, timeout=LOCK_SLICES[0], isolation_level=None, check_same_thread=False
    )
    try:
        store.text_factory = decode_text
        store.execute("PRAGMA temp_store = MEMORY")  # a full or read-only TMPDIR is no obstacle
        if patience.wait(fetch, store, "PRAGMA journal_mode") == "wal":
            # In WAL mode this cannot corrupt the file: a power cut may undo the last batches,
            # whole, and the next run does them again.
            store.execute("PRAGMA synchronous = NORMAL")
            # A -wal that begins anew is cut to this, so its size tells how much is in it.
            store.execute(f"PRAGMA journal_size_limit = {LONG_WAL}")
    except BaseException:
        store.close()
        raise
    return store


def decode_text(text: bytes) -> str | bytes:
    """Return a column's text, as bytes if it is not UTF-8, so that no row can end a run."""
    try:
        return text.decode()
    except UnicodeDecodeError:
        return text


def fetch(store: sqlite3.Connection, sql: str, *parameters: object) -> Any:
    """Return the first value that a query gives, None if it gives no row."""
    return next(iter(store.execute(sql, parameters).fetchone() or (None,)))


def fetch_all(store: sqlite3.Connection, sql: str, *parameters: object) -> list[str]:
    """Return the last value of each row, as text."""
    return [str(value) for *_, value in store.execute(sql, parameters)]


def check_schema(store: sqlite3.Connection) -> Schema:
    """Raise StoreError unless the store has what migration v21 brings, and can be filled.

    Raises sqlite3.Error if a statement of ours cannot be prepared, for instance because a
    trigger needs a function that is missing.
    """
    version, migration = fetch(store, SCHEMA_VERSION), newest_migration(store)
    if (0, 0) < migration < MIGRATION:
        now = ".".join(map(str, migration))
        raise StoreError(f"it is at schema version {now}.0: apply migration v21 (0.21.0) first")
    table = fetch(store, SELECT_TABLE, "task_audits")
    if table is None:
        words = "it has no table task_audits: name an AgentOS store with --db-path"
        raise StoreError(f"{words} (a copy of a WAL store needs its -wal)")
    columns = fetch_all(store, SELECT_COLUMNS, "task_audits")
    missing = ", ".join(column for column in NEEDED_COLUMNS if column not in columns)
    if missing:
        raise StoreError(f"task_audits has no column {missing}: apply migration v21 (0.21.0) first")
    unique = set(FIELDS).intersection(fetch_all(store, SELECT_UNIQUE))
    if unique and re.search(r"\bREPLACE\b", str(table), re.IGNORECASE):
        raise StoreError(
            f"{' and '.join(unique)} of task_audits is UNIQUE with ON CONFLICT REPLACE, so to fill "
            "one row could delete another: rebuild the table without that"
        )
    plans = {
        sql: "\n".join(fetch_all(store, f"EXPLAIN QUERY PLAN {sql}", *[None] * values))
        for sql, values in STATEMENTS.items()
    }
    if BY_ROWID not in plans[UPDATE_ROW]:
        words = "audit_id is no longer the INTEGER PRIMARY KEY of an ordinary table"
        raise StoreError(f"{words}: rebuild task_audits as AgentOS makes it")
    if any(map(WALK.search, plans.values())) and fetch(store, HAS_MANY_ROWS):
        raise StoreError(
            "SQLite would read the whole table for each batch, because ANALYZE once saw only a row "
            "or two: run `PRAGMA analysis_limit=1000; ANALYZE task_audits`, then run again"
        )
    return Schema(version, migration, fetch_all(store, SELECT_TRIGGERS, "task_audits"))


def newest_migration(store: sqlite3.Connection) -> tuple[int, int]:
    """Return AgentOS's newest schema version, (0, 0) if it cannot be read.

    '0.21.0' is (0, 21) and 'v66' is (0, 66): as text, 0.9.0 would sort above 0.21.0.
    """
    if "version" not in fetch_all(store, SELECT_COLUMNS, "schema_version"):
        return 0, 0
    found = map(VERSION.match, fetch_all(store, "SELECT version FROM schema_version"))
    versions = ((int(match[1] or 0), int(match[2])) for match in found if match)
    return max(versions, default=(0, 0))


def count_table(
    lock: WriteLock, first: int, last: int, rows: int, on_rows: Callable[[int], None]
) -> list[Range]:
    """Count what is between two audit_ids, so many rows at a time: no read locks for long.

    Calls on_rows(rows so far). Raises sqlite3.Error or Interrupted.
    """
    ranges: list[Range] = []
    done = 0
    while first <= last:
        lock.patience.check()
        cursor = lock.patience.wait(lock.store.execute, COUNT_RANGE, (first, rows, last))
        counted, end, *numbers = cursor.fetchone()
        if not counted:
            break
        ranges.append(Range(first, end, *numbers))
        done += counted
        on_rows(done)
        first = end + 1
    return ranges


# --- The backup ---------------------------------------------------------------------------------


def make_backup(
    lock: WriteLock, store: Path, target: Path, on_page: Callable[[int, int], None]
) -> None:
    """Copy the store as it is at this moment to the new file `target`.

    The copy is made beside it as `NAME.partial`, readable by nobody else, and gets its name when
    it is complete. One read transaction makes it one moment: in WAL mode writers go on meanwhile,
    with a rollback journal their commits wait for the end.

    Calls on_page(pages copied, pages in all). Raises StoreError, OSError, sqlite3.Error or
    Interrupted, and then leaves no file.
    """
    partial = target.with_name(f"{target.name}.partial")
    for file in (partial, *(Path(f"{target}{suffix}") for suffix in ("", *COMPANIONS))):
        if os.path.lexists(file):  # SQLite would play an old journal into the copy
            left = "a killed run may have left it: remove it" if file == partial else "name another"
            raise StoreError(f"{file} exists already: {left}, then run again")

    def on_step(_status: int, left: int, total: int) -> None:
        if lock.patience.signum is not None:
            raise Interrupted
        on_page(total - left, total)

    os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    try:
        lock.store.execute("BEGIN")
        lock.patience.wait(fetch, lock.store, "SELECT count(*) FROM sqlite_master")
        with closing(sqlite3.connect(partial)) as copy:
            lock.store.backup(copy, pages=BACKUP_PAGES, progress=on_step)
        copy_mode(store, partial)
        try:
            os.link(partial, target)  # never over an existing file
        except OSError:
            if os.path.lexists(target):
                raise
            partial.rename(target)  # on a file system without hard links
    finally:
        if lock.store.in_transaction:
            lock.store.execute("ROLLBACK")
        partial.unlink(missing_ok=True)


def copy_mode(source: Path, copy: Path) -> None:
    """Give `copy` the owner and mode of `source`; where that cannot be, it stays private."""
    wanted = source.stat()
    with suppress(OSError, AttributeError):  # a user, a place or a system that may not
        os.chown(copy, wanted.st_uid, wanted.st_gid)
        copy.chmod(stat.S_IMODE(wanted.st_mode))


# --- A batch --------------------------------------------------------------------------------------


class Batch(NamedTuple):
    """The first `size` rows from an audit_id on, as they were read and planned."""

    first: int
    end: int  # where its range ends
    size: int  # rows of the table, open or not
    version: int  # the store's data_version before the read began
    plans: list[Plan]  # for the open rows
    last: int  # the last audit_id that it covers


class RolledBack(Exception):
    """A refused row undid the whole transaction of its batch."""


def read_batch(store: sqlite3.Connection, first: int, end: int, size: int, version: int) -> Batch:
    """Read and plan the open rows among the first `size` rows between two audit_ids."""
    try:
        store.text_factory = str  # SQLite's own decoding: a fifth faster
        return _read_batch(store, first, end, size, version)
    except sqlite3.OperationalError:  # text that is not UTF-8, or an error that comes again
        store.text_factory = decode_text
        return _read_batch(store, first, end, size, version)
    finally:
        store.text_factory = decode_text


def _read_batch(store: sqlite3.Connection, first: int, end: int, size: int, version: int) -> Batch:
    """Do it once. Each payload is planned as it comes, then dropped: that takes little memory."""
    plans = []
    looked_at = 0
    for audit_id, is_open, payload, *columns in store.execute(READ_BATCH, (first, size, end)):
        looked_at += 1
        if is_open:
            plans.append(plan_row(payload, Row(audit_id, *columns)))
    last = audit_id if looked_at == size else end
    return Batch(first, end, size, version, plans, last)


class ReadAhead:
    """Reads the next batch in a thread, on a connection of its own, while this one is written.

    SQLite writes a batch without Python's lock, so the two go on side by side. Not with a
    rollback journal (`store` is None then): a read would hold up our own COMMIT.
    """

    def __init__(self, store: sqlite3.Connection | None) -> None:
        self._store = store
        self._worker = ThreadPoolExecutor(1)
        self._begun: Future[Batch] | None = None

    def begin(self, first: int, end: int, size: int, version: int) -> None:
        """Begin to read a batch, as read_batch() does."""
        if self._store is not None:
            with suppress(RuntimeError):  # no thread is to be had
                wanted = (self._store, first, end, size, version)
                self._begun = self._worker.submit(read_batch, *wanted)

    def take(self, first: int) -> Batch | None:
        """Return the batch if it was read and begins there; None if it is still to be read.

        Any error counts as not read: it is met again where it can be waited for or told.
        """
        self.finish()
        begun, self._begun = self._begun, None
        if begun is None or begun.exception() is not None or begun.result().first != first:
            return None
        return begun.result()

    def finish(self) -> None:
        """Wait until no read of the thread's is open."""
        futures.wait([self._begun] if self._begun else [])

    def close(self) -> None:
        """End the thread, then close its connection."""
        self._worker.shutdown()
        if self._store is not None:
            self._store.close()


def backfill_batch(lock: WriteLock, batch: Batch) -> tuple[Batch, list[Plan]]:
    """Write a batch in one transaction.

    Returns the batch as it was under the lock, and what became of its rows; a row that was no
    longer open has no outcome. A batch with nothing to write takes no lock. Raises sqlite3.Error
    if the store cannot be written, and RolledBack if the batch must be done again row by row.
    """
    if all(plan.values == NOTHING for plan in batch.plans):
        return batch, batch.plans
    with lock.transaction():
        if lock.changed_since(batch.version):
            batch = read_batch(lock.store, batch.first, batch.end, batch.size, batch.version)
        # A batch UPDATE computes every value before it writes the first row. So a trigger on one
        # row could not protect another, and each row is read and written by itself.
        by_row = lock.schema.triggers or len(batch.plans) == 1
        if not by_row and write_rows(lock.store, batch.plans):
            return batch, batch.plans
        outcomes = []
        for plan in batch.plans:
            if lock.store.in_transaction:
                outcome = write_row(lock.store, plan.row.audit_id)
                # What write_rows() wrote before it came to a refused row is no longer open.
                outcomes.append(outcome if by_row else outcome or plan)
        if not lock.store.in_transaction and len(batch.plans) > 1:
            raise RolledBack
    return batch, [outcome for outcome in outcomes if outcome is not None]


def write_rows(store: sqlite3.Connection, plans: Sequence[Plan]) -> bool:
    """Write a batch at once; return whether that went through for every row."""
    to_write = [plan for plan in plans if plan.values != NOTHING]
    values = [value for plan in to_write for value in (*plan.values, plan.row.audit_id)]
    width = 3 * ROWS_PER_STATEMENT
    values += [None] * (-len(values) % width)
    written = 0
    try:
        for at in range(0, len(values), width):
            written += store.execute(UPDATE_ROWS, values[at : at + width]).rowcount
    except sqlite3.Error as error:
        if is_no_rows_fault(error):
            raise
    return written == len(to_write)


def write_row(store: sqlite3.Connection, audit_id: int) -> Plan | None:
    """Read, plan and write one row; return what became of it, None if it is no longer open.

    A refused row leaves no trace. But RAISE(ROLLBACK) in a trigger ends the transaction.
    """
    plan = next(iter(read_batch(store, audit_id, audit_id, 1, 0).plans), None)
    if plan is None or plan.values == NOTHING:
        return plan
    store.execute("SAVEPOINT one_row")
    reason = "a trigger ignored the update"
    try:
        if store.execute(UPDATE_ROW, (*plan.values, audit_id)).rowcount:
            store.execute("RELEASE one_row")
            return plan
    except sqlite3.Error as error:
        if is_no_rows_fault(error):
            raise
        reason = str(error)
    if store.in_transaction:
        store.execute("ROLLBACK TO one_row")
        store.execute("RELEASE one_row")
    return Plan(plan.row, NOTHING, kind_of(NOTHING, "refused"), NOTHING, reason)


def is_no_rows_fault(error: sqlite3.Error) -> bool:
    """Whether an error while a row is written is not that row's, and ends the run."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF  # the primary one
    missing = code == sqlite3.SQLITE_ERROR and str(error).startswith(MISSING)
    return missing or code in NO_ROWS_FAULT


# --- The run and its figures ----------------------------------------------------------------------


@dataclass
class Figures:
    """What a run says of itself: the keys of the JSON summary."""

    status: str  # completed, interrupted or failed
    db_path: str
    dry_run: bool
    batch_size: int
    batches: int = 0
    supervisor_rows: int = 0
    already_filled: int = 0
    to_fill: int = 0
    filled: int = 0
    left_null: dict[str, int] = field(default_factory=lambda: dict.fromkeys(LEFT_NULL, 0))
    gone: int = 0
    undone: int = 0
    sources: dict[str, dict[str, int]] = field(
        default_factory=lambda: {
            column: dict.fromkeys((*names, FALLBACK), 0) for column, names in FIELDS.items()
        }
    )
    unusable: dict[str, int] = field(default_factory=lambda: dict.fromkeys(FIELDS, 0))
    coverage_before_pct: float | None = None
    coverage_after_pct: float | None = None
    elapsed_seconds: float = 0.0
    rows_per_second: float = 0.0
    version: str = __version__
    started_at: str = field(default_factory=lambda: time.strftime(UTC_FORMAT, time.gmtime()))
    error: str | None = None
    backup: str | None = None


@dataclass
class Summary(Figures):
    """The figures of a run, and what they are worked out from. They hold at every moment of it."""

    interrupted_by: str | None = None  # the name of a signal
    ranges: list[Range] = field(default_factory=list)
    kinds: Counter[Kind] = field(default_factory=Counter)
    examples: dict[Kind, Plan] = field(default_factory=dict)
    left_open: Counter[Range] = field(default_factory=Counter)  # rows left NULL
    expected: int = 0  # open rows of the range at hand that have not been met

    @property
    def reached(self) -> int:
        """How many of the rows to fill the run has come to."""
        return self.filled + sum(self.left_null.values()) + self.gone

    @property
    def wrote(self) -> bool:
        """Whether a value was written, or in a dry run would be."""
        return any(any(counts.values()) for counts in self.sources.values())

    def begin(self, ranges: list[Range]) -> None:
        """Take over what was counted at the start."""
        self.ranges = ranges
        self.supervisor_rows = sum(counted.supervisor_rows for counted in ranges)
        self.to_fill = sum(counted.open_rows for counted in ranges)
        self.already_filled = self.supervisor_rows - self.to_fill
        self.coverage_before_pct = percent(self.already_filled, self.supervisor_rows)

    def add(self, counted: Range, batch: Batch, outcomes: Sequence[Plan]) -> None:
        """Count what became of a batch's rows; those that opened since the count are added."""
        found = len(batch.plans)
        self.batches += 1
        self.to_fill += max(0, found - self.expected)
        self.expected = max(0, self.expected - found)
        self.gone += found - len(outcomes) + (self.expected if batch.last >= counted.last else 0)
        for kind, number in Counter(outcome.kind for outcome in outcomes).items():
            if kind not in self.kinds:
                self.examples[kind] = next(plan for plan in outcomes if plan.kind == kind)
            self.kinds[kind] += number
            if kind.left_null is None:
                self.filled += number
            else:
                self.left_null[kind.left_null] += number
                self.left_open[counted] += number
            for column, source in zip(FIELDS, kind.sources, strict=True):
                if source is not None:
                    self.sources[column][source] += number
        for skipped in (outcome.skipped for outcome in outcomes if outcome.skipped != NOTHING):
            for column, field_in_words in zip(FIELDS, skipped, strict=True):
                self.unusable[column] += field_in_words is not None

    def end(self, seconds: float) -> None:
        """Work out the figures that take the others."""
        still_open = self.to_fill - self.filled - self.gone
        rows = self.supervisor_rows - self.gone
        if self.coverage_after_pct is None:
            self.coverage_after_pct = percent(rows - still_open, rows)
        self.elapsed_seconds = round(seconds, 3)
        self.rows_per_second = round(self.reached / seconds, 1) if seconds else 0.0

    def as_json(self) -> str:
        return json.dumps({figure.name: getattr(self, figure.name) for figure in fields(Figures)})


def percent(part: int, whole: int) -> float:
    """`part` of `whole` in percent, rounded down: 100 means all. Of nothing, all is done."""
    return part * 1_000_000 // whole / 10_000 if whole else 100.0


def run(options: argparse.Namespace, summary: Summary, screen: "Screen", patience: Patience) -> int:
    """Fill or verify the store; say in `summary` how it ended, and return the exit code."""
    try:
        if options.verify:
            return verify(options, patience)
        fill_store(options, summary, screen, patience)
    except (Interrupted, StoreError, sqlite3.Error, OSError, MemoryError) as error:
        cut_short = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_INTERRUPT
        if cut_short or isinstance(error, Interrupted):
            signum = signal.Signals(patience.signum or signal.SIGINT)
            summary.status, summary.interrupted_by = "interrupted", signum.name
            return EXIT_SIGNAL + signum
        summary.error = explain(error, options)
        return EXIT_FAILED
    summary.status = "completed"
    return EXIT_DONE


def fill_store(
    options: argparse.Namespace, summary: Summary, screen: "Screen", patience: Patience
) -> None:
    """Check the store, back it up, count its rows, fill them, and count again if need be."""
    path = find_store(options.db_path)
    open_log(options, path)
    distant = distant_file_system(path)
    if distant is not None:
        words = "is not known to be a local file system: every process must use the same mount"
        log.log(NOTE, "%s is on %s, which %s", printable(path), printable(distant), words)
    with closing(open_store(path, patience, read_only=options.dry_run)) as store:
        lock = WriteLock(store, patience, options.pause)
        schema, version = lock.schema, patience.wait(fetch, store, DATA_VERSION)
        in_wal = patience.wait(fetch, store, "PRAGMA journal_mode") == "wal"
        read_ahead = in_wal and not options.dry_run
        if options.backup is not None and not options.dry_run:
            screen.start("Backup", "pages")
            make_backup(lock, path, Path(os.path.abspath(options.backup)), screen.update)  # noqa: PTH100
            summary.backup = str(options.backup)
        began = time.monotonic()
        try:
            screen.start("Counting", "rows")
            last = patience.wait(fetch, store, SELECT_LAST) or 0
            rows = max(options.batch_size, LEAST_RANGE)
            summary.begin(count_table(lock, -(2**63), last, rows, screen.update))
            screen.start("Dry run" if options.dry_run else "Filling", "rows")
            reader = open_store(path, patience, read_only=True) if read_ahead else None
            with closing(ReadAhead(reader)) as ahead:
                patience.before_stop = ahead.finish
                fill_rows(lock, ahead, path, summary, screen)
            screen.end(summary.to_fill)
            changed = patience.wait(fetch, store, DATA_VERSION) != version
            if not options.dry_run and (changed or lock.schema.triggers):
                screen.start("Checking", "rows")
                count_again(lock, summary, schema, screen.update)
        finally:
            if summary.coverage_before_pct is not None:
                summary.end(time.monotonic() - began)


def fill_rows(
    lock: WriteLock, ahead: ReadAhead, path: Path, summary: Summary, screen: "Screen"
) -> None:
    """Go through the ranges with open rows, batch by batch, and keep `summary` up to date.

    A dry run does the same without writing. Raises sqlite3.Error, StoreError, or Interrupted
    between two batches.
    """
    wait, wal = lock.patience.wait, Path(f"{path}-wal")
    before = {file: stat_of(file) for file in (path, wal)}
    size = min(FIRST_BATCH, summary.batch_size)
    by_row_to = -math.inf  # the last audit_id of a batch that a refused row undid
    long_for, huge = 0, float(HUGE_WAL)  # batches in a row that found the -wal long
    ranges = [counted for counted in summary.ranges if counted.open_rows]
    for counted, following in itertools.zip_longest(ranges, ranges[1:]):
        summary.expected, first = counted.open_rows, counted.first
        while first <= counted.last:
            lock.patience.check()
            version = wait(fetch, lock.store, DATA_VERSION)
            rows = 1 if first <= by_row_to else size
            batch = ahead.take(first)
            if batch is None:
                batch = wait(read_batch, lock.store, first, counted.last, rows, version)
            # An open read keeps a checkpoint from finishing: with a long -wal none is begun. The
            # COMMIT after that ends a checkpoint, and the next one begins the -wal anew.
            found = stat_of(wal)
            size_of_wal = found.st_size if found else 0
            long_for = long_for + 1 if size_of_wal > LONG_WAL else 0
            upcoming = counted._replace(first=batch.last + 1)
            upcoming = upcoming if upcoming.first <= upcoming.last else following
            if upcoming is not None and not long_for and upcoming.first > by_row_to:
                ahead.begin(upcoming.first, upcoming.last, size, version)
            outcomes = batch.plans
            try:
                if not summary.dry_run:
                    batch, outcomes = backfill_batch(lock, batch)
            except RolledBack:
                by_row_to = batch.last
                continue
            summary.add(counted, batch, outcomes)
            log_rows(outcomes)
            screen.update(summary.reached, summary.to_fill)
            for file, was in before.items():
                now = stat_of(file)
                if was is not None and (now is None or not os.path.samestat(was, now)):
                    raise StoreError(
                        f"{file} was moved, replaced or removed, and what was written since may be "
                        "lost: see which file the agents use, then run again on that"
                    )
            if long_for > 2 and size_of_wal > huge:
                huge = math.inf
                words = "somebody's open read holds up its checkpoint, and it grows meanwhile"
                log.log(NOTE, "the -wal has %s MB: %s", f"{size_of_wal / 1e6:,.0f}", words)
            first, size = batch.last + 1, next_size(size, lock.held, summary.batch_size)


def next_size(size: int, held: float, most: int) -> int:
    """Return how many rows the next batch covers, by how long the last one held the lock."""
    if held > SHRINK_ABOVE:
        return max(1, size // 2)
    return min(2 * size, most) if held < GROW_BELOW else size


def stat_of(path: Path) -> os.stat_result | None:
    with suppress(OSError):
        return path.stat()
    return None


def count_again(
    lock: WriteLock, summary: Summary, before: Schema, on_rows: Callable[[int, int], None]
) -> None:
    """Count every range again, because others, or a trigger, may have changed it.

    `undone` is the sum, over the ranges, of how many more open rows there are than the run left.
    Raises StoreError if there are any.
    """
    rows = open_rows = undone = 0
    for counted in summary.ranges:
        found = count_table(lock, counted.first, counted.last, LEAST_RANGE, lambda _rows: None)
        rows += sum(part.supervisor_rows for part in found)
        open_now = sum(part.open_rows for part in found)
        open_rows += open_now
        undone += max(0, open_now - summary.left_open[counted])
        on_rows(rows, summary.supervisor_rows)
    summary.coverage_after_pct, summary.undone = percent(rows - open_rows, rows), undone
    culprit = "another process"
    if lock.schema.triggers:
        culprit = f"a trigger ({', '.join(lock.schema.triggers)})"
    elif lock.patience.wait(newest_migration, lock.store) != before.migration:
        culprit = "a migration"
    if undone:
        rows_have = counted_as(undone, "row has", "rows have")
        words = f"{rows_have} a NULL again at the end, because {culprit} set them back"
        raise StoreError(f"{words}: see to that, then run again")


# --- Progress, log, report, verdict ---------------------------------------------------------------


def printable(value: object, limit: int = sys.maxsize) -> str:
    """Escape and cut a stranger's text, so that it does a terminal or a log no harm: rule 7."""
    text = str(value)
    text = text if len(text) <= limit else f"{text[: limit - 3]}..."
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def counted_as(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"


def format_duration(seconds: float) -> str:
    """Write a duration as `0:07` or `1:02:03`."""
    minutes, rest = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def format_percent(value: float | None) -> str:
    """Write a percentage with one digit, rounded down: `100.0 %` means all."""
    return "unknown" if value is None else f"{math.floor(value * 10) / 10:.1f} %"


def format_progress(label: str, unit: str, done: int, total: int, elapsed: float) -> str:
    """Write progress as one line. Without a total there is no percentage and no time left."""
    rate = f"  {done / elapsed:,.0f} {unit}/s" if done and elapsed > 0 else ""
    if not total:
        return f"{label}  {done:,} {unit}{rate}"
    bar, share = "#" * (BAR_WIDTH * done // total), format_percent(percent(done, total))
    if rate and done < total:
        rate += f"  {format_duration((total - done) * elapsed / done)} left"
    return f"[{bar:-<{BAR_WIDTH}}] {label}  {share}  {done:,}/{total:,} {unit}{rate}"


class Screen(logging.Handler):
    """stderr: a line of progress, and what is logged. What cannot be shown is dropped.

    On a terminal the line redraws itself, elsewhere a new one comes every few seconds.
    """

    def __init__(self, stream: TextIO, *, quiet: bool) -> None:
        super().__init__(logging.ERROR if quiet else NOTE)
        self.addFilter(self._first_examples)
        self.counts: Counter[str] = Counter()  # rows with a warning, by reason
        self._stream, self._quiet = stream, quiet
        self._live = stream.isatty() and os.environ.get("TERM") != "dumb"
        self._pace = REDRAW_SECONDS if self._live else PLAIN_SECONDS
        self._drawn, self._next = False, 0.0  # whether there is a line to clear; when to draw
        self.start("Opening", "rows")

    def _first_examples(self, record: logging.LogRecord) -> bool:
        """Let three rows of each reason through, and count them all."""
        reason = getattr(record, "reason", None)
        if reason is not None:
            self.counts[reason] += 1
        return reason is None or self.counts[reason] <= EXAMPLES

    def emit(self, record: logging.LogRecord) -> None:
        self.say(f"{record.levelname.lower()}: {record.getMessage()}", even_if_quiet=True)

    def say(self, text: str, *, even_if_quiet: bool = False) -> None:
        """Print a line of its own; the progress line is drawn again soon."""
        if even_if_quiet or not self._quiet:
            self._write(f"\r\x1b[K{text}\n" if self._drawn else f"{text}\n")
            self._next, self._drawn = 0.0 if self._drawn else self._next, False

    def start(self, label: str, unit: str) -> None:
        """Begin a phase of the run."""
        self.end()
        self._label, self._unit, self._began = label, unit, time.monotonic()
        self._next = self._began + self._pace

    def update(self, done: int, total: int = 0) -> None:
        """Show where the phase is if it is time; a total of 0 is unknown."""
        elapsed = time.monotonic() - self._began
        self._show(format_progress(self._label, self._unit, done, total, elapsed))

    def waiting(self, seconds: float) -> None:
        """Show that another process's lock is in the way, and how long we go on waiting."""
        left = format_duration(seconds)
        self._show(f"{self._label}  waiting for another process's lock, {left} more")

    def end(self, total: int = 0) -> None:
        """Show that all of a phase is done, if there was anything, and leave the line."""
        if total:
            self._next = 0.0
            self.update(total, total)
        if self._drawn:
            self._write("\n")
        self._drawn = False

    def _show(self, line: str) -> None:
        if self._quiet or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + self._pace
        columns = 0
        with suppress(OSError):
            columns = os.get_terminal_size(self._stream.fileno()).columns if self._live else 0
        self._write(f"\r\x1b[K{line[: (columns or 80) - 1]}" if self._live else f"{line}\n")
        self._drawn = self._live

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError:  # nobody is left to tell; the work goes on
            forget(self._stream)


def forget(stream: TextIO) -> None:
    """Let what is written from now on go nowhere, so that Python's last flush is no error."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class LogFile(logging.FileHandler):
    """Appends lines in UTC to a file; one that cannot be written ends the run."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8", errors="backslashreplace")
        self.formatter = logging.Formatter("%(asctime)s %(levelname)s %(message)s", UTC_FORMAT)
        self.formatter.converter = time.gmtime

    def handleError(self, _record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        with suppress(OSError):  # it would try again to write what it could not
            self.close()
        words = getattr(error, "strerror", error)
        raise StoreError(f"the log file {self.baseFilename} cannot be written: {words}") from error


def open_log(options: argparse.Namespace, store: Path) -> None:
    """Log to a file from now on, if one is asked for; it is created with the store's mode."""
    taken = [f"{store}{suffix}" for suffix in ("", *COMPANIONS)]
    for option, file in (("--backup", options.backup), ("--log-file", options.log_file)):
        if file is not None and os.path.realpath(file) in taken:
            raise StoreError(f"{option} names the store or a file of SQLite's: name another file")
    if options.log_file is not None:
        try:
            with suppress(FileExistsError):
                os.close(os.open(options.log_file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
                copy_mode(store, options.log_file)
            log.addHandler(LogFile(options.log_file))
        except OSError as error:
            words = f"the log file {options.log_file} cannot be written: {error.strerror}"
            raise StoreError(f"{words}: name another one") from error
        log.setLevel(logging.INFO)
    asked = ", ".join(f"{name} {printable(value)}" for name, value in vars(options).items())
    log.info("begin: version %s, %s, %s", __version__, printable(store), asked)


def log_rows(outcomes: Sequence[Plan]) -> None:
    """Log one line for each row of which there is something to say."""
    verbose = log.isEnabledFor(logging.INFO)
    for outcome in outcomes:
        kind = outcome.kind
        if kind.left_null is not None or outcome.skipped != NOTHING:
            reason = {"reason": kind.left_null or SKIPPED}
            log.warning("audit_id %s: %s", outcome.row.audit_id, describe(outcome), extra=reason)
        elif verbose and FALLBACK in kind.sources:
            log.info("audit_id %s: %s", outcome.row.audit_id, describe(outcome))


def describe(outcome: Plan) -> str:
    """Say which values come from created_at, which fields were skipped, and what stays NULL."""
    kind, parts = outcome.kind, []
    for column, source, skipped in zip(FIELDS, kind.sources, outcome.skipped, strict=True):
        if skipped is not None:
            parts.append(f"{column} from {source}, because {skipped}")
        elif source == FALLBACK:
            parts.append(f"{column} from {FALLBACK}")
    if kind.left_null is not None:
        columns = zip(FIELDS, outcome.row.existing, outcome.values, strict=True)
        left = " and ".join(column for column, kept, value in columns if kept is value is None)
        more = f": {printable(outcome.reason, CUT)}" if outcome.reason else ""
        parts.append(f"{left} left NULL: {LEFT_NULL[kind.left_null]}{more}")
    return "; ".join(parts)


def format_counts(screen: Screen, summary: Summary, log_file: Path | None) -> Iterator[str]:
    """Yield how many rows there are for each reason of a warning, and how many fall-backs."""
    where = "the log has" if log_file else "--log-file PATH keeps"
    for reason, number in screen.counts.items():
        why = f"left NULL: {LEFT_NULL[reason]}" if reason in LEFT_NULL else "with skipped fields"
        yield f"warning: {counted_as(number, 'row', 'rows')} {why}; {where} a line for each"
    for column, counts in summary.sources.items():
        values = counted_as(counts[FALLBACK], "value", "values")
        if counts[FALLBACK]:
            yield f"note: {values} of {column} from {FALLBACK}"


def format_report(summary: Summary, verdict: str) -> str:
    """Write the summary for people; what is zero is left out, and the verdict comes last."""
    would_be, that = ("would be ", "that would be ") if summary.dry_run else ("", "")
    lines = [
        f"{'Dry run' if summary.dry_run else 'Backfill'} of {printable(summary.db_path)}: "
        f"{summary.status}{', nothing was written' if summary.dry_run else ''}",
        "",
        f"{'Supervisor rows':<{LABEL_WIDTH}}{summary.supervisor_rows:>{FIGURE_WIDTH},}",
        *_figure("  already filled", summary.already_filled),
        *_figure("  to fill", summary.to_fill),
        *_figure(f"    {would_be}filled", summary.filled),
    ]
    for reason, words in LEFT_NULL.items():
        lines += _figure(f"    left NULL, {reason}", summary.left_null[reason], words)
    lines += [
        *_figure("    gone", summary.gone, "filled, deleted or renamed by others"),
        *_figure("    not reached", summary.to_fill - summary.reached),
        *_figure("  undone", summary.undone, "have a NULL again"),
        f"{'Coverage':<{LABEL_WIDTH}}{format_percent(summary.coverage_before_pct)} before, "
        f"{format_percent(summary.coverage_after_pct)} after",
        "",
    ]
    if summary.wrote:
        lines.append(f"Values {that}written, by their field")
        for column, counts in summary.sources.items():
            lines.append(f"  {column}")
            for name, number in counts.items():
                lines += _figure(f"    {name}", number)
            lines += _figure("    skipped fields", summary.unusable[column], "not a timestamp")
        lines.append("")
    if summary.backup is not None:
        lines += [f"Backup {printable(summary.backup)}", ""]
    if summary.batches:
        batches = counted_as(summary.batches, "batch", "batches")
        speed = f"{summary.elapsed_seconds:.1f} s, {summary.rows_per_second:,.0f} rows/s"
        lines += [f"{batches} of up to {summary.batch_size:,} rows in {speed}", ""]
    return "\n".join([*lines, *(format_preview(summary) if summary.dry_run else ()), verdict])


def _figure(label: str, number: int, words: str = "") -> list[str]:
    line = f"{label:<{LABEL_WIDTH}}{number:>{FIGURE_WIDTH},}  {words}".rstrip()
    return [line] if number else []


def format_preview(summary: Summary) -> Iterator[str]:
    """Show a row of each kind, as a run would leave it; the most frequent kinds first."""
    for kind, number in summary.kinds.most_common(PREVIEW_KINDS):
        row, values, _kind, skipped, _reason = summary.examples[kind]
        rows = counted_as(number, "row", "rows")
        yield f"{rows} like audit_id {row.audit_id}  {printable(row.event_type, CUT)}"
        yield f"  {FALLBACK:<{COLUMN_WIDTH}}  {printable(row.created_at, CUT)}"
        for column, kept, value, source, why in zip(
            FIELDS, row.existing, values, kind.sources, skipped, strict=True
        ):
            words = f"{value}  from {source}{f', because {why}' if why else ''}"
            if kept is not None:
                words = f"{printable(kept, CUT)}  (already there)"
            elif value is None:
                words = f"NULL  ({LEFT_NULL[kind.left_null or '']})"
            yield f"  {column:<{COLUMN_WIDTH}}  {words}"
    more = len(summary.kinds) - PREVIEW_KINDS
    if more > 0:
        yield f"and {counted_as(more, 'more kind', 'more kinds')} of rows"
    if summary.kinds:
        yield ""


def format_verdict(summary: Summary) -> str:
    """Say in one line how a run ended, with the figures that matter and the next step."""
    filled = f"{summary.filled:,} of {summary.to_fill:,} rows"
    again = " without --backup" if summary.backup is not None else ""
    stays = "nothing was written"
    if summary.wrote and not summary.dry_run:
        stays = f"{filled} filled, which stay"
    if summary.status == "failed":
        stays = f"; {stays}" if summary.reached < summary.to_fill else ""
        backup = f"; the backup stays: run again{again}" if again else ""
        return f"failed: {summary.error}{stays}{backup}"
    if summary.status == "interrupted":
        command = f"run the same command again{again} to go on"
        return f"interrupted by {summary.interrupted_by}: {stays}; {command}"
    if not summary.supervisor_rows:
        return "nothing to do: the store has no rows of the Supervisor: is it the right one?"
    if not summary.to_fill:
        return f"nothing to do: all {summary.supervisor_rows:,} rows are filled; {NEXT_STEP}"
    left = f"{summary.to_fill - summary.filled - summary.gone:,}"
    facts = [f"{left} {'would stay' if summary.dry_run else 'left'} NULL"]
    if summary.gone:
        facts.append(f"{summary.gone:,} filled, deleted or renamed by others")
    facts.append(f"coverage {format_percent(summary.coverage_after_pct)}")
    for column, counts in summary.sources.items():
        share = 100 * counts[FALLBACK] // max(1, sum(counts.values()))
        facts += [f"{share} % of {column} from {FALLBACK}"] if share else []
    begin, next_step = f"completed: {filled} filled, ", NEXT_STEP
    if not summary.wrote:
        begin = "nothing to do: "
    elif summary.dry_run:
        begin = f"dry run: {filled} would be filled, "
        next_step = "to write them, run again without --dry-run"
    return f"{begin}{', '.join(facts)}; {next_step}"


# --- The command line -----------------------------------------------------------------------------


def _path(text: str) -> Path:
    return Path(os.path.expanduser(text))  # noqa: PTH111 - raises nothing


def read_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line; raises SystemExit, with 2 for wrong usage."""
    parser = argparse.ArgumentParser(
        prog=Path(sys.argv[0]).name or None, allow_abbrev=False, description=ABOUT, epilog=EXITS
    )
    for option, metavar, kind, default, meaning in (
        ("--db-path", "PATH", _path, DEFAULT_STORE, "the store (default %(default)s)"),
        ("--batch-size", "N", int, 1000, "the most rows in a transaction (default %(default)s)"),
        ("--backup", "PATH", _path, None, "before the first write, copy the store to this file"),
        ("--busy-timeout", "SECONDS", float, 30.0, "how long to wait for a lock (default 30)"),
        ("--pause", "SECONDS", float, 0.0, "extra rest between batches, for a busy store"),
        ("--log-file", "PATH", _path, None, "append a record of the run, and of each odd row"),
    ):
        parser.add_argument(option, metavar=metavar, type=kind, default=default, help=meaning)
    for option, meaning in SWITCHES.items():
        parser.add_argument(option, action="store_true", help=meaning)
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    options = parser.parse_args(argv)
    seconds = (options.busy_timeout, options.pause)
    if options.batch_size < 1:
        parser.error("--batch-size takes a whole number from 1 up")
    if not all(0 <= number < math.inf for number in seconds):
        parser.error("--busy-timeout and --pause take a number of seconds from 0 up")
    given = {name for name, value in vars(options).items() if value != parser.get_default(name)}
    if options.verify and given - {"verify", "db_path", "busy_timeout"}:
        parser.error("--verify goes only with --db-path and --busy-timeout")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; wrong usage raises SystemExit(2)."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by whoever started us
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 - for good
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    options = read_options(argv)
    screen = Screen(sys.stderr, quiet=options.quiet)
    patience = Patience(options.busy_timeout, screen.waiting)
    summary = Summary("failed", str(options.db_path), options.dry_run, options.batch_size)
    log.setLevel(NOTE)
    log.addHandler(screen)
    try:
        with patience.listening():
            code = run(options, summary, screen, patience)
            screen.end()
            return show_end(options, summary, screen) or code
    finally:
        for handler in list(log.handlers):
            log.removeHandler(handler)
            handler.close()


def show_end(options: argparse.Namespace, summary: Summary, screen: Screen) -> int:
    """Log and show how the run ended; return an exit code if that was not possible."""
    code, verdict = EXIT_DONE, format_verdict(summary)
    try:
        log.info("end: %s %s", verdict, summary.as_json())
    except StoreError as error:
        summary.status, summary.error, code = "failed", explain(error, options), EXIT_FAILED
        verdict = format_verdict(summary)
    for line in format_counts(screen, summary, options.log_file):
        screen.say(line)
    report = None
    if options.json:
        report = summary.as_json()
    elif summary.coverage_before_pct is not None:
        report = format_report(summary, verdict)
    if summary.error is not None:
        screen.say(f"error: {verdict.removeprefix('failed: ')}", even_if_quiet=True)
    elif summary.status != "failed" and (report is None or options.json):
        screen.say(verdict)
    try:
        if report is not None:
            put(report)
    except OSError as error:
        words = f"error: the report cannot be written: {error.strerror}"
        said = summary.error is not None or (options.json and not options.quiet)
        screen.say(words if said else f"{words}; {verdict}", even_if_quiet=True)
        code = EXIT_FAILED
    return code


def put(text: str) -> None:
    """Print to stdout at once; a reader that has seen enough is no error."""
    try:
        print(text, flush=True)
    except OSError as error:
        forget(sys.stdout)
        if not isinstance(error, BrokenPipeError):
            raise


def explain(error: Exception, options: argparse.Namespace) -> str:
    """Say what went wrong and what to do, as one line that names the store.

    Every connection is closed by now.
    """
    path, text = printable(options.db_path), printable(error)
    if isinstance(error, sqlite3.Error):
        name = getattr(error, "sqlite_errorname", "SQLite")
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        primary = (known for known in CAUSES if getattr(sqlite3, known) == code)
        cause = CAUSES.get(name) or CAUSES[next(primary, "SQLITE_ERROR")]
        for words, by_words in CAUSES_BY_WORDS.items():
            cause = by_words if str(error).startswith(words) else cause
        text = f"{cause} ({name}: {text}{ask_system(options)})"
        if options.verify and code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN):
            text += "; for its temporary files, SQLITE_TMPDIR can name another folder"
    elif isinstance(error, MemoryError):
        text = CAUSES["SQLITE_NOMEM"]
    elif isinstance(error, OSError):
        where = f" {error.filename}" if error.filename else ""
        text = f"the system refused{where}: {error.strerror}: mend that, then run again"
    return text if path in text else f"{path}: {text}"


def ask_system(options: argparse.Namespace) -> str:
    """Return what the system says when the file is opened and another one made beside it.

    Only with every connection closed: to close a file drops this process's locks on it.
    """
    path, step = Path(os.path.realpath(options.db_path)), "open it"
    if len(os.fsencode(path)) > LONGEST_PATH:
        return f"; its path has more than the {LONGEST_PATH} bytes that SQLite takes: shorten it"
    try:
        with path.open("rb" if options.dry_run or options.verify else "r+b"):
            step = "make a file beside it"
            with tempfile.TemporaryFile(dir=path.parent) as beside:
                beside.write(bytes(PROBE_BYTES))
    except OSError as error:
        return f"; to {step}, the system says: {error.strerror}"
    return ""


def verify(options: argparse.Namespace, patience: Patience) -> int:
    """Run the eight checks and print what the sqlite3 shell prints; return the exit code."""
    path, script = find_store(options.db_path), find_verification()
    statement = ""
    with closing(open_store(path, patience, read_only=True)) as store:
        store.execute("PRAGMA temp_store = DEFAULT")  # a large store's tables need the disk
        store.execute(f"PRAGMA busy_timeout = {min(options.busy_timeout * 1000, 2**31 - 1):.0f}")
        store.text_factory = lambda text: text.decode(errors="replace")
        store.set_progress_handler(lambda: patience.signum is not None, INTERRUPT_STEPS)
        for line in script.read_text(encoding="utf-8").splitlines(keepends=True):
            statement += "" if line.startswith(".") else line
            if not sqlite3.complete_statement(statement):
                continue
            try:
                for *_, text in store.execute(statement):  # of a query plan, the last column
                    put("" if text is None else text)
            except sqlite3.IntegrityError as error:
                if VERDICT_CONSTRAINT in str(error):
                    return EXIT_FAILED
                raise StoreError(f"{error}: name an AgentOS store with --db-path") from error
            statement = ""
    return EXIT_DONE


def find_verification() -> Path:
    """Return the checks' file beside this script, or where pip put it."""
    places = [Path(__file__).resolve().with_name(VERIFICATION)]
    with suppress(ImportError):  # pip has not installed this script here
        from importlib import metadata  # noqa: PLC0415 - slow, and seldom needed

        files = metadata.files("backfill-audit-decision-fields") or []
        places += [Path(str(file.locate())) for file in files if file.name == VERIFICATION]
    for place in places:
        if place.exists():
            return place
    raise StoreError(f"{VERIFICATION} is missing: put it beside {__file__}")


if __name__ == "__main__":
    gc.disable()  # no row leaves a cycle behind, and to look for one takes a twentieth of a run
    raise SystemExit(main())
