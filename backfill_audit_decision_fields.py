#!/usr/bin/env python3
"""Fill the decision columns of an AgentOS audit store from the JSON beside them.

    python3 backfill_audit_decision_fields.py --db-path STORE --dry-run
    python3 backfill_audit_decision_fields.py --db-path STORE --backup STORE.before

The Supervisor's rows of `task_audits` say in their JSON payload when the event
behind a decision happened and when the Supervisor had decided. Migration v21 has
a column for each, `source_event_ts` and `supervisor_processed_at`. This script
fills the ones that are NULL, batch by batch, on a store that stays in use. It
writes nothing but those NULLs and can be stopped and run again at any moment.

The rules for the data are numbered here as in README_BACKFILL.md. Reading order:
the rules as data, with the SQL; extraction; what is written to a row; signals and
locks; the store; reading; one batch; the run; the screen; the command line.
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 - who copies one file checks no metadata
    sys.exit(
        "backfill_audit_decision_fields.py needs Python 3.11 or later, and {} is {}.{}: "
        "run it with a newer one".format(sys.executable, *sys.version_info)
    )
if __name__ == "__main__":
    if not sys.flags.safe_path:
        del sys.path[0]  # the script's own folder, which may be anybody's: import nothing from it
    try:  # until main() listens: what signal is made of, for signal takes a while to import
        import _signal  # type: ignore[import-not-found]
        import os

        if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
            _signal.signal(_signal.SIGINT, lambda *_: os._exit(130))
    except KeyboardInterrupt:
        sys.exit(130)

import argparse
import errno
import gc
import io
import itertools
import json
import math
import os
import re
import select
import shlex
import shutil
import signal
import stat
import struct
import tempfile
import threading
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from operator import attrgetter, itemgetter
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, TextIO, TypeVar

try:
    import sqlite3
except ImportError:
    sys.exit(
        f"{sys.executable} was built without sqlite3: run this with another Python, "
        "or build that one again with SQLite's headers installed"
    )

__version__ = "2.0.0"

T = TypeVar("T")

# --- The rules as data, with the SQL --------------------------------------------------

# Rule 2: the payload fields that each column is filled from; the first usable one wins,
# and after them the row's own created_at.
FIELDS = {
    "source_event_ts": ("source_event_ts", "source_ts", "event_timestamp", "task_created_at"),
    "supervisor_processed_at": ("supervisor_processed_at", "processed_at", "timestamp"),
}
FALLBACK = "created_at"

# Rule 3: the spellings of a moment. The expressions know the days that exist, so that what
# is usable does not depend on what this Python's fromisoformat() happens to take.
WHITE_SPACE = " \t\r\n\v\f"
_DAY = (
    r"20\d\d-(?:(?:0[1-9]|1[0-2])-(?:0[1-9]|1\d|2[0-8])"
    r"|(?:0[13-9]|1[0-2])-(?:29|30)|(?:0[13578]|1[02])-31)"
    r"|20(?:[02468][048]|[13579][26])-02-29"
)
_MINUTE = r"(?:[01]\d|2[0-3]):[0-5]\d"
_OFFSET_HOURS = r"[+-](?:0\d|1[0-4])"
AGENTOS_FORM = re.compile(  # first what nearly every value is: made fast
    r"20\d\d-(?:0[1-9]|1[0-2])-(?:0[1-9]|1\d|2[0-8])T(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d\.\d{6}Z|"
    rf"(?:{_DAY})[T ]{_MINUTE}(?::[0-5]\d(?:\.\d{{1,9}})?)?(?:Z|{_OFFSET_HOURS}:[0-5]\d)?",
    re.ASCII,
)
OTHER_FORMS = re.compile(
    rf"({_DAY})[Tt ]({_MINUTE}(?::[0-5]\d(?:[.,]\d{{1,9}})?)?)"
    rf"(?: ?([Zz]|UTC|{_OFFSET_HOURS}(?::?[0-5]\d)?))?",
    re.ASCII,
)
LONE_DOT = re.compile(r"\.(?=[+-])")
NUMBER_AS_TEXT = re.compile(r"[1-9]\d{8,18}(?:\.\d+)?", re.ASCII)

EPOCH = datetime(1970, 1, 1)
EARLIEST, LATEST = (
    (datetime(year, 1, 1) - EPOCH) // timedelta(microseconds=1) for year in (2000, 2100)
)
# Epoch seconds, milli-, micro- and nanoseconds: what a number is multiplied with, then
# divided by, to give microseconds. Of the years from 2000 to 2099 their ranges do not overlap.
EPOCH_UNITS = ((1_000_000, 1), (1000, 1), (1, 1), (1, 1000))

# Rule 4: a bound of our own. Python's differs from version to version, and some versions
# crash at it where a thread's stack is small.
MOST_LEVELS = 500
JSON_STRING = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
BRACKET = re.compile(r"[][{}]")
JSON_BLANKS = " \t\n\r"

# Why a row stays NULL, or what else is said of one: the keys of the summary, and the words.
LEFT_NULL = {
    "malformed_json": "the payload is not JSON",
    "no_timestamp": "no usable timestamp, nor created_at",
    "unreadable": "what stands in the other column is no text",
    "refused": "the database refused the row",
}
SAID = {reason: f"left NULL: {words}" for reason, words in LEFT_NULL.items()} | {
    column: f"with a field for {column} that is no timestamp and was passed over"
    for column in FIELDS
}

SUPERVISOR = "event_type LIKE '%SUPERVISOR%'"
HAS_NULL = "(source_event_ts IS NULL OR supervisor_processed_at IS NULL)"
ROW = "audit_id, event_type, payload, created_at, source_event_ts, supervisor_processed_at"

# NOT INDEXED: SQLite must walk the table itself, whatever indexes there are. And each page
# is bounded by the rows it looks at, not by an audit_id: where ANALYZE once saw a table of
# three rows, SQLite does not stop at an upper bound.
SELECT_BOUNDS = """
    SELECT (SELECT audit_id FROM task_audits NOT INDEXED ORDER BY audit_id LIMIT 1),
           (SELECT audit_id FROM task_audits NOT INDEXED ORDER BY audit_id DESC LIMIT 1)
"""
COUNT_PAGE = f"""
    SELECT count(*), max(audit_id), count(*) FILTER (WHERE supervisor),
           count(*) FILTER (WHERE supervisor AND has_null)
      FROM (SELECT audit_id, {SUPERVISOR} AS supervisor, {HAS_NULL} AS has_null
              FROM task_audits NOT INDEXED
             WHERE audit_id >= ?
             ORDER BY audit_id
             LIMIT ?)
     WHERE audit_id <= ?
"""
# Gives the open rows of a page and then, as a mark of its end, the next row whatever it is.
READ_PAGE = f"""
    SELECT audit_id, event_type, CASE WHEN audit_id <= :last THEN payload END, created_at,
           source_event_ts, supervisor_processed_at
      FROM task_audits NOT INDEXED
     WHERE audit_id >= :first AND (audit_id > :last OR ({HAS_NULL} AND {SUPERVISOR}))
     ORDER BY audit_id
"""
READ_IDS = f"""
    SELECT audit_id FROM task_audits NOT INDEXED
     WHERE audit_id BETWEEN ? AND ? AND {HAS_NULL} AND {SUPERVISOR}
     ORDER BY audit_id
"""
# By the one audit_id: the only condition that is a search whatever ANALYZE once saw.
READ_ROW = f"SELECT {ROW} FROM task_audits WHERE audit_id = ? AND {HAS_NULL} AND {SUPERVISOR}"
# Rule 1: coalesce() writes nothing but a NULL. What stands for {} is chosen by choose_updates().
UPDATE_ROW = """
    UPDATE {} task_audits
       SET source_event_ts = coalesce(source_event_ts, ?),
           supervisor_processed_at = coalesce(supervisor_processed_at, ?)
     WHERE audit_id = ?
"""
# The same for many rows in one step, in which SQLite does without Python's lock.
UPDATE_ROWS = """
    UPDATE {} task_audits
       SET source_event_ts = coalesce(source_event_ts, found.column1),
           supervisor_processed_at = coalesce(supervisor_processed_at, found.column2)
      FROM (VALUES {}) AS found
     WHERE audit_id = found.column3
"""
# Only while the row is still what it was when it was planned.
IF_UNCHANGED = """
       AND event_type IS ? COLLATE BINARY
       AND payload IS ? COLLATE BINARY
       AND created_at IS ? COLLATE BINARY
       AND source_event_ts IS ? COLLATE BINARY
       AND supervisor_processed_at IS ? COLLATE BINARY
"""

SELECT_SCHEMA = "SELECT sql FROM sqlite_master WHERE type = 'table' AND lower(name) = ?"
SELECT_TRIGGERS = """
    SELECT name FROM sqlite_master WHERE type = 'trigger' AND lower(tbl_name) = 'task_audits'
"""
SELECT_COLUMNS = "SELECT lower(name), hidden > 1 FROM pragma_table_xinfo(?)"
# What the plan says only where audit_id is the rowid, in a table with pages of its own.
BY_ROWID = "USING INTEGER PRIMARY KEY (rowid=?)"

MIGRATION = (0, 21)
VERSION = re.compile(r"\s*v?(\d{1,9})(?:\.(\d{1,9}))?", re.ASCII)
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
NETWORK = re.compile(rb"nfs4?|cifs|smb3?|9p|virtiofs|fuse\..*")
VERIFICATION = "verify_backfill.sql"
LONGEST_PATH = 504  # bytes that SQLite takes

# What an error means and what to do about it: by SQLite's extended code, then by its primary
# one, whose name is the first two words.
DAMAGED = (
    "it is damaged: PRAGMA integrity_check says where, REINDEX mends an index, and only a backup "
    "mends a table (a copy of a WAL store needs its -wal)"
)
NO_SHARED_MEMORY = (
    "its file system gives no shared memory, which WAL mode needs: run where the agents run, "
    "on a local disk"
)
NO_LOCKS = (
    "its file system has no locks that work: run where the agents run, on the same mount as they"
)
READ_ONLY_PLACE = (
    "it is a WAL store in a place that cannot be written: copy all its files, with -wal, "
    "and look at the copy"
)
NO_ROOM = "the disk has no room, or no inodes, left (df and df -i tell): make room, then run again"
FILE_LIMIT = (
    "a write failed though the disk has room: look for a limit of file sizes (ulimit -f), a quota "
    "and the disk's errors, then run again"
)
NEWER_SQLITE = (
    f"this Python's SQLite {sqlite3.sqlite_version} cannot use it, because it was made by a newer "
    "one: use a Python with a newer SQLite"
)
NO_MEMORY = "there is not enough memory: end something else, then run again"
CAUSES = {
    "SQLITE_BUSY": "another process held its lock for over {timeout:g} s: "
    "run again, or wait longer with --busy-timeout",
    "SQLITE_FULL": "the disk or the store is full: make room, then run again",
    "SQLITE_READONLY": "it cannot be written: run as a user who may write the file and its folder",
    "SQLITE_READONLY_DBMOVED": "it was moved or replaced during the run: "
    "run again on the file that the agents use",
    "SQLITE_READONLY_ROLLBACK": "a process that was killed left its journal: a run without "
    "--dry-run, or opening the store once, puts it in order",
    "SQLITE_READONLY_DIRECTORY": "its folder, where SQLite keeps the journal, cannot be written: "
    "run as a user who may write it",
    "SQLITE_READONLY_RECOVERY": READ_ONLY_PLACE,
    "SQLITE_READONLY_CANTINIT": READ_ONLY_PLACE,
    "SQLITE_READONLY_CANTLOCK": READ_ONLY_PLACE,
    "SQLITE_CANTOPEN": "it, or its -wal, -shm or journal beside it, cannot be opened: check the "
    "permissions of file and folder; of a read-only WAL store copy all files, and look at the copy",
    "SQLITE_IOERR": "reading or writing it failed: look for the disk in the system's log, "
    "then run again",
    "SQLITE_IOERR_WRITE": FILE_LIMIT,
    "SQLITE_IOERR_SHMOPEN": NO_SHARED_MEMORY,
    "SQLITE_IOERR_SHMSIZE": NO_SHARED_MEMORY,
    "SQLITE_IOERR_SHMMAP": NO_SHARED_MEMORY,
    "SQLITE_IOERR_SHMLOCK": NO_SHARED_MEMORY,
    "SQLITE_IOERR_LOCK": NO_LOCKS,
    "SQLITE_IOERR_RDLOCK": NO_LOCKS,
    "SQLITE_IOERR_UNLOCK": NO_LOCKS,
    "SQLITE_IOERR_CHECKRESERVEDLOCK": NO_LOCKS,
    "SQLITE_IOERR_NOMEM": NO_MEMORY,
    "SQLITE_PROTOCOL": NO_LOCKS,
    "SQLITE_NOMEM": NO_MEMORY,
    "SQLITE_CORRUPT": DAMAGED,
    "SQLITE_CORRUPT_INDEX": "an index is damaged: REINDEX mends it, then run again",
    "SQLITE_CORRUPT_VTAB": "a search index (a virtual table) is out of step with its table: "
    "INSERT INTO name(name) VALUES('rebuild') mends it, then run again",
    "SQLITE_NOTADB": "it is not a SQLite database, or is encrypted: name the store with --db-path",
    "SQLITE_ERROR": "SQLite gave up: run again, and if that does not help, look in the schema for "
    "what it names",
}
CAUSES["SQLITE_LOCKED"] = CAUSES["SQLITE_BUSY"]
# The same by the first words of the message, which says more than the code.
MISSING = ("no such", "unknown function")
CAUSES_BY_WORDS = {
    MISSING: "something that filling a row needs, perhaps for a trigger or an index, is not "
    "there: run where it is loaded, or mend the schema, or wait for a migration to end",
    ("malformed database schema",): f"this Python's SQLite {sqlite3.sqlite_version} cannot read "
    "its schema: use a Python with a newer SQLite",
    ("unsupported file format",): NEWER_SQLITE,
}
# And by what the system says when it is asked to open the file, or to make one beside it.
CAUSES_BY_ERRNO = {
    errno.EACCES: "{what} cannot be {done} by this user: run as a user who may",
    errno.EPERM: "{what} is immutable (lsattr tells): lift that, then run again",
    errno.EROFS: "its file system is mounted read-only: run where it can be written",
    errno.EMFILE: "no file descriptors are left: raise ulimit -n, then run again",
    errno.ENFILE: "no file descriptors are left on this machine: end something, then run again",
    errno.ENOSPC: NO_ROOM,
    errno.EDQUOT: "the disk quota is used up: make room, then run again",
    errno.EFBIG: FILE_LIMIT,
    errno.ENOENT: "it was moved away during the run: run again on the file that the agents use",
}
PATH_TOO_LONG = (
    f"its path has more than the {LONGEST_PATH} bytes that SQLite takes: mount or link its folder "
    "under a shorter one"
)
# Primary codes: where to ask the system; what is nobody's row but the store's or the machine's.
ASK_SYSTEM = {
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_READONLY,
}
LOCKED = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
NOBODYS_ROW = {
    *ASK_SYSTEM,
    *LOCKED,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_INTERRUPT,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_PROTOCOL,
}

DEFAULT_BATCH_SIZE = 1000
DEFAULT_BUSY_TIMEOUT = 30.0
PAGE_ROWS = 1000  # rows of the table that one read looks at: bounds how long it locks
PAGE_BYTES = 4_000_000  # of payload that one read parses: the same
BATCH_BYTES = 16_000_000  # of payload in a batch, which is kept until it is written
PAGES_AHEAD = 2  # or parts of large ones, read in a thread while a batch is written
SWITCH_SECONDS = 0.0002  # after which that thread gives Python's lock to the one that writes
ROWS_AT_ONCE = 1000  # written by one statement: three of SQLite's 32,766 variables each
CACHE_KIB = 8_000  # of pages: what a batch reads and writes stays at hand until its COMMIT
PROBE_BYTES = 65_536  # written beside a store that failed: more than a -shm takes
BACKUP_PAGES = 1000  # database pages that the backup copies between two looks at a signal

LOCK_SLICES = (0.1, 0.1, 0.2, 0.5, 1.0)  # seconds that SQLite waits for a lock, each time longer:
# it keeps new readers out meanwhile, to get a turn where they leave no gap
LOCK_PAUSE = 0.4  # seconds between two slices, in which others have their turn
SLEEP_SLICE = 0.1  # seconds of a rest between two looks at a signal
LONGEST_REST = 2.0  # seconds, beside --pause
COMPANY_SECONDS = 2.0  # for how long another writer counts as present
# The share of the time that the write lock is left free.
FREE_SHARE_ALONE = 0.2
FREE_SHARE_IN_COMPANY = 0.8
# Seconds of writing between two checkpoints: bounds the WAL, because a writer that finds it
# long checkpoints it in its own COMMIT.
CHECKPOINT_SECONDS = 0.02
HELD_UP_BYTES = 16_000_000  # of a -wal that another process's read keeps from being used again

EXAMPLES = 3  # rows on the terminal for each reason
PREVIEW_KINDS = 10
REDRAW_SECONDS = 0.1  # of the progress line on a terminal
PLAIN_SECONDS = 5.0  # between progress lines elsewhere
BAR_WIDTH = 10
# What a line of progress loses where the terminal is too narrow, in this order.
DISPENSABLE = ("rate", "bar", "label", "count", "left")
LABEL_WIDTH = 29
FIGURE_WIDTH = 12
COLUMN_WIDTH = max(map(len, FIELDS))
PIECE = 1000  # characters written at once
CUT = 200  # characters of a stranger's text that are shown

INTERRUPTS = ("SIGHUP", "SIGINT", "SIGTERM")
EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_SIGNAL = 128


# --- Extraction: what a row's timestamps are, by the payload ------------------------------


Pair = tuple[str | None, str | None]  # one for each of the two columns, in the order of FIELDS
Row = tuple[Any, ...]  # the columns of ROW
NOTHING = (None, None)


def extract_timestamps(payload: object, created_at: object) -> dict[str, str | None]:
    """Find both timestamps of a row, by column: rules 2 to 4.

    `payload` is the column as SQLite gives it: str, bytes or None. Its fields come
    first, in the order of FIELDS, then `created_at`. A payload without fields (NULL,
    blank, JSON that is no object) leaves created_at alone; one that is not JSON
    yields None twice. Never raises.
    """
    values, *_ = find_timestamps(payload, created_at)
    return dict(zip(FIELDS, values, strict=True))


def find_timestamps(
    payload: object, created_at: object
) -> tuple[Pair, Pair, Pair, Pair, str | None]:
    """Do what extract_timestamps() does, and say where the values came from.

    Returns the values, the fields that they are from, for each the first field that was there
    and passed over as unusable, the texts of those, and what is wrong with a malformed payload.
    """
    malformed = None
    try:
        fields = _read_payload(payload)
    except ValueError as error:
        malformed = str(error)
        fields, created_at = {}, None
    names, other_names = FIELDS.values()
    first, source, passed, text = _first_usable(fields, names, created_at)
    second, other_source, other, other_text = _first_usable(fields, other_names, created_at)
    return (first, second), (source, other_source), (passed, other), (text, other_text), malformed


def _first_usable(
    fields: dict[str, Any], names: Iterable[str], created_at: object
) -> tuple[str | None, str | None, str | None, str | None]:
    """Return the first usable candidate's value and name, and the field passed over for it."""
    passed = text = None
    for name in names:
        candidate = fields.get(name)
        if candidate is not None:
            if (value := as_timestamp(candidate)) is not None:
                return value, name, passed, text
            if passed is None:
                passed, text = name, ENCODER.encode(candidate)[: CUT + 1]
    value = as_timestamp(created_at)
    return value, None if value is None else FALLBACK, passed, text


def _whole_number(text: str) -> float:
    """Read a JSON integer; one with more digits than any timestamp has as the nearest float."""
    return int(text) if len(text) < 20 else float(text)


# raw_decode() of this is json.loads() without its search for blanks: a fifth faster.
DECODER = json.JSONDecoder(parse_int=_whole_number)
ENCODER = json.JSONEncoder(ensure_ascii=False)


def _read_payload(payload: object) -> dict[str, Any]:
    """Return the payload's fields, rule 4; raise ValueError, in words, if it is not JSON."""
    if isinstance(payload, bytes):
        try:
            payload = payload.decode()
        except UnicodeDecodeError:
            raise ValueError(
                "it is not UTF-8 text (damaged, compressed, or SQLite's binary JSON)"
            ) from None
    if not isinstance(payload, str) or not payload.strip(WHITE_SPACE):
        return {}
    text = payload.strip(JSON_BLANKS)
    many = len(text) > MOST_LEVELS and text.count("{") + text.count("[") > MOST_LEVELS
    if many and _levels(text) > MOST_LEVELS:
        raise ValueError(f"it is nested more than {MOST_LEVELS} levels deep")
    try:
        content, end = DECODER.raw_decode(text)
    except json.JSONDecodeError as error:
        if text.startswith("\ufeff"):
            raise ValueError("it begins with a byte-order mark") from None
        raise ValueError(f"{error.msg} (character {error.pos})") from None
    if end < len(text):
        raise ValueError(f"Extra data (character {end})")
    return content if isinstance(content, dict) else {}


def _levels(text: str) -> int:
    """How deep JSON is nested; brackets inside of strings do not count."""
    brackets = BRACKET.findall(JSON_STRING.sub("", text))
    return max(
        itertools.accumulate(1 if bracket in "[{" else -1 for bracket in brackets), default=0
    )


def as_timestamp(value: object) -> str | None:
    """Return what is to be written for a candidate, None if it is not usable: rule 3."""
    if isinstance(value, str):
        return value if AGENTOS_FORM.fullmatch(value) else _from_other_forms(value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return _from_epoch(value)
    return None


def _from_other_forms(text: str) -> str | None:
    """Write other writers' spellings, and text that is a number, in AgentOS's form."""
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
    numerator, denominator = number.as_integer_ratio()
    for factor, divisor in EPOCH_UNITS:
        microseconds = _divide(numerator * factor, denominator * divisor)
        if EARLIEST <= microseconds < LATEST:
            moment = EPOCH + timedelta(microseconds=microseconds)
            return moment.isoformat(timespec="microseconds") + "Z"
    return None


def _divide(numerator: int, denominator: int) -> int:
    """Divide and round to the nearest integer, halves to even; exact, as floats are not."""
    whole, rest = divmod(numerator, denominator)
    return whole + (2 * rest + whole % 2 > denominator)


# --- Rows: what is to be written to one ----------------------------------------------------


class Kind(NamedTuple):
    """What a row is counted by. Pairs are in the order of FIELDS."""

    sources: Pair  # the fields that values are written from
    passed_over: Pair  # the fields that were there and unusable, where a value is written
    left_null: str | None  # a key of LEFT_NULL where a column stays NULL


kind_of = cache(Kind)  # there are few, and many rows of each


class Plan(NamedTuple):
    """What is to be written to a row, later what was. Pairs are in the order of FIELDS."""

    row: Row
    values: Pair  # to write; None where nothing is to be written
    kind: Kind
    unusable: Pair  # the texts of the fields in kind.passed_over
    reason: str | None  # more words for kind.left_null
    data_version: int  # of the store, when we last looked before the row was read

    @property
    def audit_id(self) -> int:
        audit_id: int = self.row[0]
        return audit_id

    @property
    def standing(self) -> tuple[object, object]:
        """What the columns held when the row was read."""
        return self.row[4], self.row[5]


def plan_row(row: Row, data_version: int = 0) -> Plan:
    """Decide what is to be written to a row: rule 1 (only where it is NULL) and rule 5.

    `row` has at least one NULL, and bytes for text that is not UTF-8. `data_version` is that of
    the plan; a row that is read and written under one lock needs none.
    """
    _audit_id, _event_type, payload, created_at, first, second = row
    stood = first if second is None else second
    found, sources, passed_over, unusable, reason = find_timestamps(payload, created_at)
    values: Pair = NOTHING
    left_null = None
    if reason is not None:
        left_null = "malformed_json"
    elif stood is not None and not isinstance(stood, str):
        left_null, reason = "unreadable", "a BLOB, a number, or text that is not UTF-8"
    else:
        values = match_offsets((first, second), found)
        if None in values and (stood is None or values == NOTHING):
            left_null = "no_timestamp"
    if None in values:  # nothing is said of a column that is not written
        sources, passed_over, unusable = (
            _where_written(values, pair) for pair in (sources, passed_over, unusable)
        )
    kind = kind_of(sources, passed_over, left_null)
    return Plan(row, values, kind, unusable, reason, data_version)


def _where_written(values: Pair, pair: Pair) -> Pair:
    return (pair[0] if values[0] is not None else None, pair[1] if values[1] is not None else None)


def match_offsets(standing: tuple[object, object], found: Pair) -> Pair:
    """Return the values to write, None where one stands, such that a pair can be subtracted.

    Rule 5: AgentOS's readers crash on a pair of which only one carries a UTC offset.
    Where the one without offset is ours, it is UTC and gets its `Z`; where it stands,
    ours is written in UTC without offset.
    """
    first, second = found
    if standing == NOTHING:
        if first is None or second is None or _has_offset(first) == _has_offset(second):
            return found
        return (first, _with_z(second)) if _has_offset(first) else (_with_z(first), second)
    at = standing.index(None)
    value, stood = found[at], read_as_agentos(standing[1 - at])
    if value is not None and stood is not None and _has_offset(value) != (stood.tzinfo is not None):
        value = _without_offset(value) if _has_offset(value) else _with_z(value)
    return (value, None) if at == 0 else (None, value)


def read_as_agentos(value: object) -> datetime | None:
    """Read what stands in a column the way AgentOS's own readers do, None where they cannot.

    They run on Python 3.13, which does not take hour 24 and does take a dot without digits;
    3.14 has it the other way round.
    """
    text = str(value).replace("Z", "+00:00")
    try:
        moment = datetime.fromisoformat(LONE_DOT.sub("", text))
    except ValueError:
        return None
    return None if moment.hour == 0 and "24" in (text[9:11], text[11:13]) else moment


def _has_offset(timestamp: str) -> bool:
    """Whether a timestamp of rule 3 carries a UTC offset."""
    return timestamp[-1] == "Z" or timestamp[-6] in "+-"


def _with_z(timestamp: str) -> str:
    return datetime.fromisoformat(timestamp).isoformat() + "Z"


def _without_offset(timestamp: str) -> str:
    return datetime.fromisoformat(timestamp).astimezone(UTC).replace(tzinfo=None).isoformat()


def refuse(plan: Plan, words: str) -> Plan:
    """Return the plan of a row that the database refused to write."""
    return plan._replace(
        values=NOTHING, kind=kind_of(NOTHING, NOTHING, "refused"), unusable=NOTHING, reason=words
    )


# --- Signals and locks: the patience of the run ----------------------------------------------


class Interrupted(Exception):
    """SIGHUP, SIGINT or SIGTERM came; raised only where nothing is half done."""


class Patience:
    """Waits for other processes' locks, rests, and notices signals meanwhile.

    Signals are only noted when they come, so that the batch at hand can be ended first.
    """

    def __init__(self, busy_timeout: float) -> None:
        self.busy_timeout = busy_timeout  # seconds
        self.on_wait: Callable[[float], None] | None = None  # is told the seconds left
        self.while_stopped: AbstractContextManager[object] = nullcontext()
        self.signum: int | None = None
        self.stop_asked = False
        self._stopped = 0.0

    def now(self) -> float:
        """Seconds of a clock that stands still while the process is stopped by Ctrl-Z."""
        return time.monotonic() - self._stopped

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals, but for those that were ignored when we started.

        Only the main thread can; elsewhere they stay as they are.
        """
        handlers: dict[str, Any] = dict.fromkeys(INTERRUPTS, self._note)
        handlers["SIGTSTP"] = self._note_stop
        handlers["SIGTTOU"] = signal.SIG_IGN  # a background job may write to its terminal
        before = {}
        if threading.current_thread() is threading.main_thread():
            for name, handler in handlers.items():
                signum = getattr(signal, name, None)  # Windows has not all of them
                if signum is not None and signal.getsignal(signum) != signal.SIG_IGN:
                    before[signum] = signal.signal(signum, handler)
        try:
            yield
        finally:
            # After a signal the process is about to end: another one must not change how.
            for signum, former in before.items():
                signal.signal(signum, former if self.signum is None else signal.SIG_IGN)

    def _note(self, signum: int, _frame: FrameType | None) -> None:
        self.signum = signum

    def _note_stop(self, _signum: int, _frame: FrameType | None) -> None:
        self.stop_asked = True

    def check(self) -> None:
        """Raise Interrupted if a signal came, and stop if Ctrl-Z did. Call it with no lock held."""
        if self.stop_asked:
            with self.while_stopped:
                since = time.monotonic()
                handler = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
                signal.raise_signal(signal.SIGTSTP)
                signal.signal(signal.SIGTSTP, handler)
                self.stop_asked = False
                self._stopped += time.monotonic() - since
        if self.signum is not None:
            raise Interrupted

    def sleep(self, seconds: float) -> None:
        """Sleep, in slices that a signal can end. Raises Interrupted."""
        wake_up = self.now() + seconds
        while (left := wake_up - self.now()) > 0:
            self.check()
            time.sleep(min(left, SLEEP_SLICE))

    def wait(self, action: Callable[..., T], *args: Any) -> T:
        """Return action(*args), asked for again while another process's lock is in the way.

        SQLite waits for a slice of the time itself, deaf to signals; between two slices
        nothing is held. Raises SQLite's error after `busy_timeout`, Interrupted after a signal.
        """
        give_up = self.now() + self.busy_timeout
        while True:
            try:
                return action(*args)
            except sqlite3.OperationalError as error:
                left = give_up - self.now()
                if primary_code(error) not in LOCKED or left <= 0:
                    raise
            if self.on_wait is not None:
                self.on_wait(left)
            self.sleep(min(left, LOCK_PAUSE))


def primary_code(error: BaseException) -> int | None:
    """SQLite's primary result code of an error, None where it has none."""
    code: int | None = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


# --- The store: find, open, check, count, copy ------------------------------------------------


class StoreError(Exception):
    """What is wrong and the next step, as one sentence for the operator."""


class Page(NamedTuple):
    """A stretch of the table, and what it held when it was counted."""

    rows: int
    first: int  # audit_ids
    last: int
    supervisor_rows: int
    open_rows: int


def stores_to_be_found() -> list[str]:
    """Return the paths at which a release of AgentOS has left a store on this machine."""
    named = [os.environ.get(name, "") for name in STORE_VARIABLES]
    paths = [os.path.expanduser(path) for path in (*named, *STORE_PLACES) if path]  # noqa: PTH111
    return list(dict.fromkeys(path for path in paths if os.path.isfile(path)))  # noqa: PTH113


def check_name(path: Path, *, read_only: bool) -> str | None:
    """Raise StoreError unless the file is there and `path` is its one name and place.

    SQLite finds -wal and -journal by the file's name: under another one it does not see
    what other processes have there. Returns a note where the file is on a network mount.
    Nothing is opened where anybody of this process may hold a lock: closing would drop it.
    """
    shown = printable(path, None)
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise StoreError(f"there is no file {shown}: name the store with --db-path") from None
    except OSError as error:
        raise StoreError(
            f"{shown} cannot be found ({error.strerror}): run as a user who may, or name the store "
            "with --db-path"
        ) from error
    if not stat.S_ISREG(status.st_mode):
        raise StoreError(f"{shown} is no file: name the store with --db-path")
    if status.st_size == 0:
        raise StoreError(
            f"{shown} is empty, not a store: name the store with --db-path "
            "(a copy of a WAL store needs its -wal)"
        )
    if status.st_nlink > 1:
        raise StoreError(
            f"{shown} has {status.st_nlink} names (hard links), and under a second one a run "
            "destroys it: use the name that the agents use, and remove the others, which "
            f"`find FOLDER -samefile {shlex.quote(shown)}` shows"
        )
    real = os.fsencode(os.path.realpath(path))
    mounts = read_mounts()
    if any(point == real for point, _kind in mounts):
        raise StoreError(
            f"{shown} is a mount of the file alone, and its -wal and journal are elsewhere, which "
            "destroys it: mount its folder instead, and use the name that the agents use"
        )
    user = os.geteuid() if hasattr(os, "geteuid") else 0
    if read_only and user not in (0, status.st_uid) and _is_unused_wal_store(path):
        raise StoreError(
            f"{shown} is a WAL store that nobody has open, and a dry run by another user leaves a "
            f"-shm that keeps its owner out: run as its owner (user id {status.st_uid})"
        )
    around = sorted(
        (
            (len(point), kind)
            for point, kind in mounts
            if real.startswith(point.rstrip(b"/") + b"/")
        ),
        key=itemgetter(0),
    )
    if around and NETWORK.fullmatch(kind := around[-1][1]):
        return (
            f"{shown} is on a network mount ({kind.decode()}): every process must use it through "
            "this same mount, and without locks there, it looks as if one were never let go"
        )
    return None


def read_mounts() -> list[tuple[bytes, bytes]]:
    """Return the mount points that this process sees, with their file system's type."""
    try:
        lines = MOUNTS.read_bytes().split(b"\n")
    except OSError:  # a system without /proc
        return []
    mounts = []
    for line in filter(None, lines):
        before, _, after = line.partition(b" - ")
        point = re.sub(
            rb"\\([0-7]{3})", lambda code: bytes([int(code[1], 8)]), before.split(b" ")[4]
        )
        mounts.append((point, after.split(b" ")[0]))
    return mounts


def _is_unused_wal_store(path: Path) -> bool:
    """Whether a store is in WAL mode and nobody has it open, so that no lock can be lost."""
    if Path(f"{os.path.realpath(path)}-shm").exists():
        return False
    try:
        with path.open("rb") as file:
            return file.read(20)[18:] == b"\2\2"
    except OSError:  # SQLite will say so
        return False


@contextmanager
def opened(
    path: Path, patience: Patience, *, read_only: bool
) -> Iterator[tuple[sqlite3.Connection, sqlite3.Connection | None]]:
    """Open a store, and one in WAL mode that is to be written once more, to read ahead."""
    with closing(open_store(path, patience, read_only=read_only)) as store:
        if read_only or patience.wait(fetch, store, "PRAGMA journal_mode") != ("wal",):
            yield store, None
        else:
            with closing(open_store(path, patience, read_only=True)) as reader:
                yield store, reader


def open_store(path: Path, patience: Patience, *, read_only: bool) -> sqlite3.Connection:
    """Open an existing store, having asked SQLite whether it can be used; creates no file.

    Raises sqlite3.Error, or Interrupted.
    """
    uri = f"{path.absolute().as_uri()}?mode={'ro' if read_only else 'rw'}"
    store = sqlite3.connect(
        uri, uri=True, timeout=LOCK_SLICES[0], isolation_level=None, check_same_thread=False
    )
    try:
        store.text_factory = decode_text
        store.execute("PRAGMA temp_store = MEMORY")  # what a trigger needs, too: no full TMPDIR
        if patience.wait(fetch, store, "PRAGMA journal_mode") == ("wal",):
            # In WAL mode this cannot corrupt the file: a power cut may undo the last
            # batches, whole, and the next run does them again.
            store.execute("PRAGMA synchronous = NORMAL")
            # SQLite would checkpoint inside of COMMIT, where we cannot tell it from the
            # write lock that it does not need; Courtesy does it between two batches.
            store.execute("PRAGMA wal_autocheckpoint = 0")
        patience.wait(store.execute, f"PRAGMA cache_size = -{CACHE_KIB}")
        if not read_only:  # the beginning of a write: BEGIN alone is granted for a file that is not
            (version,) = patience.wait(fetch, store, "PRAGMA user_version")
            patience.wait(store.execute, "BEGIN IMMEDIATE")
            store.execute(f"PRAGMA user_version = {version}")
            store.execute("ROLLBACK")
    except BaseException:
        store.close()
        raise
    return store


def decode_text(text: bytes) -> str | bytes:
    """Return a column's text, as bytes where it is not UTF-8, so that no row can end a run."""
    try:
        return text.decode()
    except UnicodeDecodeError:
        return text


def fetch(store: sqlite3.Connection, sql: str, *parameters: object) -> Any:
    """Return the first row of a query, None if there is none."""
    return store.execute(sql, parameters).fetchone()


def check_schema(store: sqlite3.Connection) -> None:
    """Raise StoreError unless the store has what migration v21 brings, and can be written."""
    if fetch(store, SELECT_SCHEMA, "schema_version"):
        versions: list[tuple[int, int]] = []
        if "version" in dict(store.execute(SELECT_COLUMNS, ("schema_version",))):
            texts = store.execute("SELECT version FROM schema_version")
            versions += filter(None, (parse_version(text) for (text,) in texts))
        if versions and (newest := max(versions)) < MIGRATION:
            raise StoreError(
                f"the store is at schema version {'.'.join(map(str, newest))}.0, before 0.21.0: "
                "apply AgentOS's migration v21 first"
            )
    if fetch(store, SELECT_SCHEMA, "task_audits") is None:
        raise StoreError(
            "the store has no table task_audits: name an AgentOS store with --db-path "
            "(a copy of a WAL store needs its -wal)"
        )
    generated = dict(store.execute(SELECT_COLUMNS, ("task_audits",)))
    if missing := [column for column in NEEDED_COLUMNS if column not in generated]:
        raise StoreError(
            f"task_audits has no column {', '.join(missing)}: "
            "apply AgentOS's migration v21 (0.21.0) first"
        )
    if fixed := [column for column in FIELDS if generated[column]]:
        raise StoreError(
            f"task_audits.{fixed[0]} is a GENERATED column here, which nobody can write: "
            "make it an ordinary one, or name another store with --db-path"
        )
    if not any(BY_ROWID in step for step in plan_of(store, READ_ROW, (0,))):
        raise StoreError(
            "task_audits.audit_id is not the INTEGER PRIMARY KEY of an ordinary table here: "
            "name an AgentOS store with --db-path"
        )
    choose_updates(store, 1)


def choose_updates(store: sqlite3.Connection, rows: int) -> tuple[str, str | None]:
    """Return the statement that fills a row, and one for so many; raise if one cannot be made.

    For each row they take the values and the audit_id. The second is None where SQLite would
    walk the table for it and not search for each row, as after ANALYZE of a table of one row.

    OR ABORT keeps ON CONFLICT REPLACE from deleting other rows; but it would override the
    conflict clauses of the statements in triggers, so it stands only where it is needed.
    """
    schema = fetch(store, SELECT_SCHEMA, "task_audits")
    conflict = schema is not None and re.search(r"\bCONFLICT\b", str(schema[0]), re.IGNORECASE)
    clause = "OR ABORT" if conflict else ""
    many = UPDATE_ROWS.format(clause, ", ".join(["(?, ?, ?)"] * rows))
    steps = plan_of(store, many, (None, None, None) * rows)
    return UPDATE_ROW.format(clause), many if any(BY_ROWID in step for step in steps) else None


def plan_of(store: sqlite3.Connection, sql: str, parameters: Any) -> list[str]:
    """Return the steps in which SQLite will carry out a query."""
    return [step[3] for step in store.execute(f"EXPLAIN QUERY PLAN {sql}", parameters)]


def parse_version(text: object) -> tuple[int, int] | None:
    """Return '0.21.0' as (0, 21), 'v66' as (0, 66), None for what is no version.

    Numbers, not letters, count: as text, 0.9.0 would be above 0.21.0.
    """
    match = VERSION.match(str(text))
    if match is None:
        return None
    first, second = match.groups()
    return (0, int(first)) if second is None else (int(first), int(second))


def count_pages(
    store: sqlite3.Connection, first: int, last: int, patience: Patience
) -> Iterator[Page]:
    """Count the rows from one audit_id to another page by page, so that no read locks for long."""
    while first <= last:
        patience.check()
        row = patience.wait(fetch, store, COUNT_PAGE, first, PAGE_ROWS, last)
        if not row[0]:
            break
        page = Page(row[0], first, *row[1:])
        yield page
        first = page.last + 1


def survey(
    store: sqlite3.Connection, patience: Patience, on_rows: Callable[[int, int], None]
) -> list[Page]:
    """Count all rows of the table. Calls on_rows(rows so far, 0) after each page."""
    first, last = patience.wait(fetch, store, SELECT_BOUNDS)
    if first is None:
        return []
    steps = patience.wait(plan_of, store, COUNT_PAGE, (0, 1, 1))
    steps += patience.wait(plan_of, store, READ_PAGE, {"first": 0, "last": 0})
    scans = any(re.match("SCAN.* task_audits", step) for step in steps)
    pages: list[Page] = []
    rows = 0
    for page in count_pages(store, first, last, patience):
        pages.append(page)
        rows += page.rows
        if scans and len(pages) > 1:
            raise StoreError(
                "SQLite would read the whole table for each page, because ANALYZE once saw only a "
                "row or two in it: run `PRAGMA analysis_limit=1000; ANALYZE task_audits`, then "
                "run again"
            )
        on_rows(rows, 0)
    return pages


def make_backup(
    store: sqlite3.Connection,
    path: Path,
    target: Path,
    patience: Patience,
    on_pages: Callable[[int, int], None],
) -> bool:
    """Copy the store at `path` as it is at this moment to the new file `target`.

    The copy is made in a folder beside it, which only we can enter, and takes its name when
    it is whole. A read transaction holds one moment fast: in WAL mode writers go on beside
    it, with a rollback journal their commits wait for its end.

    Calls on_pages(pages copied, pages in all). Returns whether the copy has the store's
    permissions, or fewer. Raises StoreError, OSError, sqlite3.Error or Interrupted, and
    then leaves no file.
    """
    for suffix in ("", *COMPANIONS):  # SQLite would play an old journal into the copy
        if os.path.lexists(f"{target}{suffix}"):
            taken = printable(f"{target}{suffix}", None)
            raise StoreError(f"{taken} exists already: name a new file with --backup")

    def on_step(_status: int, left: int, total: int) -> None:
        if patience.signum is not None:
            raise Interrupted
        on_pages(total - left, total)

    with tempfile.TemporaryDirectory(".partial", f"{target.name}.", target.parent) as folder:
        partial = Path(folder, target.name)
        os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        store.execute("BEGIN")
        try:
            patience.wait(fetch, store, "SELECT count(*) FROM sqlite_master")
            with closing(sqlite3.connect(partial)) as copy:
                store.backup(copy, pages=BACKUP_PAGES, progress=on_step)
        finally:
            store.execute("ROLLBACK")
        _copy_permissions(path, partial)
        try:  # takes the name, which somebody else may have taken since we looked
            os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        except FileExistsError:
            raise StoreError(
                f"{printable(target, None)} was made by somebody else meanwhile: "
                "name a new file with --backup"
            ) from None
        try:
            partial.replace(target)
        except BaseException:
            target.unlink()
            raise
    return not stat.S_IMODE(target.stat().st_mode) & ~stat.S_IMODE(path.stat().st_mode)


def _copy_permissions(source: Path, copy: Path) -> None:
    """Give `copy` the owner and mode of `source`; where that is not to be had, it keeps its own."""
    wanted = source.stat()
    with suppress(OSError, AttributeError):  # a place, or a system, that has no owners or modes
        os.chown(copy, wanted.st_uid, wanted.st_gid)
        copy.chmod(stat.S_IMODE(wanted.st_mode))


def data_version(store: sqlite3.Connection) -> int:
    """A number that changes when another connection has committed."""
    version: int = fetch(store, "PRAGMA data_version")[0]
    return version


def triggers_of(store: sqlite3.Connection) -> list[str]:
    """The triggers on the table, by name: where there is one, writing a row may change others."""
    return [name for (name,) in store.execute(SELECT_TRIGGERS)]


class Moment(NamedTuple):
    """What tells, compared with a later one, whether others were at the store meanwhile."""

    data_version: int
    schema_version: int  # changes with the schema


def moment_of(store: sqlite3.Connection) -> Moment:
    return Moment(data_version(store), fetch(store, "PRAGMA schema_version")[0])


def file_at(path: Path) -> tuple[int, int] | None:
    """Return what tells one file from another, None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def check_place(path: Path, place: tuple[int, int] | None) -> None:
    """Raise StoreError unless the file at `path` is still the one that file_at() gave."""
    if file_at(path) != place:
        raise StoreError(
            f"{printable(path, None)} is not the file any more that was filled, but was moved or "
            "replaced meanwhile: end the agents, move the -wal and -shm beside it to where the old "
            "file went (what is written last is in them, and they would ruin another file), then "
            "run again on the file that the agents use"
        )


# --- Reading: the pages with rows to fill ------------------------------------------------------


class Stretch(NamedTuple):
    """The plans for the open rows of a page, or for the first of them, in PAGE_BYTES."""

    plans: list[Plan]
    size: int  # of their payloads in memory, in bytes
    rest: Page | None  # of the page, which is still to be read


def read_page(
    store: sqlite3.Connection,
    page: Page,
    version: int,
    turn: AbstractContextManager[object],
) -> Stretch:
    """Read and plan the open rows of a page; `version` and `turn` are ReadAhead's.

    SQLite's own decoding is the fast one; where a text is not UTF-8 the page is read again.
    """
    store.text_factory = str
    try:
        with turn:
            rows, size, rest = _read_rows(store, page)
    except sqlite3.OperationalError as error:
        if primary_code(error) is not None:  # an error of SQLite's, not of Python's decoding
            raise
        store.text_factory = decode_text
        with turn:
            rows, size, rest = _read_rows(store, page)
    except sqlite3.DataError as error:
        raise StoreError(
            f"the row that is to be filled after audit_id {_last_readable(store, page)} is longer "
            f"than this SQLite reads ({error}): fill or delete it elsewhere, then run again"
        ) from error
    finally:
        store.text_factory = decode_text
    return Stretch([plan_row(row, version) for row in rows], size, rest)


def _read_rows(store: sqlite3.Connection, page: Page) -> tuple[list[Row], int, Page | None]:
    rows: list[Row] = []
    size = 0
    with closing(store.execute(READ_PAGE, {"first": page.first, "last": page.last})) as found:
        for row in found:
            if row[0] > page.last:
                break
            rows.append(row)
            size += size_of(row[2])
            if size >= PAGE_BYTES and row[0] < page.last:
                return rows, size, page._replace(first=row[0] + 1)
    return rows, size, None


def size_of(payload: object) -> int:
    """Return the bytes that a payload takes in memory: a letter that is not ASCII up to four."""
    if isinstance(payload, str) and payload.isascii():
        return len(payload)
    return sys.getsizeof(payload)


def _last_readable(store: sqlite3.Connection, page: Page) -> int:
    """Return the audit_id before the first row of a page that cannot be read."""
    store.text_factory = bytes
    readable = page.first - 1
    with suppress(sqlite3.DataError):
        for (audit_id,) in store.execute(READ_IDS, (page.first, page.last)).fetchall():
            fetch(store, READ_ROW, audit_id)
            readable = audit_id
    return readable


class ReadAhead:
    """Reads and plans the next pages in a thread, while a batch is written.

    The two go on side by side, because SQLite writes a batch without Python's lock. `store`
    is a connection of its own, None where nothing is to be read ahead: with a rollback
    journal a read would keep the COMMIT waiting.

    `turn` is held while a read is open, or to keep one from being opened; never call take()
    or finish() with it.
    """

    def __init__(self, store: sqlite3.Connection | None) -> None:
        self.turn = threading.RLock()
        self._store = store
        self._begun: dict[Page, Future[Stretch]] = {}
        self._worker: ThreadPoolExecutor | None = None
        self._switch_seconds = sys.getswitchinterval()
        if store is not None and sqlite3.threadsafety > 0:
            with suppress(RuntimeError):  # no thread is to be had
                worker = ThreadPoolExecutor(1)
                worker.submit(int)  # starts it now, where nothing is half done
                self._worker = worker
                sys.setswitchinterval(SWITCH_SECONDS)

    def begin(self, pages: Iterable[Page], version: int) -> None:
        """Begin to read pages, as far as there is room.

        `version` is the store's data_version when we last looked; it may have moved since.
        """
        if self._worker is not None and self._store is not None:
            for page in pages:
                if page not in self._begun and len(self._begun) < PAGES_AHEAD:
                    self._begun[page] = self._worker.submit(
                        read_page, self._store, page, version, self.turn
                    )

    def take(self, page: Page) -> Stretch | None:
        """Return what was read of a page, None if it is still to be read.

        So it is after any error: it will be met again where it can be waited for or told.
        """
        begun = self._begun.pop(page, None)
        return None if begun is None or begun.exception() is not None else begun.result()

    def finish(self) -> None:
        """Wait until all that was begun is read and planned."""
        futures.wait(self._begun.values())

    def close(self) -> None:
        """End the thread."""
        if self._worker is not None:
            self._worker.shutdown(cancel_futures=True)
            sys.setswitchinterval(self._switch_seconds)


# --- One batch ---------------------------------------------------------------------------------


def checkpoint(store: sqlite3.Connection) -> int:
    """Copy what is in the WAL to the file; return the bytes of one that cannot begin anew, else 0.

    It locks out nobody.
    """
    _, frames, done = fetch(store, "PRAGMA wal_checkpoint(PASSIVE)")
    if done >= frames:
        return 0
    (page_size,) = fetch(store, "PRAGMA page_size")
    size: int = frames * page_size
    return size


def choose_rest(locked: float, unlocked: float, *, company: bool) -> float:
    """Return how long to rest before a batch, in seconds.

    `locked` is how long the last batch held the write lock, `unlocked` how long it has
    been free since. SQLite's waiters poll, with growing sleeps: whether they get in
    depends on the share of the time that the lock is free, and not only on how long it
    is held. Alone, we leave enough of it for another writer to get in and be noticed.
    """
    share = FREE_SHARE_IN_COMPANY if company else FREE_SHARE_ALONE
    return min(max(0.0, locked * share / (1 - share) - unlocked), LONGEST_REST)


class Courtesy:
    """Opens transactions, with a rest before each, so that other processes get their turn.

    Knows, too, whether others committed, and with what statements rows are filled since then:
    `update` fills one, `update_rows` up to `rows`, what is left of its parameters being NULL.
    `on_held_up` is called once, with the size of the -wal in bytes, where another process's
    open read holds a checkpoint up.
    """

    def __init__(
        self,
        store: sqlite3.Connection,
        patience: Patience,
        ahead: ReadAhead,
        *,
        pause: float,
        rows: int,
    ) -> None:
        self._store = store
        self._patience = patience
        self.ahead = ahead
        self._pause = pause
        self.rows = rows
        self.on_held_up: Callable[[int], None] | None = None
        self._company_until = self._released = -math.inf
        self._locked = self._written = 0.0  # seconds
        self._is_wal = patience.wait(fetch, store, "PRAGMA journal_mode") == ("wal",)
        self._moment = patience.wait(moment_of, store)
        patience.wait(self._look_at_table)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Rest, take the write lock, and commit at the end; on an error roll back.

        With a rollback journal a COMMIT waits for readers while it keeps new ones out.
        EXCLUSIVE waits for them beforehand; in WAL mode it is the same as IMMEDIATE.
        """
        checkpointed = self.bound_wal()
        self._rest()
        slices = itertools.chain(LOCK_SLICES, itertools.repeat(LOCK_SLICES[-1]))
        # After a checkpoint the WAL begins anew, if no read is open.
        with self.ahead.turn if checkpointed else nullcontext():
            self._patience.wait(lambda: self._lock(next(slices)))
            locked_at = time.monotonic()
            try:
                self._look()
                yield
                if self._store.in_transaction:
                    self._store.execute("COMMIT")
            finally:
                if self._store.in_transaction:
                    self._store.execute("ROLLBACK")
                self._released = time.monotonic()
                self._locked = self._released - locked_at
                self._written += self._locked

    def _lock(self, seconds: float) -> None:
        self._store.execute(f"PRAGMA busy_timeout = {seconds * 1000:.0f}")
        self._store.execute("BEGIN EXCLUSIVE")

    def may_read_ahead(self) -> bool:
        """Whether a batch will go in one statement, which alone a thread does not hold up.

        In company it hardly does; and there reading is a part of the rest that others need.
        """
        alone = time.monotonic() >= self._company_until
        return alone and not self._has_triggers and self.update_rows is not None

    def unchanged(self, batch: Iterable[Plan]) -> bool:
        """Whether no row had changed, when we last looked, since it was read.

        Rows that were read ahead may have been read before those in front of them.
        """
        read_at = {plan.data_version for plan in batch}
        return read_at == {self.data_version} and not self._has_triggers

    @property
    def data_version(self) -> int:
        """The store's, when we last looked."""
        return self._moment.data_version

    def look_around(self) -> None:
        """See whether others committed. Raises sqlite3.Error or Interrupted."""
        self._patience.wait(self._look)

    def _look(self) -> None:
        if data_version(self._store) != self._moment.data_version:
            now = moment_of(self._store)
            if now.schema_version != self._moment.schema_version:
                self._look_at_table()  # first: where a lock is in the way, all is done again
            self._company_until = time.monotonic() + COMPANY_SECONDS
            self._moment = now

    def _look_at_table(self) -> None:
        self._has_triggers = bool(triggers_of(self._store))
        self.update, self.update_rows = choose_updates(self._store, self.rows)

    def bound_wal(self) -> bool:
        """Checkpoint if it is time; return whether it was. Raises sqlite3.Error or Interrupted."""
        if not self._is_wal or self._written <= CHECKPOINT_SECONDS:
            return False
        self._written = 0.0
        size = self._patience.wait(checkpoint, self._store)
        if size > 0:  # perhaps because of a read of ours
            with self.ahead.turn:
                size = self._patience.wait(checkpoint, self._store)
        if size >= HELD_UP_BYTES and self.on_held_up is not None:
            self.on_held_up(size)
            self.on_held_up = None
        return True

    def _rest(self) -> None:
        """Wait until others have had their share."""
        self.look_around()
        if not self.may_read_ahead():
            self.ahead.finish()
        now = time.monotonic()
        rest = choose_rest(self._locked, now - self._released, company=now < self._company_until)
        self._patience.sleep(self._pause * (self._locked > 0) + rest)


def backfill_batch(
    store: sqlite3.Connection, batch: Sequence[Plan], courtesy: Courtesy, outcomes: list[Plan]
) -> None:
    """Write a batch in one transaction; once more, with savepoints, if a row is refused.

    `outcomes`, a plan for each row as it was carried out, grows with every transaction that
    is committed, so that it is right also after an error: sqlite3.Error where the store cannot
    be written, Interrupted where a signal came while it was locked. A row that is open no more
    has no outcome.
    """
    if all(plan.values == NOTHING for plan in batch):
        courtesy.look_around()
        if courtesy.unchanged(batch):
            outcomes += batch
            return
    with courtesy.transaction():
        done = fill_at_once(store, batch, courtesy)
        if done is None and store.in_transaction:
            store.execute("ROLLBACK")
    if done is not None:
        outcomes += done
    else:
        fill_one_by_one(store, batch, courtesy, outcomes)


def fill_at_once(
    store: sqlite3.Connection, batch: Sequence[Plan], courtesy: Courtesy
) -> list[Plan] | None:
    """Write rows; return what became of them, or None, with some written, if one is refused."""
    cursor = store.cursor()
    try:
        if courtesy.update_rows is not None and courtesy.unchanged(batch):
            written = (plan for plan in batch if plan.values != NOTHING)
            parameters = [value for plan in written for value in (*plan.values, plan.row[0])]
            width = 3 * courtesy.rows
            for at in range(0, len(parameters), width):
                part = parameters[at : at + width]
                cursor.execute(courtesy.update_rows, part + [None] * (width - len(part)))
            return list(batch)
        done = [fill_one(cursor, plan, courtesy.update) for plan in batch]
        return [plan for plan in done if plan is not None]
    except sqlite3.Error as error:
        if is_nobodys_row(error):
            raise
        return None


def fill_one_by_one(
    store: sqlite3.Connection, batch: Sequence[Plan], courtesy: Courtesy, outcomes: list[Plan]
) -> None:
    """Write a batch in one transaction, each row in a savepoint; leave out what is refused.

    A refusal by RAISE(ROLLBACK) ends the transaction and undoes what was before it: that is
    done again in one of its own, and what follows in another.
    """
    parts = [batch]
    while parts:
        part = parts.pop()
        done: list[Plan] = []
        with courtesy.transaction():
            for at, plan in enumerate(part):
                outcome = fill_or_refuse(store, plan, courtesy.update)
                if not store.in_transaction:
                    done = []
                    parts += filter(None, (part[at + 1 :], part[:at]))
                if outcome is not None:
                    done.append(outcome)
                if not store.in_transaction:
                    break
        outcomes += done


def fill_or_refuse(store: sqlite3.Connection, plan: Plan, update: str) -> Plan | None:
    """Write a row, as fill_one() does; any error is its own, and leaves no trace."""
    store.execute("SAVEPOINT one_row")
    try:
        outcome = fill_one(store.cursor(), plan, update)
    except sqlite3.Error as error:
        if is_nobodys_row(error):
            raise
        if store.in_transaction:
            store.execute("ROLLBACK TO one_row")
        outcome = refuse(plan, str(error))
    if store.in_transaction:
        store.execute("RELEASE one_row")
    return outcome


def fill_one(cursor: sqlite3.Cursor, plan: Plan, update: str) -> Plan | None:
    """Write a row; one that was changed since it was planned is read and planned anew.

    Returns what became of it, None if it is open no more.
    """
    if (
        plan.values != NOTHING
        and cursor.execute(update + IF_UNCHANGED, (*plan.values, *plan.row)).rowcount
    ):
        return plan
    row = cursor.execute(READ_ROW, (plan.audit_id,)).fetchone()
    if row is None:
        return None
    if row != plan.row:
        plan = plan_row(row)
    if (
        plan.values != NOTHING
        and not cursor.execute(update, (*plan.values, plan.audit_id)).rowcount
    ):
        return refuse(plan, "the update was ignored, by a trigger")
    return plan


def is_nobodys_row(error: sqlite3.Error) -> bool:
    """Whether an error while a row is written is not that row's, and ends the run."""
    code = primary_code(error)
    missing = code == sqlite3.SQLITE_ERROR and str(error).startswith(MISSING)
    return missing or code is None or code in NOBODYS_ROW


# --- The run -------------------------------------------------------------------------------------


def utc_now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


@dataclass
class Summary:
    """The figures of a run; they hold at every moment of it, also after a failure."""

    db_path: str
    dry_run: bool
    batch_size: int
    started_at: str = field(default_factory=utc_now)
    status: str = "failed"
    error: str | None = None
    backup: Path | None = None
    backup_size: int = 0  # bytes
    pages: list[Page] | None = None  # None before the rows are counted
    batches: int = 0
    kinds: Counter[Kind] = field(default_factory=Counter)
    examples: dict[Kind, Plan] = field(default_factory=dict)
    left_open: Counter[int] = field(default_factory=Counter)  # rows left NULL, by page
    gone: int = 0
    appeared: int = 0  # rows that were not among those to fill, but are
    recount: list[Page] | None = None  # of `pages`, what they hold at the end
    undone: int = 0
    elapsed_seconds: float = 0.0
    interrupted_by: str | None = None  # the name of a signal

    def add(self, outcomes: Sequence[Plan]) -> None:
        """Count what became of rows."""
        kinds = Counter(map(attrgetter("kind"), outcomes))
        self.kinds.update(kinds)
        for kind in kinds.keys() - self.examples.keys():
            example = next(plan for plan in outcomes if plan.kind == kind)
            self.examples[kind] = example._replace(row=(*example.row[:2], None, *example.row[3:]))
        for plan in outcomes:
            if plan.kind.left_null is not None:
                page = bisect_right(self.pages or [], plan.audit_id, key=attrgetter("first")) - 1
                self.left_open[page] += 1

    @property
    def reached(self) -> int:
        """Rows to fill that the run has come to."""
        return self.kinds.total() + self.gone

    @property
    def to_fill(self) -> int:
        return sum(page.open_rows for page in self.pages or []) + self.appeared

    @property
    def already_filled(self) -> int:
        return sum(page.supervisor_rows - page.open_rows for page in self.pages or [])

    @property
    def supervisor_rows(self) -> int:
        return self.already_filled + self.to_fill

    def left_null(self, reason: str | None) -> int:
        """How many rows stayed NULL for this reason; for None, how many were filled."""
        return sum(number for kind, number in self.kinds.items() if kind.left_null == reason)

    @property
    def filled(self) -> int:
        return self.left_null(None)

    @property
    def wrote(self) -> bool:
        """Whether a value was written, or would be."""
        return any(kind.sources != NOTHING for kind in self.kinds)

    def sources(self) -> dict[str, dict[str, int]]:
        """How many values of each column were written from each field."""
        return {
            column: {
                name: sum(n for kind, n in self.kinds.items() if kind.sources[at] == name)
                for name in (*names, FALLBACK)
            }
            for at, (column, names) in enumerate(FIELDS.items())
        }

    def unusable(self) -> dict[str, int]:
        """In how many rows a payload field was passed over, for each column."""
        return {
            column: sum(n for kind, n in self.kinds.items() if kind.passed_over[at] is not None)
            for at, column in enumerate(FIELDS)
        }

    @property
    def coverage_before(self) -> float | None:
        if self.pages is None:
            return None
        return percent(self.already_filled, sum(page.supervisor_rows for page in self.pages))

    @property
    def coverage_after(self) -> float | None:
        """Percent of the Supervisor's rows with both columns set, as counted again if need be."""
        if self.pages is None:
            return None
        if self.recount is None:
            filled = self.already_filled + self.filled
            return percent(filled, self.supervisor_rows - self.gone)
        rows = sum(page.supervisor_rows for page in self.recount)
        return percent(rows - sum(page.open_rows for page in self.recount), rows)

    @property
    def rows_per_second(self) -> float:
        return self.reached / self.elapsed_seconds if self.elapsed_seconds else 0.0

    def as_json(self) -> dict[str, object]:
        """The summary's JSON object."""
        return {
            "status": self.status,
            "db_path": self.db_path,
            "dry_run": self.dry_run,
            "batch_size": self.batch_size,
            "batches": self.batches,
            "supervisor_rows": self.supervisor_rows,
            "already_filled": self.already_filled,
            "to_fill": self.to_fill,
            "filled": self.filled,
            "left_null": {reason: self.left_null(reason) for reason in LEFT_NULL},
            "gone": self.gone,
            "undone": self.undone,
            "sources": self.sources(),
            "unusable": self.unusable(),
            "coverage_before_pct": self.coverage_before,
            "coverage_after_pct": self.coverage_after,
            "elapsed_seconds": round(self.elapsed_seconds, 3),
            "rows_per_second": round(self.rows_per_second, 1),
            "version": __version__,
            "started_at": self.started_at,
            "error": self.error,
            "backup": None if self.backup is None else str(self.backup),
        }


def percent(part: int, whole: int) -> float:
    """`part` of `whole` in percent, rounded down: 100 means all. Of nothing, all is done."""
    return part * 1_000_000 // whole / 10_000 if whole else 100.0


def fill_rows(
    store: sqlite3.Connection,
    summary: Summary,
    courtesy: Courtesy,
    patience: Patience,
    on_batch: Callable[[Sequence[Plan]], None],
) -> None:
    """Go through all rows to fill, batch by batch, and keep `summary` up to date.

    A dry run does the same without writing. Calls on_batch(outcomes) after each batch.
    Raises sqlite3.Error, StoreError, or Interrupted between two batches.
    """
    stretches = read_stretches(store, summary, courtesy, patience)
    for batch in cut_into_batches(stretches, summary.batch_size):
        patience.check()
        outcomes: list[Plan] = []
        try:
            if summary.dry_run:
                outcomes += batch
            else:
                backfill_batch(store, batch, courtesy, outcomes)
            summary.gone += len(batch) - len(outcomes)
            summary.batches += 1
        finally:
            summary.add(outcomes)
            on_batch(outcomes)


def cut_into_batches(stretches: Iterable[Stretch], rows: int) -> Iterator[list[Plan]]:
    """Yield so many plans at a time, or fewer where their payloads are large: BATCH_BYTES."""
    batch: list[Plan] = []
    size = 0
    for stretch in stretches:
        plans = stretch.plans
        size += stretch.size
        while plans:
            room = rows - len(batch)
            batch += plans[:room]
            plans = plans[room:]
            if len(batch) == rows or size >= BATCH_BYTES:
                yield batch
                batch, size = [], stretch.size if plans else 0
    if batch:
        yield batch


def read_stretches(
    store: sqlite3.Connection, summary: Summary, courtesy: Courtesy, patience: Patience
) -> Iterator[Stretch]:
    """Read all rows to fill by ascending rowid; while one is yielded, `store` has no read open."""
    pages = [page for page in summary.pages or [] if page.open_rows]
    for at, page in enumerate(pages):
        expected = page.open_rows
        rest: Page | None = page
        while rest is not None:
            patience.check()
            version = courtesy.data_version
            stretch = courtesy.ahead.take(rest)
            if stretch is None:
                stretch = patience.wait(read_page, store, rest, version, courtesy.ahead.turn)
            found, rest = len(stretch.plans), stretch.rest
            summary.appeared += max(0, found - expected)
            expected = max(0, expected - found)
            if courtesy.may_read_ahead():
                coming = pages[at + 1 : at + 1 + PAGES_AHEAD]
                courtesy.ahead.begin(coming if rest is None else [rest, *coming], version)
            yield stretch
        summary.gone += expected


def check_result(
    store: sqlite3.Connection,
    summary: Summary,
    patience: Patience,
    before: Moment,
    on_page: Callable[[int, int], None],
) -> None:
    """Count again what others, or a trigger, may have changed since `before`.

    Raises StoreError where rows have a NULL again that the run did not leave there. Calls
    on_page(pages, pages in all).
    """
    now = patience.wait(moment_of, store)
    triggers = patience.wait(triggers_of, store)
    migrated = now.schema_version != before.schema_version
    if triggers or migrated or now.data_version != before.data_version:
        count_again(store, summary, patience, on_page, whole=bool(triggers) or migrated)
    if summary.undone:
        culprit = "another process"
        if triggers:
            culprit = f"a trigger ({', '.join(map(printable, triggers))})"
        elif migrated:
            culprit = "a migration"
        raise StoreError(
            f"{counted(summary.undone, 'row has', 'rows have')} a NULL again at the end, because "
            f"{culprit} set them back: see to that, then run again"
        )


def count_again(
    store: sqlite3.Connection,
    summary: Summary,
    patience: Patience,
    on_page: Callable[[int, int], None],
    *,
    whole: bool,
) -> None:
    """Count the pages that held rows to fill, or the whole table, as they are now."""
    pages = list(summary.pages or [])
    for at, page in enumerate(pages):
        if whole or page.open_rows:
            found = list(count_pages(store, page.first, page.last, patience))
            pages[at] = page._replace(
                supervisor_rows=sum(part.supervisor_rows for part in found),
                open_rows=sum(part.open_rows for part in found),
            )
            on_page(at + 1, len(pages))
    summary.recount = pages
    summary.undone = sum(
        max(0, page.open_rows - summary.left_open[at]) for at, page in enumerate(pages)
    )


# --- The screen: progress, warnings, the report ------------------------------------------------


def printable(value: object, limit: int | None = CUT) -> str:
    """Write a stranger's text so that a terminal or a log takes no harm: rule 7."""
    text = value if isinstance(value, str) else str(value)
    if limit is not None and len(text) > limit:
        text = text[: limit - 3] + "..."
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def format_duration(seconds: float) -> str:
    """Write a duration as `0:07` or `1:02:03`."""
    minutes, rest = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def format_percent(value: float | None) -> str:
    """Write a percentage with one digit, rounded down: `100.0 %` means all."""
    return "unknown" if value is None else f"{math.floor(value * 10) / 10:.1f} %"


def format_progress(
    label: str, unit: str, done: int, total: int, elapsed: float, width: int | None
) -> str:
    """Write progress as one line of less than `width` characters; None: any width, no bar.

    Without a total there is no percentage and no time left. Where the line is too narrow,
    what is DISPENSABLE goes, the least important first.
    """
    full = BAR_WIDTH * done // total if total else 0
    parts = {
        "bar": f"[{'#' * full}{'-' * (BAR_WIDTH - full)}]" if total and width is not None else "",
        "label": f" {label}",
        "percent": f"  {format_percent(percent(done, total))}" if total else "",
        "count": f"  {done:,}{f'/{total:,}' if total else ''} {unit}",
        "rate": f"  {done / elapsed:,.0f} {unit}/s" if done and elapsed > 0 else "",
        "left": "",
    }
    if done < total and parts["rate"]:
        parts["left"] = f"  {format_duration((total - done) * elapsed / done)} left"
    for least in DISPENSABLE:
        if width is not None and len("".join(parts.values()).strip()) >= width:
            parts[least] = ""
    return "".join(parts.values()).strip()


def takes_output(stream: TextIO | io.FileIO, seconds: float = 0) -> bool:
    """Whether a stream takes output at once: not after Ctrl-S, not where a pipe is full."""
    try:
        return bool(select.select([], [stream], [], seconds)[1])
    except (OSError, ValueError):  # not to be told: no file, or Windows
        return True


def write_all(stream: TextIO, text: str, patience: Patience) -> None:
    """Write and flush, waiting for a slow reader; after a signal, not for long. Raises OSError."""
    with suppress(OSError, ValueError, AttributeError):  # no file, or none that can block
        os.set_blocking(stream.fileno(), True)
    give_up = math.inf
    for start in range(0, len(text), PIECE):  # what fits into a pipe that takes output
        while not takes_output(stream, SLEEP_SLICE):
            if patience.signum is not None:
                give_up = min(give_up, time.monotonic() + LONGEST_REST)
            if time.monotonic() > give_up:
                raise BlockingIOError(errno.EAGAIN, "nobody reads it")
        stream.write(text[start : start + PIECE])
        stream.flush()


class Screen:
    """stderr: a line of progress, and what is said beside it. What cannot be shown is not.

    On a terminal the line redraws itself, elsewhere it comes every few seconds.
    """

    def __init__(self, stream: TextIO, patience: Patience, *, quiet: bool) -> None:
        self._stream = stream
        self._patience = patience
        self._now = patience.now
        self._quiet = quiet
        self._live = stream.isatty() and os.environ.get("TERM") != "dumb"
        self._drawn = False  # there is a line of progress to clear
        self.warnings: Counter[str] = Counter()
        self.start("Opening", "")

    def start(self, label: str, unit: str) -> None:
        """Begin a phase of the run."""
        self._label, self._unit = label, unit
        self._done = self._total = 0
        self._shown: int | None = None  # how far it was when last shown
        self._started = self._now()
        self._next = self._started + (REDRAW_SECONDS if self._live else PLAIN_SECONDS)

    def update(self, done: int, total: int) -> None:
        """Take note of where the phase is, 0 in all for unknown; show it when it is time."""
        self._done, self._total = done, total
        if self._now() >= self._next and self._shown != done:
            self._show_progress()

    def end(self) -> None:
        """Show where the phase ended, if that is known, and leave the line."""
        if self._total and self._shown != self._done:
            self._show_progress()
        if self._drawn and takes_output(self._stream):
            self._write("\n")
        self._drawn = False

    def waiting(self, seconds: float) -> None:
        """Show that another process's lock is waited for, and for how long still."""
        if self._now() >= self._next:
            left, width = f"{format_duration(seconds)} more", self._width()
            lines = (
                f"{self._label}  waiting for another process's lock, {left}",
                f"waiting, {left}",
            )
            self._show(lines[width is not None and len(lines[0]) >= width])

    def held_up(self, size: int) -> None:
        """Say that another process holds a checkpoint up, and how many bytes the -wal has."""
        self.note(
            f"note: the -wal has grown to {size / 1e6:,.0f} MB, because another process's open "
            "read holds up its checkpoint, and it grows until that read ends"
        )

    def _show_progress(self) -> None:
        elapsed = self._now() - self._started
        self._shown = self._done
        self._show(
            format_progress(
                self._label, self._unit, self._done, self._total, elapsed, self._width()
            )
        )

    def _width(self) -> int | None:
        if not self._live:
            return None
        try:
            return os.get_terminal_size(self._stream.fileno()).columns or 80
        except OSError:
            return 80

    def _show(self, line: str) -> None:
        self._next = self._now() + (REDRAW_SECONDS if self._live else PLAIN_SECONDS)
        if self._quiet or not takes_output(self._stream):
            return
        self._write(f"\r\x1b[K{line}" if self._live else f"{line}\n")
        self._drawn = self._live

    def say(self, text: str) -> None:
        """Print a line that is an error, or that no --quiet suppresses."""
        self._write(f"\r\x1b[K{text}\n" if self._drawn else f"{text}\n")
        if self._drawn:  # it has been cleared away: soon again
            self._drawn, self._shown, self._next = False, None, 0.0

    def note(self, text: str) -> None:
        """Print a line, unless --quiet."""
        if not self._quiet:
            self.say(text)

    def note_at_once(self, text: str) -> bool:
        """Print a line if that does not have to wait; return whether it was."""
        ready = self._quiet or takes_output(self._stream)
        if ready:
            self.note(text)
        return ready

    def warn(self, reason: str, text: str) -> None:
        """Count a warning, and show the first few of each reason."""
        self.warnings[reason] += 1
        if self.warnings[reason] <= EXAMPLES:
            self.note(f"warning: {text}")

    def _write(self, text: str) -> None:
        try:
            write_all(self._stream, text, self._patience)
        except OSError:  # nobody is left to tell; the work goes on
            forget(self._stream)


def forget(stream: TextIO) -> None:
    """Let what is written from now on go nowhere, so that Python's last flush is no error."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def describe(outcomes: Iterable[Plan], *, fall_backs: bool) -> Iterator[tuple[str, str]]:
    """Yield what is to be said of rows, in words: each with a key of SAID, or FALLBACK."""
    for plan in outcomes:
        kind = plan.kind
        if kind.left_null is not None:
            why = LEFT_NULL[kind.left_null] + (f": {printable(plan.reason)}" if plan.reason else "")
            left = " and ".join(
                column
                for column, stood, value in zip(FIELDS, plan.standing, plan.values, strict=True)
                if stood is value is None
            )
            yield kind.left_null, f"audit_id {plan.audit_id}: {left} NULL: {why}"
        if kind.passed_over != NOTHING:
            for column, source, name, text in zip(
                FIELDS, kind.sources, kind.passed_over, plan.unusable, strict=True
            ):
                if name is not None:
                    said = f"from {source}, because {name} is no timestamp: {printable(text)}"
                    yield column, f"audit_id {plan.audit_id}: {column} {said}"
        if fall_backs and FALLBACK in kind.sources:
            columns = zip(FIELDS, kind.sources, strict=True)
            fell_back = " and ".join(column for column, source in columns if source == FALLBACK)
            yield FALLBACK, f"audit_id {plan.audit_id}: {fell_back} from {FALLBACK}"


def format_counts(warnings: Counter[str], summary: Summary, log_file: Path | None) -> Iterator[str]:
    """Yield how many warnings of each reason there were, and how many fall-backs."""
    where = f"{printable(log_file, None)} has" if log_file else "--log-file PATH keeps"
    for reason, number in warnings.items():
        yield f"warning: {counted(number, 'row', 'rows')} {SAID[reason]}; {where} a line for each"
    for column, counts in summary.sources().items():
        if number := counts[FALLBACK]:
            yield f"note: {counted(number, 'value', 'values')} of {column} from {FALLBACK}"


def counted(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"


class Log:
    """The record of a run in a file, a line each; nothing where no file is asked for."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._piece = sys.maxsize  # bytes written at once
        self.path: Path | None = None
        self._file: io.FileIO | None = None

    def open(self, path: Path) -> None:
        """Append to a file from now on. Raises OSError, also where it is a pipe nobody reads."""
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NONBLOCK", 0)
        self._file = io.FileIO(os.open(path, flags, 0o666), "w")
        if hasattr(os, "O_NONBLOCK"):
            os.set_blocking(self._file.fileno(), True)
        if stat.S_ISFIFO(os.fstat(self._file.fileno()).st_mode):
            self._piece = PIECE
        self.path = path

    def write(self, lines: Iterable[tuple[str, str]]) -> None:
        """Write lines, each a level and a text; one that cannot be written ends the run."""
        if self._file is None:
            return
        now = utc_now()
        text = "".join(f"{now} {level} {words}\n" for level, words in lines)
        rest = memoryview(text.encode(errors="backslashreplace"))
        try:
            while rest:
                if takes_output(self._file, SLEEP_SLICE):
                    rest = rest[self._file.write(rest[: self._piece]) :]
                elif self._patience.signum is not None:
                    raise BlockingIOError(errno.EAGAIN, "nobody reads it")
        except OSError as error:
            self.close()
            raise StoreError(
                f"the log file {printable(self.path, None)} cannot be written: {error.strerror}: "
                "make room or name another with --log-file, then run again"
            ) from error

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def format_report(summary: Summary, verdict: str) -> str:
    """Write the summary for people; what is zero is left out, and the verdict comes last."""
    dry_run = summary.dry_run
    lines = [
        f"{'Dry run of' if dry_run else 'Backfill of'} {printable(summary.db_path, None)}: "
        f"{summary.status}" + (", nothing was written" if dry_run else ""),
        "",
        _figure("Supervisor rows", summary.supervisor_rows),
        *_figures(
            ("  already filled", summary.already_filled, ""),
            ("  to fill", summary.to_fill, ""),
            ("    would be filled" if dry_run else "    filled", summary.filled, ""),
            *(
                (f"    left NULL, {reason}", summary.left_null(reason), words)
                for reason, words in LEFT_NULL.items()
            ),
            ("    gone", summary.gone, "filled by others, deleted or renamed meanwhile"),
            ("    not reached", summary.to_fill - summary.reached, ""),
            ("  undone", summary.undone, "have a NULL again"),
        ),
        f"{'Coverage':<{LABEL_WIDTH}}{format_percent(summary.coverage_before)} before, "
        f"{format_percent(summary.coverage_after)} after",
        "",
    ]
    sources = summary.sources()
    if any(sum(counts.values()) for counts in sources.values()):
        lines.append(f"Values {'that would be ' if dry_run else ''}written, by their field")
        for column, counts in sources.items():
            lines.append(f"  {column}")
            lines += _figures(*((f"    {name}", number, "") for name, number in counts.items()))
            passed = summary.unusable()[column]
            lines += _figures(("    a field passed over", passed, "it is no timestamp"))
        lines.append("")
    if summary.backup is not None:
        lines.append(f"Backup {printable(summary.backup, None)}, {summary.backup_size:,} bytes")
    lines += [
        f"{counted(summary.batches, 'batch', 'batches')} of up to {summary.batch_size:,} rows in "
        f"{summary.elapsed_seconds:.1f} s, {summary.rows_per_second:,.0f} rows/s",
        "",
        *(format_preview(summary) if dry_run else ()),
        verdict,
    ]
    return "\n".join(lines)


def _figure(label: str, number: int, words: str = "") -> str:
    return f"{label:<{LABEL_WIDTH}}{number:>{FIGURE_WIDTH},}  {words}".rstrip()


def _figures(*figures: tuple[str, int, str]) -> list[str]:
    return [_figure(*figure) for figure in figures if figure[1]]


def format_preview(summary: Summary) -> list[str]:
    """Show a row of each kind, as a run would leave it; the most frequent kinds first."""
    lines = []
    for kind, number in summary.kinds.most_common(PREVIEW_KINDS):
        plan = summary.examples[kind]
        audit_id, event_type, _, created_at, *_ = plan.row
        lines += [
            f"{counted(number, 'row', 'rows')} like audit_id {audit_id}  {printable(event_type)}",
            f"  {FALLBACK:<{COLUMN_WIDTH}}  {printable(created_at)}",
        ]
        for column, stood, value, source, name, text in zip(
            FIELDS, plan.standing, plan.values, kind.sources, kind.passed_over, plan.unusable,
            strict=True,
        ):  # fmt: skip
            if stood is not None:
                words = f"{printable(stood)}  (stands already)"
            elif value is not None:
                words = f"{value}  from {source}"
            else:
                words = f"NULL  ({LEFT_NULL[kind.left_null or '']})"
            lines.append(f"  {column:<{COLUMN_WIDTH}}  {words}")
            if name is not None:
                lines.append(f"  {'':<{COLUMN_WIDTH}}  ({name} passed over: {printable(text)})")
    if (more := len(summary.kinds) - PREVIEW_KINDS) > 0:
        lines.append(f"and {counted(more, 'more kind', 'more kinds')} of rows")
    return [*lines, ""] if lines else []


def format_error(summary: Summary) -> str:
    """Say why a run failed, and what it leaves behind."""
    stays = ""
    if summary.pages is not None and (summary.dry_run or not summary.wrote):
        stays = "; nothing was written"
    elif summary.reached < summary.to_fill:
        stays = f"; the {summary.filled:,} rows filled so far stay"
    if summary.backup is not None:
        stays += "; the backup stays too: run again without --backup"
    return f"{summary.error}{stays}"


def format_verdict(summary: Summary, how_to_check: str) -> str:
    """Say in one line how a run ended, with the figures that matter and the next step."""
    filled = f"{summary.filled:,} of {summary.to_fill:,} rows"
    if summary.status == "failed":
        return f"failed: {format_error(summary)}"
    if summary.status == "interrupted":
        wrote = summary.wrote and not summary.dry_run
        again = " without --backup" if summary.backup is not None else ""
        return (
            f"interrupted by {summary.interrupted_by}: "
            f"{f'{filled} filled, which stay' if wrote else 'nothing was written'}; "
            f"run the same command again{again} to go on"
        )
    if not summary.supervisor_rows:
        return "nothing to do: the store has no rows of the Supervisor: is it the right one?"
    left = f"{summary.to_fill - summary.filled - summary.gone:,}"
    left += " would stay NULL" if summary.dry_run else " left NULL"
    coverage = f"coverage {format_percent(summary.coverage_after)}"
    if not summary.to_fill:
        verdict = f"nothing to do: all {summary.supervisor_rows:,} rows are filled"
    elif not summary.wrote:
        verdict = f"nothing to do: {left}, {coverage}"
    elif summary.dry_run:
        verdict = f"dry run: {filled} would be filled, {left}, {coverage}"
        how_to_check = "to write them, run again without --dry-run"
    else:
        verdict = f"completed: {filled} filled, {left}, {coverage}"
    return f"{verdict}; {how_to_check}"


# --- The command line ---------------------------------------------------------------------------


class Options(argparse.Namespace):
    """The command line, parsed."""

    db_path: Path | None
    batch_size: int
    dry_run: bool
    backup: Path | None
    busy_timeout: float
    pause: float
    log_file: Path | None
    json: bool
    quiet: bool


def _path(text: str) -> Path:
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError("a path is needed")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise argparse.ArgumentTypeError(f"{text!r} names no home folder here") from error


def _batch_size(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 up")
    return number


def _seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0 up")
    return number


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog=Path(sys.argv[0]).name or None,
        description="Fill source_event_ts and supervisor_processed_at of an AgentOS audit store "
        "from the JSON payloads beside them. Only NULLs are written; the store may be in use.",
        epilog="Exit code: 0 done, 1 the store cannot be used or the run failed, 2 wrong usage, "
        "129, 130 or 143 interrupted by SIGHUP, SIGINT or SIGTERM. An interrupted or failed run "
        "is continued by running the same command again (without --backup, if it was made).",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--db-path",
        metavar="PATH",
        type=_path,
        help=f"the store (default {DEFAULT_STORE})",
    )
    parser.add_argument(
        "--batch-size",
        metavar="N",
        type=_batch_size,
        default=DEFAULT_BATCH_SIZE,
        help="rows per transaction, at least 1 (default %(default)s)",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="write nothing: report what a run would do, and show a row of each kind",
    )
    parser.add_argument(
        "--backup",
        metavar="PATH",
        type=_path,
        help="before the first write, copy the store to this new file",
    )
    parser.add_argument(
        "--busy-timeout",
        metavar="SECONDS",
        type=_seconds,
        default=DEFAULT_BUSY_TIMEOUT,
        help="how long to wait for another process's lock (default %(default)g)",
    )
    parser.add_argument(
        "--pause",
        metavar="SECONDS",
        type=_seconds,
        default=0.0,
        help="extra rest between batches, for a busy store (default %(default)g)",
    )
    parser.add_argument(
        "--log-file",
        metavar="PATH",
        type=_path,
        help="append a record of the run to this file, with a line for each row left NULL, "
        "filled from created_at, or with a field passed over",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print the summary as one JSON object, and nothing else, on stdout",
    )
    parser.add_argument("--quiet", action="store_true", help="print nothing on stderr but errors")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; wrong usage raises SystemExit(2)."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by whoever started us
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 - for good
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    options = read_options(argv)
    path = options.db_path or Path(os.path.expanduser(DEFAULT_STORE))  # noqa: PTH111
    summary = Summary(str(path), options.dry_run, options.batch_size)
    patience = Patience(options.busy_timeout)
    log = Log(patience)
    screen = Screen(sys.stderr, patience, quiet=options.quiet)
    patience.on_wait = screen.waiting
    with patience.listening():
        code = run(options, path, summary, screen, log, patience)
        verdict = format_verdict(summary, how_to_check(path))
        try:
            figures = json.dumps(summary.as_json())
            log.write([("INFO", f"end: {printable(verdict, None)} {figures}")])
        except StoreError as error:
            summary.status, summary.error, code = "failed", str(error), EXIT_FAILED
            verdict = format_verdict(summary, "")
        log.close()
        return show_end(options, summary, verdict, screen, patience) or code


def read_options(argv: Sequence[str] | None) -> Options:
    """Parse the command line; raises SystemExit, with 2 for wrong usage."""
    try:
        return build_parser().parse_args(argv, namespace=Options())
    except (SystemExit, OSError) as end:  # --help, perhaps to somebody who does not read it
        try:
            sys.stdout.flush()
        except OSError:
            forget(sys.stdout)
        if isinstance(end, OSError):  # argparse's, in early releases of Python 3.11
            raise SystemExit(EXIT_DONE) from None
        raise


def show_end(
    options: Options, summary: Summary, verdict: str, screen: Screen, patience: Patience
) -> int:
    """Show the report, or how else it ended; return an exit code if that was not to be had."""
    report = None
    if options.json:
        report = json.dumps(summary.as_json())
    elif summary.pages is not None:
        report = format_report(summary, verdict)
    if summary.status == "failed":
        screen.say(f"error: {format_error(summary)}")
    elif options.json or report is None:
        screen.note(verdict)
    try:
        if report is not None:
            write_all(sys.stdout, f"{report}\n", patience)
    except BrokenPipeError:  # a reader that has seen enough is no error
        forget(sys.stdout)
    except OSError as error:
        screen.say(f"error: the output cannot be written: {error.strerror}")
        forget(sys.stdout)
        if summary.status == "completed":
            return EXIT_FAILED
    return EXIT_DONE


def run(
    options: Options, path: Path, summary: Summary, screen: Screen, log: Log, patience: Patience
) -> int:
    """Fill the store; say in `summary` how it ended, and return the exit code."""
    try:
        fill_store(options, path, summary, screen, log, patience)
    except Interrupted:
        signum = patience.signum or signal.SIGINT
        summary.status = "interrupted"
        summary.interrupted_by = signal.Signals(signum).name
        return EXIT_SIGNAL + signum
    except (StoreError, sqlite3.Error, OSError, MemoryError) as error:
        summary.error = explain(error, path, options)
        return EXIT_FAILED
    summary.status = "completed"
    return EXIT_DONE


def fill_store(
    options: Options, path: Path, summary: Summary, screen: Screen, log: Log, patience: Patience
) -> None:
    """Check the store, back it up, count its rows, fill them, and count again if need be."""
    if options.db_path is None and not os.path.isfile(path):  # noqa: PTH113 - raises nothing
        raise StoreError(where_the_store_may_be(path))
    place = file_at(path)
    network = check_name(path, read_only=options.dry_run)
    for option, file in (("--backup", options.backup), ("--log-file", options.log_file)):
        if file is not None and is_companion(file, path):
            raise StoreError(
                f"{option} names a file that SQLite keeps beside the store: name another file"
            )
    if options.log_file is not None:
        open_log(log, options.log_file, path)
    log.write([("INFO", f"begin: {format_start(options, path)}")])
    if network is not None:
        screen.note(f"note: {network}")
    with opened(path, patience, read_only=options.dry_run) as (store, reader):
        check_place(path, place)
        patience.wait(check_schema, store)
        before = patience.wait(moment_of, store)
        if options.backup is not None and not options.dry_run:
            back_up(store, path, options.backup, summary, screen, patience)

        def show_batch(outcomes: Sequence[Plan]) -> None:
            lines = []
            for reason, words in describe(outcomes, fall_backs=log.path is not None):
                lines.append(("INFO" if reason == FALLBACK else "WARNING", words))
                if reason != FALLBACK:
                    screen.warn(reason, words)
            log.write(lines)
            screen.update(summary.reached, summary.to_fill)
            check_place(path, place)

        began = patience.now()
        try:
            screen.start("Counting", "rows")
            summary.pages = survey(store, patience, screen.update)
            screen.start("Dry run" if options.dry_run else "Filling", "rows")
            with closing(ReadAhead(reader)) as ahead:
                patience.while_stopped = ahead.turn
                rows = min(options.batch_size, ROWS_AT_ONCE)
                courtesy = Courtesy(store, patience, ahead, pause=options.pause, rows=rows)
                courtesy.on_held_up = screen.held_up
                fill_rows(store, summary, courtesy, patience, show_batch)
                courtesy.bound_wal()
            screen.update(summary.to_fill, summary.to_fill)
            if not options.dry_run:
                screen.end()
                screen.start("Checking", "pages")
                check_place(path, place)
                check_result(store, summary, patience, before, screen.update)
        finally:
            summary.elapsed_seconds = patience.now() - began
            screen.end()
            for line in format_counts(screen.warnings, summary, options.log_file):
                screen.note(line)


def where_the_store_may_be(path: Path) -> str:
    """Say that there is nothing at the default path, and where there is."""
    found = [f"--db-path {shlex.quote(printable(store, None))}" for store in stores_to_be_found()]
    where = f"found here: {', or '.join(found)}" if found else "none is where AgentOS keeps one"
    return (
        f"there is no file {printable(path, None)}, which is the default: "
        f"name the store with --db-path ({where})"
    )


def is_companion(file: Path, store: Path) -> bool:
    """Whether `file` is one of the files that SQLite makes and deletes beside the store."""
    real = os.path.realpath(store)
    return os.path.realpath(file) in [real + suffix for suffix in COMPANIONS]


def open_log(log: Log, path: Path, store: Path) -> None:
    try:
        if path.exists() and path.samefile(store):
            raise StoreError("--log-file names the store itself: name another file")
        log.open(path)
    except OSError as error:
        unread = " (nobody reads this pipe)" if error.errno == errno.ENXIO else ""
        raise StoreError(
            f"the log file {printable(path, None)} cannot be written: {error.strerror}{unread}: "
            "name another with --log-file"
        ) from error


def format_start(options: Options, path: Path) -> str:
    """Write what a run was asked to do, for its record."""
    asked = {
        "store": os.path.abspath(path),  # noqa: PTH100 - of a folder that is gone, too
        "dry run": "yes" if options.dry_run else "no",
        "batch size": options.batch_size,
        "backup": options.backup or "none",
        "busy timeout": f"{options.busy_timeout:g} s",
        "pause": f"{options.pause:g} s",
    }
    words = ", ".join(f"{name} {printable(value, None)}" for name, value in asked.items())
    return f"version {__version__}, {words}"


def back_up(
    store: sqlite3.Connection,
    path: Path,
    target: Path,
    summary: Summary,
    screen: Screen,
    patience: Patience,
) -> None:
    """Make the backup that was asked for, with progress."""
    said = False

    def show(done: int, total: int) -> None:
        nonlocal said
        if patience.stop_asked and not said:
            said = screen.note_at_once("note: the process stops as soon as the backup is made")
        screen.update(done, total)

    screen.start("Backup", "pages")
    try:
        keeps_permissions = make_backup(store, path, target, patience, show)
        summary.backup_size = target.stat().st_size
    except OSError as error:
        raise StoreError(
            f"the backup {printable(target, None)} cannot be made, so nothing was written: "
            f"{error.strerror}: mend that, or name another file with --backup"
        ) from error
    except sqlite3.Error as error:
        raise StoreError(
            f"the backup {printable(target, None)} cannot be made, so nothing was written: "
            f"{cause_of(error).format(timeout=patience.busy_timeout)} ({printable(error)})"
        ) from error
    finally:
        screen.end()
    summary.backup = target
    if not keeps_permissions:
        screen.note(
            f"note: {printable(target.parent, None)} keeps no permissions: see who may read the "
            "backup there"
        )


def cause_of(error: sqlite3.Error) -> str:
    """Return what an error of SQLite means and what to do, by its words, else by its code."""
    code = primary_code(error)
    if code in (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT):
        for begins, cause in CAUSES_BY_WORDS.items():
            if str(error).startswith(begins):
                return cause
    primary = next(
        (name for name in CAUSES if getattr(sqlite3, name, None) == code), "SQLITE_ERROR"
    )
    return CAUSES.get(getattr(error, "sqlite_errorname", ""), CAUSES[primary])


def explain(error: Exception, path: Path, options: Options) -> str:
    """Say what went wrong and what to do, as one line. Every connection is closed by now."""
    if isinstance(error, StoreError):
        return str(error)
    words = printable(error if str(error) else type(error).__name__)
    if isinstance(error, MemoryError):
        cause = NO_MEMORY
    elif not isinstance(error, sqlite3.Error):
        cause = "the system refused what the run needs: mend that, then run again"
    else:
        cause = cause_of(error)
        if primary_code(error) in ASK_SYSTEM:
            if len(os.fsencode(os.path.realpath(path))) > LONGEST_PATH:
                cause = PATH_TOO_LONG
            else:
                cause, system = ask_system(path, cause, read_only=options.dry_run)
                words += system
    return f"{printable(path, None)}: {cause.format(timeout=options.busy_timeout)} ({words})"


def ask_system(path: Path, cause: str, *, read_only: bool) -> tuple[str, str]:
    """Open the file, and make one beside it, as SQLite does: what comes to light, else `cause`.

    Returns the cause and the system's own words. Only with every connection closed: closing a
    file drops this process's locks on it.
    """
    what, done = "the file", "read"
    folder = Path(os.path.realpath(path)).parent
    try:
        # As many files as SQLite has open: the store and its -wal twice, and a -shm or journal.
        with path.open("rb") as file, path.open("rb"), path.open("rb"), path.open("rb"):
            magic, write_version, read_version = struct.unpack("15s3xBB", file.read(20))
            if magic == b"SQLite format 3" and max(write_version, read_version) > 2:
                return NEWER_SQLITE, ""
            if not read_only:
                done = "written"
                path.open("r+b").close()
        if not read_only or read_version == 2:  # a -wal needs a -shm also to be read
            what, done = "its folder, where SQLite keeps the journal,", "written"
            with tempfile.TemporaryFile(dir=folder) as beside:
                beside.write(bytes(PROBE_BYTES))
    except struct.error:  # it is not even as long as the head of a database
        pass
    except OSError as error:
        if read_only and done == "written" and error.errno in (errno.EACCES, errno.EROFS):
            return READ_ONLY_PLACE, f"; {error.strerror}"
        cause = CAUSES_BY_ERRNO.get(error.errno or 0, cause).format(what=what, done=done)
        return cause, f"; {error.strerror}"
    return cause, ""


def how_to_check(path: Path) -> str:
    """Return the next step after a run: a command that works as it stands, or none."""
    script = find_verification()
    if script is None:
        return f"check it with {VERIFICATION}"
    with suppress(OSError):  # a working folder that is gone, or not to be looked into
        if script.parent.samefile(os.curdir):
            script = Path(script.name)
    store = str(path)
    if not path.is_absolute() and (store.startswith("-") or ":" in store):
        store = os.path.join(".", store)  # noqa: PTH118 - Path() would drop the point
    command = f"sqlite3 {shlex.quote(store)} < {shlex.quote(str(script))}"
    if not command.isprintable():
        return f"check it with {printable(script, None)}"
    if shutil.which("sqlite3") is None:
        return f"there is no sqlite3 shell here; where there is one: {command}"
    return f"check it: {command}"


def find_verification() -> Path | None:
    """Return the verification beside this script, or where pip has put it."""
    beside = Path(__file__).resolve().with_name(VERIFICATION)
    if os.path.exists(beside):  # noqa: PTH110 - raises nothing
        return beside
    try:
        from importlib import metadata  # noqa: PLC0415 - slow, and seldom needed

        files = metadata.files("backfill-audit-decision-fields") or []
    except ImportError:  # that package is not installed here, among others
        return None
    return next((Path(str(f.locate())).resolve() for f in files if f.name == VERIFICATION), None)


if __name__ == "__main__":
    gc.disable()  # no row leaves a cycle behind, and to look for one takes a twentieth of a run
    raise SystemExit(main())
