#!/usr/bin/env python3
"""Fill the decision columns of an AgentOS audit store from the JSON beside them.

    python3 backfill_audit_decision_fields.py --db-path STORE --dry-run
    python3 backfill_audit_decision_fields.py --db-path STORE --backup COPY
    python3 backfill_audit_decision_fields.py --db-path STORE --verify

A payload that the Supervisor writes to task_audits holds two times: when the
event happened, and when the Supervisor decided. Migration v21 added a column
for each. This fills those that are NULL, batch by batch, on a store in use.
It never changes a value, and can be stopped and run again at any moment.

Exit code: 0 done, 1 the store cannot be used, the run failed or a check says
FAIL, 2 wrong usage, 129, 130 or 143 interrupted by SIGHUP, SIGINT or SIGTERM.
Run the same command again to go on (without --backup, if that was made).
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 - whoever copies one file checks no metadata
    sys.exit(f"{sys.argv[0]} needs Python 3.11 or later, not {sys.version.split()[0]}")

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
import sysconfig
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TextIO

if sqlite3.sqlite_version_info < (3, 34):
    sys.exit(
        f"{sys.argv[0]} needs a Python with SQLite 3.34 or later, not {sqlite3.sqlite_version}"
    )

__version__ = "3.0.0"

log = logging.getLogger("backfill_audit_decision_fields")

# The tool rests on one idea: what is written follows from rows that nobody has changed since they
# were read. If somebody has, the batch is read again under the write lock.

# --- The rules as data (numbered as in README_BACKFILL.md), with the SQL ------------------------

# Rule 2: the payload fields for each column. The first usable one wins, then the row's created_at.
FIELDS = {
    "source_event_ts": ("source_event_ts", "source_ts", "event_timestamp", "task_created_at"),
    "supervisor_processed_at": ("supervisor_processed_at", "processed_at", "timestamp"),
}
FALLBACK = "created_at"

# Rule 3: the spellings of a timestamp. Python's fromisoformat() takes others in each version.
WHITE_SPACE = " \t\r\n\v\f"
USUAL_FORM = re.compile(  # AgentOS's, on a day that every month has: most values, so it saves time
    r"20\d\d-(?:0[1-9]|1[0-2])-(?:0[1-9]|1\d|2[0-8])[T ](?:[01]\d|2[0-3]):[0-5]\d"
    r"(?::[0-5]\d(?:\.\d{6}Z|(?:\.\d{1,9})?(?:Z|[+-](?:0\d|1[0-4]):[0-5]\d)?))",
    re.ASCII,
)
ANY_FORM = re.compile(
    r"(20\d\d-\d\d-\d\d)[Tt ]((?:[01]\d|2[0-3]):[0-5]\d(?::[0-5]\d(?:[.,]\d{1,9})?)?)"
    r"(?: ?(?:([Zz]|UTC)|([+-](?:0\d|1[0-4]))(?::?([0-5]\d))?))?",
    re.ASCII,
)
NUMBER_AS_TEXT = re.compile(r"[1-9]\d{8,18}(?:\.\d+)?", re.ASCII)
EPOCH = datetime(1970, 1, 1)
EARLIEST, LATEST = 946_684_800_000_000, 4_102_444_800_000_000  # 2000 and 2100, microseconds
# Seconds, milli-, micro- and nanoseconds, in nanoseconds. Within these years they don't overlap.
EPOCH_UNITS = (10**9, 10**6, 1000, 1)

# Rule 4: our own bound. Python's varies from version to version, and some versions crash at it
# when a thread's stack is small. JSON has two brackets for a level, so short text isn't counted.
MOST_LEVELS = 500
JSON_STRING = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
BRACKET = re.compile(r"[][{}]")
# An integer with more digits than any timestamp is read as the nearest float.
DECODER = json.JSONDecoder(parse_int=lambda text: int(text) if len(text) < 20 else float(text))

LEFT_NULL = {  # why a row stays NULL: the summary's keys, and what they mean
    "malformed_json": "the payload is not JSON",
    "no_timestamp": "no timestamp for a column, not even created_at",
    "unreadable": "the other column does not hold text",
    "refused": "the database refused the row",
}

SUPERVISOR = "event_type LIKE '%SUPERVISOR%'"
HAS_NULL = "(source_event_ts IS NULL OR supervisor_processed_at IS NULL)"  # then a row is open

# NOT INDEXED makes SQLite walk the table itself, whatever indexes there are.
ROWS_FROM = "FROM task_audits NOT INDEXED WHERE audit_id >= ? ORDER BY audit_id LIMIT ?"
SELECT_LAST = "SELECT max(audit_id) FROM task_audits NOT INDEXED"
COUNT_RANGE = f"""
    SELECT max(audit_id), count(*) FILTER (WHERE supervisors),
           count(*) FILTER (WHERE supervisors AND has_null)
      FROM (SELECT audit_id, {SUPERVISOR} AS supervisors, {HAS_NULL} AS has_null {ROWS_FROM})
     WHERE audit_id <= ?
"""
SELECT_LAST_OF_BATCH = f"SELECT audit_id {ROWS_FROM} OFFSET ?"
READ_ROWS = f"""
    SELECT audit_id, payload, event_type, created_at, source_event_ts, supervisor_processed_at
      FROM task_audits NOT INDEXED
     WHERE audit_id BETWEEN ? AND ? AND {HAS_NULL} AND {SUPERVISOR}
"""
# Rule 1: coalesce() keeps a value that is there.
UPDATE_ROW = """
    UPDATE task_audits
       SET source_event_ts = coalesce(source_event_ts, ?),
           supervisor_processed_at = coalesce(supervisor_processed_at, ?)
     WHERE audit_id = ?
"""
# The same for many rows: one statement, during which SQLite doesn't hold the GIL.
ROWS_PER_STATEMENT = 1000  # three variables each; SQLite allows 32,766 by default
UPDATE_ROWS = f"""
    UPDATE task_audits
       SET source_event_ts = coalesce(source_event_ts, found.column1),
           supervisor_processed_at = coalesce(supervisor_processed_at, found.column2)
      FROM (VALUES {", ".join(["(?, ?, ?)"] * ROWS_PER_STATEMENT)}) AS found
     WHERE audit_id = found.column3
"""
# What runs for each batch: none may walk the whole table.
STATEMENTS = (COUNT_RANGE, SELECT_LAST_OF_BATCH, READ_ROWS, UPDATE_ROW, UPDATE_ROWS)

SELECT_TABLE = "SELECT sql FROM sqlite_master WHERE type = 'table' AND lower(name) = ?"
SELECT_COLUMNS = "SELECT lower(name) FROM pragma_table_xinfo(?)"
SELECT_TRIGGERS = "SELECT name FROM sqlite_master WHERE type = 'trigger' AND lower(tbl_name) = ?"
SELECT_UNIQUE = f"""
    SELECT info.name
      FROM pragma_index_list('task_audits') AS list, pragma_index_info(list.name) AS info
      JOIN pragma_table_xinfo('task_audits') USING (cid)  -- hidden > 1: it is generated
     WHERE origin = 'u' AND (hidden > 1 OR lower(info.name) IN {tuple(FIELDS)})
"""
HAS_MANY_ROWS = "SELECT EXISTS (SELECT 1 FROM task_audits LIMIT 1 OFFSET 1000)"
BY_ROWID = "USING INTEGER PRIMARY KEY (rowid=?)"
WALK = re.compile(r"SCAN (?:TABLE )?task_audits")
DATA_VERSION = "PRAGMA data_version"  # a number that moves when another connection commits

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
MOUNTS = Path("/proc/self/mounts")
LOCAL_FILE_SYSTEMS = (  # such a list ages better than one of what is not local
    "ext2 ext3 ext4 xfs btrfs zfs f2fs bcachefs jfs reiserfs tmpfs ramfs overlay "
    "fuse.fuse-overlayfs exfat vfat ntfs3 fuseblk squashfs erofs"
)
PROJECT, VERIFICATION = "backfill-audit-decision-fields", "verify_backfill.sql"
VERDICT_CONSTRAINT = "the line above names the checks that fail"  # breaks if there is one

# What an error of SQLite's means and what to do, by its extended code or else its primary one.
MOVED = "moved, replaced or removed during the run: see which file the agents use, and run on that"
CAUSES = {
    sqlite3.SQLITE_CORRUPT_VTAB: "a search index (a virtual table) is out of step with its table: "
    "mend it with INSERT INTO name(name) VALUES('rebuild')",
    sqlite3.SQLITE_READONLY_ROLLBACK: "a kill left its journal: do a run, without --dry-run",
    sqlite3.SQLITE_READONLY_DBMOVED: f"it was {MOVED}",
    sqlite3.SQLITE_BUSY: "another process held its lock: run again, or with more --busy-timeout",
    sqlite3.SQLITE_FULL: "the disk or the store is full: make room, then run again",
    sqlite3.SQLITE_READONLY: "it cannot be written: run as a user who may write it and its folder",
    sqlite3.SQLITE_CANTOPEN: "it, or a file beside it, cannot be opened: check permissions, and "
    "the length of its path (SQLite takes 504 bytes)",
    sqlite3.SQLITE_IOERR: "reading or writing it failed: check the disk and its room",
    sqlite3.SQLITE_PROTOCOL: "its file system has no locks that work: run where the agents run",
    sqlite3.SQLITE_NOMEM: "there is not enough memory: end something else, then run again",
    sqlite3.SQLITE_CORRUPT: "it is damaged: see PRAGMA integrity_check; REINDEX mends an index, "
    "only a backup a table (a copy of a WAL store needs its -wal)",
    sqlite3.SQLITE_NOTADB: "it is not a SQLite database, or encrypted: name a store with --db-path",
    sqlite3.SQLITE_ERROR: "SQLite gave up: look in the schema for what it names, then run again",
}
NO_ROWS_FAULT = {*CAUSES, sqlite3.SQLITE_LOCKED} - {sqlite3.SQLITE_ERROR}
MISSING = ("no such", "unknown function")  # a cause that has no code of its own, only words
NEEDS = "a trigger, an index or a CHECK needs what is not there: load it, or mend the schema"
TOO_NEW = ("malformed database schema", "unsupported file format")
NEWER = f"SQLite {sqlite3.sqlite_version} cannot read that: use a newer Python"

ROWS_AT_ONCE = 50  # payloads in memory
FIRST_BATCH = 100  # rows: on a slow disk a larger one would hold the lock for seconds
LEAST_RANGE = 1000  # rows that are counted at once, at least
GROW_BELOW, SHRINK_ABOVE = 0.1, 0.5  # seconds that a batch holds the lock
LONG_WAL = 16_000_000  # bytes: from here on half of the batches are not read ahead
HUGE_WAL = 100_000_000  # bytes: worth a note
BACKUP_PAGES = 1000  # database pages that the backup copies between two checks for a signal
INTERRUPT_STEPS = 100_000  # SQLite's instructions between two checks for a signal, in --verify

# SQLite itself waits for a lock in slices. With a rollback journal it keeps new readers out then,
# to get a turn even if they leave no gap; in the pause between two slices they have theirs.
LOCK_SLICE, LOCK_PAUSE = 0.5, 0.4  # seconds
SLEEP_SLICE = 0.1  # seconds of a rest between two checks for a signal
COMPANY_SECONDS = 2.0  # how long another writer counts as present
# How long to rest between two batches, in times that the last one held the lock. Waiters poll,
# with growing sleeps: whether they get in depends on the share of the time that it is free.
REST_ALONE, REST_IN_COMPANY = 1 / 9, 3.5
LONGEST_REST = 2.0  # seconds, beside --pause: about what a batch of SHRINK_ABOVE needs in company

EXAMPLES = 3  # rows shown on the terminal for each reason
REDRAW_SECONDS, PLAIN_SECONDS = 0.1, 5.0  # between progress lines on a terminal, and elsewhere
LABEL_WIDTH, FIGURE_WIDTH, BAR_WIDTH = 29, 12, 10  # characters
CUT = 200  # characters of a stranger's text that are shown
UTC_FORMAT = "%Y-%m-%dT%H:%M:%SZ"
# Signals that are only noted; Windows lacks some of them.
HEARD = [item for item in signal.Signals if item.name in ("SIGHUP", "SIGINT", "SIGTERM", "SIGTSTP")]
EXIT_DONE, EXIT_FAILED, EXIT_SIGNAL = 0, 1, 128  # plus the signal's number


# --- Extraction: what a row's timestamps are, by its payload ----------------------------------


class Found(NamedTuple):
    """What extraction found for one column."""

    value: str | None  # what to write
    field: str | None  # where it came from
    skipped: str | None  # the first payload field that was there and unusable, in words


NOT_FOUND = Found(None, None, None)


def extract_timestamps(payload: object, created_at: object) -> dict[str, str | None]:
    """Return a row's two timestamps, by column: rules 2 to 4 (rule 5 needs the whole row).

    `payload` is the column as SQLite gives it: str, bytes or None. Its fields come first, in
    the order of FIELDS, then `created_at`. A payload without fields (NULL, blank, JSON but not
    an object) leaves only created_at. If it is not JSON, both values are None. Never raises.
    """
    try:
        fields = read_payload(payload)
    except ValueError:
        return dict.fromkeys(FIELDS)
    return {column: first_usable(fields, column, created_at).value for column in FIELDS}


def read_payload(payload: object) -> dict[str, Any]:
    """Return the payload's fields: rule 4. Raises ValueError, in words, if it is not JSON."""
    if isinstance(payload, bytes):
        payload = payload.decode()  # its error is a ValueError
    if not isinstance(payload, str) or not payload.strip(WHITE_SPACE):
        return {}
    if len(payload) > 1.5 * MOST_LEVELS and payload.count("{") + payload.count("[") > MOST_LEVELS:
        brackets = BRACKET.findall(JSON_STRING.sub("", payload))  # those in strings don't count
        levels = itertools.accumulate(1 if bracket in "[{" else -1 for bracket in brackets)
        if max(levels, default=0) > MOST_LEVELS:
            raise ValueError(f"it is nested more than {MOST_LEVELS} levels deep")
    content = DECODER.decode(payload)
    return content if isinstance(content, dict) else {}


def first_usable(fields: dict[str, Any], column: str, created_at: object) -> Found:
    """Return the first usable candidate for a column: rule 2."""
    skipped = None
    for name in FIELDS[column]:
        candidate = fields.get(name)
        if candidate is not None:
            value = as_timestamp(candidate)
            if value is not None:
                return Found(value, name, skipped)
            if skipped is None:
                shown = f'"{printable(candidate, CUT)}"'
                if not isinstance(candidate, str):
                    shown = f"{type(candidate).__name__} of length {len(str(candidate))}"
                skipped = f"{name} is not a timestamp: {shown}"
    value = as_timestamp(created_at)
    return Found(value, None if value is None else FALLBACK, skipped)


def as_timestamp(value: object) -> str | None:
    """Return what to write for a candidate, None if it is not usable: rule 3."""
    if isinstance(value, str):
        return value if USUAL_FORM.fullmatch(value) else _from_text(value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return _from_epoch(value)
    return None


def _from_text(text: str) -> str | None:
    """Keep AgentOS's own form as it is; rewrite other spellings and numbers in that form."""
    stripped = text.strip(WHITE_SPACE)
    if NUMBER_AS_TEXT.fullmatch(stripped):
        return _from_epoch(float(stripped) if "." in stripped else int(stripped))
    match = ANY_FORM.fullmatch(stripped)
    if match is None:
        return None
    day, clock, utc, hours, minutes = match.groups()
    try:
        datetime.fromisoformat(day)
    except ValueError:  # there is no such day
        return None
    offset = f"{hours}:{minutes or '00'}" if hours else "Z" if utc else ""
    rewritten = f"{day}T{clock.replace(',', '.')}{offset}"
    return text if rewritten == text.replace(" ", "T") else rewritten


def _from_epoch(number: float) -> str | None:
    """Write an epoch of the years 2000 to 2099 as ISO-8601, to the nearest microsecond."""
    if not 0 < number < 2**63:  # also keeps out NaN and infinity
        return None
    numerator, denominator = number.as_integer_ratio()
    for nanoseconds in EPOCH_UNITS:
        divisor = 1000 * denominator
        microseconds, rest = divmod(numerator * nanoseconds, divisor)
        microseconds += 2 * rest + microseconds % 2 > divisor  # halves to even
        if EARLIEST <= microseconds < LATEST:
            moment = EPOCH + timedelta(microseconds=microseconds)
            return moment.isoformat(timespec="microseconds") + "Z"
    return None


# --- A row: what to write to it ----------------------------------------------------------------

Pair = tuple[str | None, str | None]  # one for each column, in the order of FIELDS
NOTHING = (None, None)


class Kind(NamedTuple):
    """What a row is counted by."""

    sources: Pair  # the fields that values are written from
    left_null: str | None  # a key of LEFT_NULL if a column stays NULL


kind_of = cache(Kind)  # there are few kinds, and many rows of each


class Plan(NamedTuple):
    """An open row without its payload, and what is to be written to it; after that, what was."""

    audit_id: int
    event_type: object
    created_at: object
    source_event_ts: object  # what was there; bytes for a BLOB and text that is not UTF-8
    supervisor_processed_at: object
    values: Pair  # None where nothing is to be written
    kind: Kind
    skipped: Pair  # for each NULL, the field that was there and unusable, and what it holds
    reason: str | None  # more words for kind.left_null


def plan_row(
    audit_id: int, payload: Any, event: Any, created_at: Any, kept_source: Any, kept_processed: Any
) -> Plan:
    """Decide what to write to an open row: rule 1 (only where it is NULL) and rule 5."""
    row = audit_id, event, created_at, kept_source, kept_processed
    kept = kept_source if kept_processed is None else kept_processed
    try:
        fields = read_payload(payload)
    except ValueError as error:
        return Plan(*row, NOTHING, kind_of(NOTHING, "malformed_json"), NOTHING, str(error))
    if kept is not None and not isinstance(kept, str):
        reason = "it is a BLOB, a number, or text that is not UTF-8"
        return Plan(*row, NOTHING, kind_of(NOTHING, "unreadable"), NOTHING, reason)
    source = processed = NOT_FOUND
    if kept_source is None:
        source = first_usable(fields, "source_event_ts", created_at)
    if kept_processed is None:
        processed = first_usable(fields, "supervisor_processed_at", created_at)
    values = first, second = source.value, processed.value
    if kept is not None:
        values = match_offset(first, kept, is_kept=True), match_offset(second, kept, is_kept=True)
    elif not (first and second and first[-1] == second[-1] == "Z"):  # most have it: saves time
        values = match_offset(first, second), match_offset(second, first)
    missing = (kept_source is None and first is None) or (kept_processed is None and second is None)
    kind = kind_of((source.field, processed.field), "no_timestamp" if missing else None)
    return Plan(*row, values, kind, (source.skipped, processed.skipped), None)


def match_offset(value: str | None, other: object, *, is_kept: bool = False) -> str | None:
    """Write a value so that AgentOS's readers can subtract it from the other one: rule 5.

    They crash on a pair of which only one has a UTC offset. If the other value has one and ours
    has none, ours is read as UTC and gets a `Z`. If a value that is there (`is_kept`) has none,
    ours is written in UTC without. A pair that they skip stays as extracted.
    """
    try:  # the way they read it
        other_offset = datetime.fromisoformat(str(other).replace("Z", "+00:00")).tzinfo
        ours = datetime.fromisoformat(str(value))
    except ValueError:  # one of them is none
        return value
    if ours.tzinfo is None and other_offset is not None:
        return ours.isoformat() + "Z"
    if is_kept and ours.tzinfo is not None and other_offset is None:
        return ours.astimezone(UTC).replace(tzinfo=None).isoformat()
    return value


# --- Signals and locks: how long the run waits ------------------------------------------------


class StoreError(Exception):
    """What is wrong and the next step, as a sentence for the operator."""


class Patience:
    """How long the run waits for others, and whether a signal has come meanwhile.

    A signal is only noted, so that the batch at hand can be finished first.
    """

    def __init__(self, busy_timeout: float, pause: float) -> None:
        self.busy_timeout = busy_timeout  # seconds
        self.pause = pause  # seconds between two batches
        self.signum: int | None = None
        self.before_stop: Callable[[], None] = lambda: None  # ends every read that is open
        self._stop_asked = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Note signals from now on, except those that were ignored when we started."""
        heard = [number for number in HEARD if signal.getsignal(number) != signal.SIG_IGN]
        before = [(number, signal.signal(number, self._note)) for number in heard]
        try:
            yield
        finally:
            # After a signal the process is about to end: another one must not change how.
            for number, former in before:
                signal.signal(number, former if self.signum is None else signal.SIG_IGN)

    def _note(self, signum: int, _frame: object) -> None:
        if signal.Signals(signum).name == "SIGTSTP":
            self._stop_asked = True
        else:
            self.signum = signum

    def check(self) -> None:
        """Stop after Ctrl-Z, raise KeyboardInterrupt after a signal. Call it with no lock held."""
        if self._stop_asked:
            self._stop_asked = False
            self.before_stop()
            signal.raise_signal(signal.SIGSTOP)
        if self.signum is not None:
            raise KeyboardInterrupt

    def sleep(self, seconds: float) -> None:
        """Sleep, in slices that a signal can end. Raises KeyboardInterrupt."""
        wake_up = time.monotonic() + seconds
        while time.monotonic() < wake_up:
            self.check()
            time.sleep(max(0.0, min(wake_up - time.monotonic(), SLEEP_SLICE)))


# --- The store: find, open, check, count --------------------------------------------------------


class Range(NamedTuple):
    """A part of the table, from one audit_id to another, and what it held when it was counted."""

    first: int
    last: int
    supervisor_rows: int
    open_rows: int


def find_store(path: Path) -> Path:
    """Return the store's real path. Raises StoreError if there is none, or it has a second name.

    SQLite finds -wal and -journal by the file's name: under another one it doesn't see those of
    other processes. Call it with no store open: to close a file drops this process's locks on it.
    """
    name_it = "name the store with --db-path"
    try:
        status, real = path.stat(), Path(os.path.realpath(path))
    except (FileNotFoundError, NotADirectoryError):
        named = filter(None, map(os.environ.get, STORE_VARIABLES))
        places = dict.fromkeys(map(_path, (*named, *STORE_PLACES)))
        found = ", ".join(filter(os.path.isfile, map(str, places)))  # raises nothing
        raise StoreError(f"there is no file: {name_it} (found here: {found or 'none'})") from None
    if not path.is_file():
        what = "a directory" if path.is_dir() else "not a regular file"
        raise StoreError(f"it is {what}: {name_it}")
    if status.st_size == 0:
        raise StoreError(f"it is empty: {name_it} (a copy of a WAL store needs its -wal)")
    if status.st_nlink > 1:
        others = f"`find FOLDER -samefile {shlex.quote(str(path))}`"
        words = "it has a second name (a hard link), under which a run would destroy it"
        raise StoreError(f"{words}: use the one the agents use, remove the other ({others})")
    if os.fsencode(real) in read_mounts():
        words = "it is a mount of the file alone, without its -wal: a run would destroy it"
        raise StoreError(f"{words}: mount or name its folder there instead, as the agents do")
    if hasattr(os, "geteuid") and os.geteuid() not in (0, status.st_uid):
        check_shared_memory(real, status)
    return real


def check_shared_memory(path: Path, status: os.stat_result) -> None:
    """Raise StoreError if the owner of a WAL store could not write the -shm that we make.

    Such a -shm keeps the agents out, and after a kill or a dry run it stays. SQLite makes it with
    this user's id, the store's mode, and this user's group, or the folder's if that is setgid.
    """
    with path.open("rb") as file:
        in_wal = file.read(20)[18:] == b"\2\2"
    folder = path.parent.stat()
    group = folder.st_gid if folder.st_mode & stat.S_ISGID else os.getegid()
    shared = status.st_mode & stat.S_IWGRP and group == status.st_gid
    if in_wal and not shared and not status.st_mode & stat.S_IWOTH:
        words = "it is a WAL store of another user, who could not write the -shm that we make"
        raise StoreError(f"{words}: run as its owner (user id {status.st_uid})")


def read_mounts() -> dict[bytes, str]:
    """Return the mount points that this process sees, with their file system's type."""
    mounts = {}
    for line in MOUNTS.read_bytes().splitlines() if MOUNTS.exists() else ():
        _device, point, kind, *_ = line.split(b" ")
        point = re.sub(rb"\\([0-7]{3})", lambda code: bytes([int(code[1], 8)]), point)
        mounts[point] = kind.decode()
    return mounts


def note_distant(path: Path) -> None:
    """Warn of a file system that is not known to be local: there, locks may not work."""
    mounts = read_mounts()
    kind = next(filter(None, (mounts.get(os.fsencode(folder)) for folder in path.parents)), None)
    if kind is not None and kind not in LOCAL_FILE_SYSTEMS.split():
        words = "%s is on %s, which may not be local: every process must use the same mount"
        log.warning(words, printable(path), printable(kind))


class Store:
    """An open store: its connection, its write lock, and what must be known of its schema."""

    def __init__(self, path: Path, patience: Patience, *, read_only: bool) -> None:
        """Open an existing store; creates no file. Raises sqlite3.Error or KeyboardInterrupt."""
        self.patience = patience
        self.schema_version = 0  # moves with every change of the schema
        self.triggers: list[str] = []  # on the table: a write to a row may change others
        self.held = 0.0  # seconds from BEGIN to the end of COMMIT, last time
        self.released_at = self._locked_at = self._company_until = -math.inf
        timeout = min(LOCK_SLICE, patience.busy_timeout)
        uri = f"{path.as_uri()}?mode={'ro' if read_only else 'rw'}"
        uri = re.sub("^file://(?!/)", "file:////", uri)  # a Windows share takes four slashes
        self.connection = sqlite3.connect(
            uri, uri=True, timeout=timeout, isolation_level=None, check_same_thread=False
        )
        self.connection.text_factory = decode_text
        try:
            self.execute("PRAGMA temp_store = MEMORY")  # a full or read-only TMPDIR is no obstacle
            self.in_wal = self.fetch("PRAGMA journal_mode") == "wal"
            if self.in_wal:
                # A power cut may undo the last batches, whole; the next run does them again.
                self.execute("PRAGMA synchronous = NORMAL")
                # A -wal that begins anew is cut to this, so its size tells how much is in it.
                self.execute(f"PRAGMA journal_size_limit = {LONG_WAL}")
        except BaseException:
            self.connection.close()
            raise

    def execute(self, sql: str, *parameters: object) -> sqlite3.Cursor:
        """Run a statement; try again while another process's lock is in the way.

        SQLite waits for a slice of the time itself, deaf to signals; between two slices nothing
        is held. Raises SQLite's error after the busy timeout, or KeyboardInterrupt.
        """
        give_up = time.monotonic() + self.patience.busy_timeout
        while True:
            try:
                return self.connection.execute(sql, parameters)
            except UnicodeDecodeError as error:  # the words of SQLite's error are not UTF-8
                raise sqlite3.DatabaseError(str(error)) from error
            except sqlite3.OperationalError as error:
                left = give_up - time.monotonic()
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or left <= 0:
                    raise
            self.patience.sleep(min(left, LOCK_PAUSE))

    def fetch(self, sql: str, *parameters: object) -> Any:
        """Return the first value that a query gives, None if it gives no row."""
        return next(iter(self.execute(sql, *parameters).fetchone() or (None,)))

    def fetch_all(self, sql: str, *parameters: object) -> list[str]:
        """Return the last value of each row, as text."""
        return [str(value) for *_, value in self.execute(sql, *parameters)]

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Rest, take the write lock, and commit at the end; on an error roll back.

        With a rollback journal a COMMIT waits for readers while it keeps new ones out.
        EXCLUSIVE waits for them beforehand; in WAL mode it is the same as IMMEDIATE.
        """
        factor = REST_IN_COMPANY if self._locked_at < self._company_until else REST_ALONE
        rest = min(self.held * factor, LONGEST_REST) - (time.monotonic() - self.released_at)
        self.patience.sleep(max(0.0, rest) + (self.patience.pause if self.held else 0))
        self.execute("BEGIN EXCLUSIVE")
        self._locked_at = time.monotonic()
        try:
            yield
            if self.connection.in_transaction:
                self.connection.execute("COMMIT")
        finally:
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")
            self.released_at = time.monotonic()
            self.held = self.released_at - self._locked_at

    def changed_since(self, version: int) -> bool:
        """Under the lock: whether another connection committed since the data_version was this.

        If the schema moved, it is checked again.
        """
        changed = bool(self.fetch(DATA_VERSION) != version)
        if changed:
            self._company_until = time.monotonic() + COMPANY_SECONDS
            if self.fetch("PRAGMA schema_version") != self.schema_version:
                check_schema(self)
        return changed

    def count(self, first: int, last: int, rows: int) -> Iterator[Range]:
        """Count what is between two audit_ids, so many rows at a time: no read lock lasts long."""
        while first <= last:
            self.patience.check()
            end, *numbers = self.execute(COUNT_RANGE, first, rows, last).fetchone()
            if end is None:
                return
            yield Range(first, end, *numbers)
            first = max(first, end) + 1  # never back, whatever a damaged page says


def decode_text(text: bytes) -> str | bytes:
    """Return a column's text, as bytes if it is not UTF-8, so that no row can end a run."""
    try:
        return text.decode()
    except UnicodeDecodeError:
        return text


def check_schema(store: Store) -> None:
    """Raise StoreError unless the store has what migration v21 brings, and can be filled.

    Raises sqlite3.Error if a trigger, for instance, needs a function that is missing.
    """
    store.schema_version, migration = store.fetch("PRAGMA schema_version"), newest_migration(store)
    apply_it = "apply migration v21 (0.21.0) first"
    if (0, 0) < migration < MIGRATION:
        raise StoreError("it is at schema version {}.{}.0: {}".format(*migration, apply_it))
    table = store.fetch(SELECT_TABLE, "task_audits")
    if table is None:
        words = "it has no table task_audits (a copy of a WAL store needs its -wal)"
        raise StoreError(f"{words}: name an AgentOS store with --db-path")
    columns = store.fetch_all(SELECT_COLUMNS, "task_audits")
    missing = ", ".join(column for column in NEEDED_COLUMNS if column not in columns)
    if missing:
        raise StoreError(f"task_audits has no column {missing}: {apply_it}")
    unique = store.fetch_all(SELECT_UNIQUE)
    if unique and re.search(r"(?is)\bCONFLICT\b.*\bREPLACE\b", str(table)):
        words = f"{' and '.join(unique)} of task_audits is UNIQUE with ON CONFLICT REPLACE"
        raise StoreError(f"{words}, so that a write could delete another row: rebuild it without")
    asked = (f"EXPLAIN QUERY PLAN {sql}" for sql in STATEMENTS)
    plans = [plan for sql in asked for plan in store.fetch_all(sql, *[None] * sql.count("?"))]
    if not any(plan.endswith(BY_ROWID) for plan in plans):
        words = "audit_id is no longer the INTEGER PRIMARY KEY of an ordinary table"
        raise StoreError(f"{words}: rebuild task_audits as AgentOS makes it")
    if any(map(WALK.search, plans)) and store.fetch(HAS_MANY_ROWS):
        words = "SQLite would read all of the table for each batch: ANALYZE once saw a row or two"
        raise StoreError(f"{words}: run `PRAGMA analysis_limit=1000; ANALYZE task_audits` first")
    store.triggers = store.fetch_all(SELECT_TRIGGERS, "task_audits")


def newest_migration(store: Store) -> tuple[int, int]:
    """Return AgentOS's newest schema version, (0, 0) if it cannot be read.

    '0.21.0' is (0, 21) and 'v66' is (0, 66): as text, 0.9.0 would sort above 0.21.0.
    """
    if "version" not in store.fetch_all(SELECT_COLUMNS, "schema_version"):
        return 0, 0
    found = map(VERSION.match, store.fetch_all("SELECT version FROM schema_version"))
    return max(((int(match[1] or 0), int(match[2])) for match in found if match), default=(0, 0))


# --- The backup ---------------------------------------------------------------------------------


def make_backup(store: Store, path: Path, target: Path, screen: "Screen") -> None:
    """Copy the store as it is at this moment to the new file `target`.

    The copy is made beside it as `NAME.partial`, readable by nobody else, and gets its name when
    it is complete. One read transaction makes it one moment: in WAL mode writers go on meanwhile,
    with a rollback journal their commits wait. If an error is raised, no file is left.
    """
    partial = Path(f"{target}.partial")
    for file in (partial, *(Path(f"{target}{suffix}") for suffix in ("", *COMPANIONS))):
        if os.path.lexists(file):  # SQLite would play an old journal into the copy
            cure = "run without --backup" if file == target else "remove what a killed run left"
            raise StoreError(f"{file} exists: name another file, or {cure}")

    def on_step(_status: int, left: int, total: int) -> None:
        if store.patience.signum is not None:
            raise KeyboardInterrupt
        screen.show("Backup", "pages", total - left, total)

    os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    try:
        store.execute("BEGIN")
        store.fetch("SELECT count(*) FROM sqlite_master")
        with closing(sqlite3.connect(partial)) as copy:
            store.connection.backup(copy, pages=BACKUP_PAGES, progress=on_step)
        copy_mode(path, partial)
        try:
            os.link(partial, target)  # never over an existing file
        except OSError:
            if os.path.lexists(target):
                raise
            partial.rename(target)  # on a file system without hard links
    except sqlite3.Error as error:
        name = getattr(error, "sqlite_errorname", "SQLite")
        words = f"the backup {target} cannot be made, so nothing was written ({name}: {error})"
        raise StoreError(f"{words}: see to that, or name another file") from error
    finally:
        if store.connection.in_transaction:
            store.execute("ROLLBACK")
        for file in (partial, Path(f"{partial}-journal")):
            file.unlink(missing_ok=True)


def copy_mode(source: Path, copy: Path) -> None:
    """Give `copy` the owner and mode of `source`; where that cannot be, it stays private."""
    wanted = source.stat()
    with suppress(OSError, AttributeError):  # a user, a place or a system that may not
        os.chown(copy, -1, wanted.st_gid)
        copy.chmod(stat.S_IMODE(wanted.st_mode))
        os.chown(copy, wanted.st_uid, -1)


# --- A batch --------------------------------------------------------------------------------------


class Batch(NamedTuple):
    """The first rows of a part of the table, as they were read and planned."""

    part: Range
    size: int  # rows of the table, open or not
    version: int  # the store's data_version before the read began
    last: int  # the last audit_id that it covers
    plans: list[Plan]  # for the open rows


def read_batch(store: Store, part: Range, size: int, version: int) -> Batch:
    """Read and plan the open rows among the first `size` rows of a part of the table."""
    last = store.fetch(SELECT_LAST_OF_BATCH, part.first, 1, size - 1)
    last = part.last if last is None else min(last, part.last)
    if last < part.first:  # pages are damaged so that SQLite doesn't see it: go no further
        raise StoreError(CAUSES[sqlite3.SQLITE_CORRUPT])
    return Batch(part, size, version, last, read_rows(store, part.first, last))


def read_rows(store: Store, first: int, last: int) -> list[Plan]:
    """Plan each open row as it comes, and drop its payload: so a batch takes little memory."""
    cursor = store.execute(READ_ROWS, first, last)
    # Some at a time: row by row, two threads would change places at every row.
    at_once = iter(lambda: cursor.fetchmany(ROWS_AT_ONCE), [])
    return [plan_row(*row) for rows in at_once for row in rows]


class ReadAhead:
    """Reads the next batch in a thread, on a connection of its own, while this one is written.

    SQLite writes without holding the GIL, so the two go on side by side. It is not `wanted` with a
    rollback journal: a read would hold up our own COMMIT.
    """

    def __init__(self, path: Path, *, wanted: bool) -> None:
        self._store: Store | None = None
        with suppress(sqlite3.Error):  # without it we read inline, and meet the error again
            self._store = Store(path, Patience(0, 0), read_only=True) if wanted else None
        self._worker = ThreadPoolExecutor(1)
        self._begun: Future[Batch] | None = None

    def begin(self, part: Range, size: int, version: int) -> None:
        """Begin to read a batch, as read_batch() does."""
        if self._store is not None:
            with suppress(RuntimeError):  # no thread is to be had
                self._begun = self._worker.submit(read_batch, self._store, part, size, version)

    def wait(self) -> None:
        """Wait for the read that is going on, if there is one."""
        if self._begun is not None:
            self._begun.exception()

    def take(self, part: Range) -> Batch | None:
        """Return the batch that was read, None if that is still to be done."""
        begun, self._begun = self._begun, None
        if begun is None or begun.exception() is not None or begun.result().part != part:
            return None
        return begun.result()

    def close(self) -> None:
        """End the thread, then close its connection."""
        self._worker.shutdown()
        if self._store is not None:
            self._store.connection.close()


def backfill_batch(store: Store, batch: Batch) -> tuple[Batch, list[Plan]] | None:
    """Write a batch in one transaction; one with nothing to write takes no lock.

    Returns the batch as it was under the lock, and what became of its rows; a row that was no
    longer open has no outcome. Returns None if a refused row undid the whole transaction, so
    that each row needs one of its own. Raises sqlite3.Error if the store cannot be written.
    """
    if all(plan.values == NOTHING for plan in batch.plans):
        return batch, batch.plans
    outcomes = []
    with store.transaction():
        if store.changed_since(batch.version):
            batch = read_batch(store, batch.part, batch.size, batch.version)
        # A batch UPDATE computes every value before it writes the first row. So a trigger on one
        # row could not protect another, and each row is read and written by itself.
        by_row = store.triggers or batch.size == 1
        if not by_row and write_rows(store, batch.plans):
            return batch, batch.plans
        for plan in batch.plans:
            if store.connection.in_transaction:
                outcome = write_row(store, plan.audit_id)
                refused = outcome is not None and outcome.kind.left_null == "refused"
                # Without triggers, a row is as planned; if it is closed, write_rows() wrote it.
                outcomes.append(outcome if by_row or refused else plan)
        if not store.connection.in_transaction and batch.size > 1:
            return None
    return batch, [outcome for outcome in outcomes if outcome is not None]


def write_rows(store: Store, plans: Sequence[Plan]) -> bool:
    """Write a batch at once; return whether that went through for every row."""
    to_write = [plan for plan in plans if plan.values != NOTHING]
    for at in range(0, len(to_write), ROWS_PER_STATEMENT):
        some = to_write[at : at + ROWS_PER_STATEMENT]
        values = [value for plan in some for value in (*plan.values, plan.audit_id)]
        padding = [""] * 3 * (ROWS_PER_STATEMENT - len(some))  # no audit_id; None binds slowly
        written, _why_not = attempt(store, UPDATE_ROWS, *values, *padding)
        if written < len(some):
            return False
    return True


def write_row(store: Store, audit_id: int) -> Plan | None:
    """Read, plan and write one row; return what became of it, None if it is no longer open.

    A refused row leaves no trace. But RAISE(ROLLBACK) in a trigger ends the transaction.
    """
    plan = next(iter(read_rows(store, audit_id, audit_id)), None)
    if plan is None or plan.values == NOTHING:
        return plan
    store.execute("SAVEPOINT one_row")
    written, why_not = attempt(store, UPDATE_ROW, *plan.values, audit_id)
    if store.connection.in_transaction:
        if why_not is not None:
            store.execute("ROLLBACK TO one_row")
        store.execute("RELEASE one_row")
    if written:
        return plan
    if why_not is None and not read_rows(store, audit_id, audit_id):
        return None  # a trigger did something else with it
    kind, reason = kind_of(NOTHING, "refused"), why_not or "a trigger or constraint ignored it"
    return plan._replace(values=NOTHING, kind=kind, skipped=NOTHING, reason=reason)


def attempt(store: Store, sql: str, *values: object) -> tuple[int, str | None]:
    """Run an UPDATE; return how many rows it wrote, and its error if a row is at fault."""
    try:
        return store.execute(sql, *values).rowcount, None
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF  # the primary one
        missing = code == sqlite3.SQLITE_ERROR and str(error).startswith(MISSING)
        if missing or code in NO_ROWS_FAULT:
            raise
        return 0, str(error)


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
        default_factory=lambda: {key: dict.fromkeys((*FIELDS[key], FALLBACK), 0) for key in FIELDS}
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

    def as_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in Figures.__dataclass_fields__}


@dataclass
class Summary(Figures):
    """The figures of a run, and what they are worked out from."""

    interrupted_by: str | None = None  # the name of a signal
    ranges: dict[Range, int] = field(default_factory=dict)  # with the rows left NULL in each
    expected: int = 0  # open rows of the range at hand that have not been met
    reached: int = 0  # rows to fill that the run has come to
    kinds: Counter[Kind] = field(default_factory=Counter)  # rows that are filled or left NULL
    examples: dict[Kind, Plan] = field(default_factory=dict)
    odd_rows: Counter[str] = field(default_factory=Counter)  # that a warning is about, by reason

    def begin(self) -> None:
        """Take over what was counted at the start."""
        self.supervisor_rows = sum(counted.supervisor_rows for counted in self.ranges)
        self.to_fill = sum(counted.open_rows for counted in self.ranges)
        self.already_filled = self.supervisor_rows - self.to_fill
        self.coverage_before_pct = percent(self.already_filled, self.supervisor_rows)

    def add(self, counted: Range, batch: Batch, outcomes: Sequence[Plan]) -> None:
        """Count what became of a batch's rows; those that opened since the count are added."""
        found, kinds = len(batch.plans), Counter(plan.kind for plan in outcomes)
        self.batches += 1
        self.to_fill += max(0, found - self.expected)
        self.expected = max(0, self.expected - found)
        gone = found - len(outcomes) + (self.expected if batch.last >= counted.last else 0)
        self.gone += gone
        self.reached += len(outcomes) + gone
        self.kinds.update(kinds)
        self.ranges[counted] += sum(kinds[kind] for kind in kinds if kind.left_null)
        for kind in kinds.keys() - self.examples.keys():
            self.examples[kind] = next(plan for plan in outcomes if plan.kind == kind)
        for plan in outcomes:
            if plan.skipped != NOTHING:
                for column, skipped, value in zip(FIELDS, plan.skipped, plan.values, strict=True):
                    self.unusable[column] += None not in (skipped, value)

    def end(self, seconds: float) -> None:
        """Work out the figures that follow from the others."""
        for (sources, left_null), number in self.kinds.items():
            if left_null is None:
                self.filled += number
            else:
                self.left_null[left_null] += number
            for column, source in zip(FIELDS, sources, strict=True):
                if source is not None:
                    self.sources[column][source] += number
        if self.coverage_after_pct is None:
            rows = max(self.supervisor_rows, self.to_fill) - self.gone  # others may insert rows
            self.coverage_after_pct = percent(rows - (self.to_fill - self.filled - self.gone), rows)
        self.elapsed_seconds = round(seconds, 3)
        self.rows_per_second = round(self.reached / seconds, 1) if seconds else 0.0


def percent(part: int, whole: int) -> float:
    """`part` of `whole` in percent, rounded down: 100 means all. Of nothing, all is done."""
    return part * 1_000_000 // whole / 10_000 if whole else 100.0


def run(options: argparse.Namespace, summary: Summary, screen: "Screen", patience: Patience) -> int:
    """Fill or verify the store; say in `summary` how it ended, and return the exit code."""
    try:
        if options.verify:
            return verify(options, patience)  # which prints its own verdict
        fill_store(options, summary, screen, patience)
    except (KeyboardInterrupt, StoreError, sqlite3.Error, OSError, MemoryError) as error:
        cut_short = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_INTERRUPT
        if cut_short or isinstance(error, KeyboardInterrupt):
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
    note_distant(path)
    store = Store(path, patience, read_only=options.dry_run)
    with closing(store.connection):
        check_schema(store)
        version, migration = store.fetch(DATA_VERSION), newest_migration(store)
        files = {file: file.stat() for file in (path, Path(f"{path}-wal")) if file.exists()}
        if options.backup is not None and not options.dry_run:
            make_backup(store, path, Path(os.path.abspath(options.backup)), screen)  # noqa: PTH100
            summary.backup = str(options.backup)
        began = time.monotonic()
        last, rows = store.fetch(SELECT_LAST) or 0, 0
        for counted in store.count(-(2**63), last, max(options.batch_size, LEAST_RANGE)):
            summary.ranges[counted] = 0
            rows += counted.supervisor_rows
            screen.show("Counting", "rows", rows)
        summary.begin()
        try:
            with closing(ReadAhead(path, wanted=store.in_wal and not options.dry_run)) as ahead:
                patience.before_stop = ahead.wait
                fill_rows(store, ahead, files, summary, screen)
            touched = store.fetch(DATA_VERSION) != version or store.triggers
            if touched and not options.dry_run:
                count_again(store, summary, migration, screen)
        finally:
            summary.end(time.monotonic() - began)


def fill_rows(
    store: Store, ahead: ReadAhead, files: dict[Path, Any], summary: Summary, screen: "Screen"
) -> None:
    """Go through the ranges with open rows, batch by batch, and keep `summary` up to date.

    A dry run does all but write. An error or KeyboardInterrupt comes between two batches.
    """
    wal_size, long_for, huge = 0, 0, HUGE_WAL  # `long_for`: batches in a row that found it long
    undone_to = -math.inf  # the last audit_id of a batch that a refused row undid
    size, label = min(FIRST_BATCH, summary.batch_size), "Dry run" if summary.dry_run else "Filling"
    ranges = [counted for counted in summary.ranges if counted.open_rows]
    for counted, following in itertools.zip_longest(ranges, ranges[1:]):
        summary.expected, part = counted.open_rows, counted
        while part.first <= part.last:
            store.patience.check()
            version = store.fetch(DATA_VERSION)
            rows = 1 if part.first <= undone_to else size
            batch = ahead.take(part) or read_batch(store, part, rows, version)
            rest = part._replace(first=batch.last + 1)
            upcoming = rest if rest.first <= rest.last else following
            # An open read keeps a checkpoint from finishing. With a long -wal, every second batch
            # is written without one: that ends a checkpoint, and the next begins the -wal anew.
            long_for = long_for + 1 if wal_size > LONG_WAL else 0
            if upcoming is not None and long_for % 2 == 0:
                ahead.begin(upcoming, rows, version)
            released_at = store.released_at
            done = (batch, batch.plans) if summary.dry_run else backfill_batch(store, batch)
            if done is None:
                undone_to = batch.last
                continue
            batch, outcomes = done
            summary.add(counted, batch, outcomes)
            log_rows(outcomes, summary.odd_rows)
            screen.show(label, "rows", summary.reached, summary.to_fill)
            for file, was in files.items():
                now = file.stat() if file.exists() else None
                if now is None or not os.path.samestat(now, was):
                    raise StoreError(f"{file} was {MOVED}")
                wal_size = now.st_size if file.name.endswith("-wal") else wal_size
            if long_for > 2 and long_for % 2 and wal_size > huge:
                huge = sys.maxsize  # once
                log.warning("the -wal has %.0f MB: an open read may hold it up", wal_size / 1e6)
            part = part._replace(first=batch.last + 1)
            wrote = store.released_at != released_at
            if wrote and store.held > SHRINK_ABOVE:
                size = max(1, batch.size // 2)
            elif (wrote and store.held < GROW_BELOW) or summary.dry_run:
                size = min(2 * batch.size, summary.batch_size)


def count_again(store: Store, summary: Summary, before: tuple[int, int], screen: "Screen") -> None:
    """Count every range again, because others, or a trigger, may have changed it.

    Raises StoreError if there are more open rows in a range than the run left: those are `undone`.
    """
    rows = open_rows = undone = 0
    for counted, left_open in summary.ranges.items():
        found = list(store.count(counted.first, counted.last, LEAST_RANGE))
        open_now = sum(part.open_rows for part in found)
        rows += sum(part.supervisor_rows for part in found)
        open_rows += open_now
        undone += max(0, open_now - left_open)
        screen.show("Checking", "rows", rows)
    summary.coverage_after_pct, summary.undone = percent(rows - open_rows, rows), undone
    if undone:
        triggers = ", ".join(store.fetch_all(SELECT_TRIGGERS, "task_audits"))
        culprit = f"a trigger ({triggers}) or another process" if triggers else "another process"
        if newest_migration(store) != before:
            culprit = "a migration"
        words = f"{counted_as(undone, 'row has', 'rows have')} a NULL again, set back or inserted"
        raise StoreError(f"{words} by {culprit}: see to that, then run again")


# --- Progress, log, report, verdict ---------------------------------------------------------------


def printable(value: object, limit: int = sys.maxsize) -> str:
    """Escape and cut a stranger's text, so that it does a terminal or a log no harm: rule 7."""
    text = str(value)
    text = text if len(text) <= limit else f"{text[: limit - 3]}..."
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def counted_as(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"


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
        rate += f"  {timedelta(seconds=math.ceil((total - done) * elapsed / done))} left"
    return f"[{bar:-<{BAR_WIDTH}}] {label}  {share}  {done:,}/{total:,} {unit}{rate}"


class Screen(logging.Handler):
    """stderr: progress, as one line that redraws itself on a terminal, and what is logged."""

    def __init__(self, stream: TextIO, *, quiet: bool) -> None:
        super().__init__(logging.ERROR if quiet else logging.WARNING)
        self._stream, self._quiet = stream, quiet
        self._live = stream.isatty() and os.environ.get("TERM") != "dumb"
        self._label, self._shown, self._began, self._next = "", -1, 0.0, 0.0  # of the phase
        self._drawn = False  # whether there is a line to clear

    def emit(self, record: logging.LogRecord) -> None:
        """Show a record, unless it is about a row and more like it were shown."""
        if getattr(record, "nth", 1) <= EXAMPLES:
            self.say(f"{record.levelname.lower()}: {record.getMessage()}")

    def say(self, text: str, *, even_if_quiet: bool = False) -> None:
        """Print a line of its own."""
        if even_if_quiet or not self._quiet:
            self.clear()
            self._write(f"{text}\n")

    def show(self, label: str, unit: str, done: int, total: int = 0) -> None:
        """Show how far a phase of the run is, if it is time; a total of 0 is unknown."""
        now, pace = time.monotonic(), REDRAW_SECONDS if self._live else PLAIN_SECONDS
        if label != self._label:
            self._label, self._shown, self._began, self._next = label, -1, now, now + pace
        finished = done == total > 0
        if self._quiet or done == self._shown or (now < self._next and not finished):
            return
        self._shown, self._next = done, now + pace
        line = format_progress(label, unit, done, total, now - self._began)
        columns = 80
        with suppress(OSError):
            columns = os.get_terminal_size(self._stream.fileno()).columns or columns
        self._drawn = self._live and not finished
        line = f"\r\x1b[K{line[: columns - 1]}" if self._live else line
        self._write(line if self._drawn else f"{line}\n")

    def clear(self) -> None:
        """Take the line of progress away."""
        if self._drawn:
            self._write("\r\x1b[K")
        self._drawn = False

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError:  # nobody is left to tell; the work goes on
            forget(self._stream)


def forget(stream: TextIO) -> None:
    """Send what is written from now on nowhere, so that Python's last flush raises nothing."""
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
        words = f"the log file {self.baseFilename} cannot be written ({error})"
        raise StoreError(f"{words}: make room for it, or name another one") from error


def open_log(options: argparse.Namespace, store: Path) -> None:
    """Log to a file from now on, if one is asked for; it is created with the store's mode."""
    taken = [f"{store}{suffix}" for suffix in ("", *COMPANIONS)]
    for option, file in (("--backup", options.backup), ("--log-file", options.log_file)):
        if file is not None and os.path.realpath(file) in taken:
            raise StoreError(f"{option} names the store or a file of SQLite's: name another file")
    if options.log_file is not None:
        if not options.log_file.exists():
            file = Path(os.path.realpath(options.log_file))  # it may be a link to nothing
            os.close(os.open(file, os.O_CREAT | os.O_WRONLY, 0o600))
            copy_mode(store, file)
        log.addHandler(LogFile(options.log_file))
        log.setLevel(logging.INFO)
    log.info("begin: version %s, %s, %s", __version__, printable(store), vars(options))


def log_rows(outcomes: Sequence[Plan], odd_rows: Counter[str]) -> None:
    """Log one line for each row of which there is something to say; count the odd ones."""
    verbose = log.isEnabledFor(logging.INFO)
    for plan in outcomes:
        if plan.kind.left_null is not None or plan.skipped != NOTHING:
            reason = plan.kind.left_null or "skipped"
            odd_rows[reason] += 1
            if verbose or odd_rows[reason] <= EXAMPLES:  # otherwise nobody would see it
                nth = {"nth": odd_rows[reason]}
                log.warning("audit_id %s: %s", plan.audit_id, "; ".join(describe(plan)), extra=nth)
        elif verbose and FALLBACK in plan.kind.sources:
            log.info("audit_id %s: %s", plan.audit_id, "; ".join(describe(plan)))


def describe(plan: Plan) -> Iterator[str]:
    """Say what each column holds after a run and where that is from, and why one stays NULL."""
    kept_values = plan.source_event_ts, plan.supervisor_processed_at
    columns = zip(FIELDS, kept_values, plan.values, plan.kind.sources, plan.skipped, strict=True)
    for column, kept, value, source, skipped in columns:
        because = f", because {skipped}" if skipped else ""
        if kept is not None:
            yield f"{column} {printable(kept, CUT)} (already there)"
        elif value is None:
            yield f"{column} left NULL{because}"
        else:
            yield f"{column} {value} from {source}{because}"
    if plan.kind.left_null is not None:
        more = f": {printable(plan.reason, CUT)}" if plan.reason else ""
        yield f"{LEFT_NULL[plan.kind.left_null]}{more}"


def format_counts(summary: Summary, log_file: Path | None) -> Iterator[str]:
    """Yield how many rows there are for each reason of a warning, and how many fall-backs."""
    where = "the log has" if log_file else "--log-file PATH keeps"
    for reason, number in summary.odd_rows.items():
        why = f"left NULL: {LEFT_NULL[reason]}" if reason in LEFT_NULL else "with skipped fields"
        yield f"warning: {counted_as(number, 'row', 'rows')} {why}; {where} a line for each"
    for column, counts in summary.sources.items():
        if counts[FALLBACK]:
            values = counted_as(counts[FALLBACK], "value", "values")
            yield f"note: {values} of {column} from {FALLBACK}"


def format_report(summary: Summary, verdict: str) -> str:
    """Write the summary for people, and the verdict as the last line."""
    what = "Dry run (nothing was written)" if summary.dry_run else "Backfill"
    lines = [f"{what} of {printable(summary.db_path)}: {summary.status}", ""]
    lines += [*format_figures(summary.as_dict(), ""), ""]
    return "\n".join([*lines, *(format_preview(summary) if summary.dry_run else ()), verdict])


def format_figures(figures: dict[str, Any], indent: str) -> Iterator[str]:
    """Write the summary by its keys, without what is zero or is said elsewhere in the report."""
    for name, value in figures.items():
        if isinstance(value, dict):
            inner = list(format_figures(value, f"{indent}  "))
            yield from (f"{indent}{name}", *inner) if inner else ()
        elif value and name not in ("status", "db_path", "dry_run", "error"):
            shown = printable(value) if isinstance(value, str) else f"{value:,}"
            yield f"{indent + name:<{LABEL_WIDTH}}{shown:>{FIGURE_WIDTH}}"


def format_preview(summary: Summary) -> Iterator[str]:
    """Show a row of each kind, as a run would leave it; the most frequent kinds first."""
    for kind, number in summary.kinds.most_common():
        row = summary.examples[kind]
        event_type, created_at = printable(row.event_type, CUT), printable(row.created_at, CUT)
        yield f"{counted_as(number, 'row', 'rows')} like audit_id {row.audit_id}, {event_type}"
        yield from (f"  {line}" for line in (f"created_at {created_at}", *describe(row)))
    yield ""


def format_verdict(summary: Summary) -> str:
    """Say in one line how a run ended, with the figures that matter and the next step."""
    filled = f"{summary.filled:,} of {summary.to_fill:,} rows"
    again = " without --backup" if summary.backup is not None else ""
    wrote = any(kind.sources != NOTHING for kind in summary.kinds)
    written = wrote and not summary.dry_run
    stays = f"{filled} filled, which stay" if written else "nothing was written"
    if summary.status == "failed":
        unsure = MOVED in str(summary.error)  # what stays, and where
        stays = f"; {stays}" if summary.reached < summary.to_fill and not unsure else ""
        backup = f"; the backup stays: run again{again}" if again else ""
        return f"failed: {summary.error}{stays}{backup}"
    if summary.status == "interrupted":
        command = f"run the same command again{again} to go on"
        return f"interrupted by {summary.interrupted_by}: {stays}; {command}"
    if not summary.supervisor_rows:
        return "nothing to do: the store has no rows of the Supervisor: is it the right one?"
    begin, next_step = f"completed: {filled} filled, ", "check it with --verify"
    if not summary.to_fill:
        return f"nothing to do: all {summary.supervisor_rows:,} rows are filled; {next_step}"
    if not wrote:
        begin = "nothing to do: "
    elif summary.dry_run:
        begin = f"dry run: {filled} would be filled, "
        next_step = "to write them, run again without --dry-run"
    left = summary.to_fill - summary.filled - summary.gone
    facts = [f"{left:,} {'would stay' if summary.dry_run else 'left'} NULL"]
    if summary.gone:
        facts.append(f"{summary.gone:,} filled, deleted or renamed by others")
    facts.append(f"coverage {format_percent(summary.coverage_after_pct)}")
    for column, counts in summary.sources.items():
        share = 100 * counts[FALLBACK] // max(1, sum(counts.values()))
        facts += [f"{share} % of {column} from {FALLBACK}"] if share else []
    return f"{begin}{', '.join(facts)}; {next_step}"


# --- The command line -----------------------------------------------------------------------------


def _path(text: str) -> Path:
    return Path(os.path.expanduser(text))  # noqa: PTH111 - raises nothing


def read_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line; raises SystemExit, with 2 for wrong usage."""
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawTextHelpFormatter
    )
    for option, metavar, kind, default, meaning in (
        ("--db-path", "PATH", _path, DEFAULT_STORE, "the store (default %(default)s)"),
        ("--batch-size", "N", int, 1000, "most rows in a transaction (default %(default)s)"),
        ("--backup", "PATH", _path, None, "first copy the store to this file"),
        ("--busy-timeout", "SECONDS", float, 30, "longest wait for a lock (default %(default)s)"),
        ("--pause", "SECONDS", float, 0.0, "extra rest between batches, for a busy store"),
        ("--log-file", "PATH", _path, None, "append a record of the run, a line for each odd row"),
    ):
        parser.add_argument(option, metavar=metavar, type=kind, default=default, help=meaning)
    for option, meaning in (
        ("--dry-run", "write nothing, show what a run would do"),
        ("--verify", f"check a filled store with {VERIFICATION}"),
        ("--json", "print the summary on stdout, as a JSON object"),
        ("--quiet", "only errors on stderr"),
    ):
        parser.add_argument(option, action="store_true", help=meaning)
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    options = parser.parse_args(argv)
    if not 0 < options.batch_size < 2**63:
        parser.error("--batch-size takes a whole number from 1 up")
    if not all(0 <= number < math.inf for number in (options.busy_timeout, options.pause)):
        parser.error("--busy-timeout and --pause take a number of seconds from 0 up")
    given = {name for name, value in vars(options).items() if value != parser.get_default(name)}
    if options.verify and given - {"verify", "db_path", "busy_timeout"}:
        parser.error("--verify goes only with --db-path and --busy-timeout")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; wrong usage raises SystemExit(2)."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    options = read_options(argv)
    screen = Screen(sys.stderr or io.StringIO(), quiet=options.quiet)
    patience = Patience(options.busy_timeout, options.pause)
    summary = Summary("failed", str(options.db_path), options.dry_run, options.batch_size)
    log.setLevel(logging.WARNING)
    log.addHandler(screen)
    try:
        with patience.listening():
            code = run(options, summary, screen, patience)
            screen.clear()
            return show_end(options, summary, screen) or code
    finally:
        for handler in list(log.handlers):
            log.removeHandler(handler)
            handler.close()


def show_end(options: argparse.Namespace, summary: Summary, screen: Screen) -> int:
    """Log and show how the run ended; return an exit code if that was not possible."""
    code, verdict = EXIT_DONE, format_verdict(summary)
    try:
        log.info("end: %s %s", verdict, json.dumps(summary.as_dict()))
    except (StoreError, OSError) as error:
        summary.status, summary.error, code = "failed", explain(error, options), EXIT_FAILED
        verdict = format_verdict(summary)
    for line in format_counts(summary, options.log_file):
        screen.say(line)
    report = json.dumps(summary.as_dict()) if options.json else None
    if summary.coverage_before_pct is not None and not options.json:
        report = format_report(summary, verdict)
    try:
        if report is not None:
            put(report)
    except OSError as error:
        report, code = None, EXIT_FAILED
        screen.say(f"error: the report cannot be written: {error.strerror}", even_if_quiet=True)
    if summary.error is not None:
        screen.say(f"error: {verdict.removeprefix('failed: ')}", even_if_quiet=True)
    elif summary.status != "failed" and (report is None or options.json):
        screen.say(verdict, even_if_quiet=code == EXIT_FAILED)
    return code


def put(text: str) -> None:
    """Print to stdout at once; a reader that has seen enough is no error."""
    try:
        print(text, flush=True)
    except OSError as error:
        forget(sys.stdout)
        if not isinstance(error, BrokenPipeError):
            raise OSError(error.errno, error.strerror, "to print the report") from error


def explain(error: BaseException, options: argparse.Namespace) -> str:
    """Say what went wrong and what to do, as one line that names the store."""
    path, text = printable(options.db_path), printable(error)
    if isinstance(error, sqlite3.Error):
        name = getattr(error, "sqlite_errorname", "SQLite")
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
        cause = CAUSES.get(code) or CAUSES.get(code & 0xFF) or CAUSES[sqlite3.SQLITE_ERROR]
        cause = NEEDS if text.startswith(MISSING) else NEWER if text.startswith(TOO_NEW) else cause
        text = f"{cause} ({name}: {text}{ask_system(options)})"
        if options.verify and code & 0xFF in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN):
            text += "; for its temporary files, SQLITE_TMPDIR can name another folder"
    elif isinstance(error, MemoryError):
        text = CAUSES[sqlite3.SQLITE_NOMEM]
    elif isinstance(error, OSError):
        text = f"the system refused {error.filename or 'it'}: {error.strerror}: mend that first"
    return f"{path}: {text}"


def ask_system(options: argparse.Namespace) -> str:
    """Return what the system says when, with no store open, it opens the file or makes another."""
    path = Path(os.path.realpath(options.db_path))
    try:
        path.open("rb" if options.dry_run or options.verify else "r+b").close()
        with tempfile.TemporaryFile(dir=path.parent) as beside:
            beside.write(bytes(65_536))  # more than a -shm takes
    except OSError as error:
        return f"; the system says: {error.strerror}"
    return ""


def verify(options: argparse.Namespace, patience: Patience) -> int:
    """Run the eight checks and print what the sqlite3 shell prints; return the exit code."""
    path = find_store(options.db_path)
    script = Path(__file__).resolve().with_name(VERIFICATION)
    if not script.exists():  # pip puts it elsewhere
        script = Path(sysconfig.get_path("data"), "share", PROJECT, VERIFICATION)
    if not script.exists():
        raise StoreError(f"{VERIFICATION} is missing: put it beside {__file__}")
    statement = ""
    store = Store(path, patience, read_only=True)
    with closing(store.connection):
        store.execute("PRAGMA temp_store = DEFAULT")  # a large store's tables need the disk
        store.connection.text_factory = lambda text: text.decode(errors="replace")
        store.connection.set_progress_handler(lambda: patience.signum is not None, INTERRUPT_STEPS)
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


if __name__ == "__main__":
    gc.disable()  # no row leaves a cycle behind, and to look for one takes a twentieth of a run
    raise SystemExit(main())
