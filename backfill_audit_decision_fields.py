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
the rules as data and the SQL; extraction; what is written to a row; signals and
locks; the store; one batch; the run; progress and report; the command line.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import math
import os
import shlex
import shutil
import signal
import sqlite3
import stat
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from operator import attrgetter
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, TextIO, TypeVar

if sys.version_info < (3, 11):  # noqa: UP036 - who copies one file checks no metadata
    sys.exit("backfill_audit_decision_fields.py needs Python 3.11 or later")

__version__ = "1.0.0"

# The payload fields that each column is filled from; the first usable one wins,
# and after them the row's own created_at.
FIELDS = {
    "source_event_ts": ("source_event_ts", "source_ts", "event_timestamp", "task_created_at"),
    "supervisor_processed_at": ("supervisor_processed_at", "processed_at", "timestamp"),
}
FALLBACK = "created_at"

# JSON numbers are epoch seconds, or milliseconds from here up.
MILLISECONDS_FROM = 1e11
EPOCH = datetime(1970, 1, 1)
EARLIEST_MS = (datetime(2000, 1, 1) - EPOCH) // timedelta(milliseconds=1)
LATEST_MS = (datetime(2100, 1, 1) - EPOCH) // timedelta(milliseconds=1)

# raw_decode() of these is json.loads() without its search for blanks: a fifth faster.
DECODER = json.JSONDecoder()
LENIENT_DECODER = json.JSONDecoder(parse_int=float)
JSON_BLANKS = " \t\n\r"

MIGRATION = (0, 21)
NEEDED_COLUMNS = ("audit_id", "event_type", "payload", FALLBACK, *FIELDS)

SUPERVISOR = "event_type LIKE '%SUPERVISOR%'"
HAS_NULL = "(source_event_ts IS NULL OR supervisor_processed_at IS NULL)"

# Two subqueries, because SQLite answers a lone min() or max() without a scan.
SELECT_BOUNDS = """
    SELECT (SELECT min(audit_id) FROM task_audits),
           (SELECT max(audit_id) FROM task_audits)
"""
SURVEY_PAGE = f"""
    SELECT max(audit_id), total(supervisor), total(supervisor AND has_null)
      FROM (SELECT audit_id, {SUPERVISOR} AS supervisor, {HAS_NULL} AS has_null
              FROM task_audits
             WHERE audit_id BETWEEN ? AND ?
             ORDER BY audit_id
             LIMIT ?)
"""
SELECT_ROWS = f"""
    SELECT audit_id, event_type, payload, created_at, source_event_ts, supervisor_processed_at
      FROM task_audits
     WHERE audit_id BETWEEN ? AND ? AND {SUPERVISOR} AND {HAS_NULL}
     ORDER BY audit_id
     LIMIT ?
"""
SELECT_ROW = f"""
    SELECT audit_id, event_type, payload, created_at, source_event_ts, supervisor_processed_at
      FROM task_audits
     WHERE audit_id = ? AND {SUPERVISOR}
"""
# Fills the row only while its columns are as they were when it was read: the
# offsets of a pair were brought together on that ground.
FILL_ROW = """
    UPDATE task_audits
       SET source_event_ts = coalesce(source_event_ts, ?),
           supervisor_processed_at = coalesce(supervisor_processed_at, ?)
     WHERE audit_id = ? AND source_event_ts IS ? AND supervisor_processed_at IS ?
"""
# The same for many rows whose columns are both NULL: {} takes a (?, ?, ?) for each row. The
# plus keeps SQLite from looking for them by an index on a column, through all that are NULL.
FILL_ROWS = """
    UPDATE task_audits
       SET source_event_ts = found.column2, supervisor_processed_at = found.column3
      FROM (VALUES {}) AS found
     WHERE audit_id = found.column1
       AND +source_event_ts IS NULL AND +supervisor_processed_at IS NULL
"""

SELECT_ROOT_PAGE = "SELECT rootpage FROM sqlite_master WHERE type = 'table' AND lower(name) = ?"
SELECT_COLUMNS = "SELECT lower(name) FROM pragma_table_info(?)"
# What makes audit_id the rowid: it alone is the key, and its type is this very word.
SELECT_ROWID = """
    SELECT lower(name) FROM pragma_table_info('task_audits')
     WHERE pk AND upper(type) = 'INTEGER'
       AND (SELECT count(*) FROM pragma_table_info('task_audits') WHERE pk) = 1
"""

# Why a row stays NULL: the keys of the summary, and what they mean.
LEFT_NULL = {
    "malformed_json": "the payload is not JSON",
    "no_timestamp": "no usable timestamp, nor created_at",
    "refused": "the database refused the row",
}

# What to do about an error of SQLite, by its primary result code.
LOCKED_ADVICE = (
    "another process held its lock for over {options.busy_timeout:g} s: "
    "try again, or wait longer with --busy-timeout"
)
ADVICE = {
    sqlite3.SQLITE_BUSY: LOCKED_ADVICE,
    sqlite3.SQLITE_LOCKED: LOCKED_ADVICE,
    sqlite3.SQLITE_FULL: "the disk or the store is full: make room, then run again",
    sqlite3.SQLITE_READONLY: "it cannot be written: check the permissions of file and folder",
    sqlite3.SQLITE_CANTOPEN: "it, or its journal beside it, cannot be opened: "
    "check the permissions of file and folder",
    sqlite3.SQLITE_IOERR: "reading or writing it failed: check the disk, then run again",
    sqlite3.SQLITE_CORRUPT: "it is damaged: PRAGMA integrity_check says where, REINDEX mends "
    "an index, and only a backup mends a table",
    sqlite3.SQLITE_NOTADB: "it is not a SQLite database: name the store with --db-path",
}
OTHER_ADVICE = (
    "SQLite gave up: run again, and if that does not help, look in the schema for what it names"
)
LOCKED = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
# A trigger or a constraint that refuses one row; other errors end the run.
REFUSALS = (sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_TOOBIG)

DEFAULT_STORE = "~/.agentos/store.db"
DEFAULT_BATCH_SIZE = 1000
DEFAULT_BUSY_TIMEOUT = 30.0

ROWS_AT_ONCE = 1000  # of one UPDATE: three values each, and SQLite takes 32,766
BATCHES_AHEAD = 2  # read in a thread while one is written
PAGE_ROWS = 1000  # rows of the table that one read looks at: bounds how long it locks
BACKUP_PAGES = 1000  # database pages that the backup copies between two looks at a signal
LOCK_SLICE = 0.1  # seconds that SQLite waits for a lock before we look at a signal
LOCK_PAUSE = 0.005  # seconds until we ask again
SLEEP_SLICE = 0.1  # seconds of a rest between two looks at a signal
CHECKPOINT_SECONDS = 0.02  # of writing between two checkpoints: bounds the WAL, and the fsyncs
COMPANY_SECONDS = 2.0  # for how long another writer counts as present
# The share of the time that the write lock is left free.
FREE_SHARE_ALONE = 0.2
FREE_SHARE_IN_COMPANY = 0.8

PREVIEW_ROWS = 5
TERMINAL_WARNINGS = 20
REDRAW_SECONDS = 0.1  # of the progress line on a terminal
PLAIN_SECONDS = 5.0  # between progress lines elsewhere
BAR_WIDTH = 20
LABEL_WIDTH = 29
FIGURE_WIDTH = 12
COLUMN_WIDTH = max(map(len, FIELDS))

INTERRUPTS = (signal.SIGINT, signal.SIGTERM)
EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_SIGNAL = 128

T = TypeVar("T")

log = logging.getLogger("backfill")


# --- Extraction: what a row's timestamps are, by the payload ------------------


class Timestamps(dict[str, "str | None"]):
    """The value found for each column, None where nothing usable was found.

    `sources` names the fields that the values came from, in the same order.
    `malformed` says what is wrong with a payload that is not JSON, and is None for
    every other payload.
    """

    __slots__ = ("malformed", "sources")
    sources: tuple[str | None, str | None]
    malformed: str | None


def extract_timestamps(payload: object, created_at: object) -> Timestamps:
    """Find both timestamps of a row: rules 2 to 4.

    `payload` is the column as SQLite gives it: str, bytes or None. Its fields come
    first, in the order of FIELDS, then `created_at`. A payload without fields (NULL,
    blank, JSON that is no object) leaves created_at alone; one that is not JSON
    yields None twice. Never raises.
    """
    found = Timestamps()
    found.malformed = None
    try:
        fields = _read_payload(payload)
    except (ValueError, RecursionError) as error:
        found.malformed = _what_is_wrong(error)
        fields, created_at = {}, None
    names = []
    for column, candidates in FIELDS.items():
        found[column], name = _first_usable(fields, candidates, created_at)
        names.append(name)
    found.sources = (names[0], names[1])
    return found


def _first_usable(
    fields: dict[str, Any], names: Sequence[str], created_at: object
) -> tuple[str | None, str | None]:
    """Return the first usable candidate's value and name, None twice if there is none."""
    for name in names:
        candidate = fields.get(name)
        if candidate is not None and (value := _as_timestamp(candidate)) is not None:
            return value, name
    value = _as_timestamp(created_at)
    return value, None if value is None else FALLBACK


def _what_is_wrong(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} (character {error.pos})"
    return "nested too deep" if isinstance(error, RecursionError) else str(error)


def _read_payload(payload: object) -> dict[str, Any]:
    """Return the payload's fields; raise ValueError or RecursionError if it is not JSON."""
    if isinstance(payload, bytes):
        payload = payload.decode()
    if not isinstance(payload, str) or not payload.strip():
        return {}
    text = payload.strip(JSON_BLANKS)
    try:
        content, end = DECODER.raw_decode(text)
    except json.JSONDecodeError:
        raise
    except ValueError:  # sound JSON, but an integer has more digits than Python converts
        content, end = LENIENT_DECODER.raw_decode(text)
    if end < len(text):
        raise json.JSONDecodeError("Extra data", text, end)
    return content if isinstance(content, dict) else {}


def _as_timestamp(value: object) -> str | None:
    """Return what is to be written for a candidate, None if it is not usable: rule 3."""
    if isinstance(value, str):
        # AgentOS's readers replace every Z, so it must not stand anywhere but at the end.
        if not value.isascii() or "Z" in value[:-1]:
            return None
        try:
            datetime.fromisoformat(value)
        except ValueError:
            return None
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return _from_epoch(value)
    return None


def _from_epoch(number: float) -> str | None:
    """Write epoch seconds or milliseconds as ISO-8601, None outside the years 2000 to 2100."""
    if not 0 < number < 2 * LATEST_MS:  # also keeps NaN and infinity from round()
        return None
    milliseconds = round(number if number >= MILLISECONDS_FROM else number * 1000)
    if not EARLIEST_MS <= milliseconds < LATEST_MS:
        return None
    moment = EPOCH + timedelta(milliseconds=milliseconds)
    return moment.isoformat(timespec="milliseconds") + "Z"


def read_as_agentos(value: object) -> datetime | None:
    """Parse a column's value the way AgentOS's own readers do, None where they cannot."""
    if not isinstance(value, str):
        return None
    try:
        return datetime.fromisoformat(value.replace("Z", "+00:00"))
    except ValueError:
        return None


# --- Rows: what is to be written to one ----------------------------------------


NOTHING = (None, None)


class Plan(NamedTuple):
    """What is to be written to a row, later what was. Its pairs are in the order of FIELDS."""

    audit_id: int
    event_type: object
    standing: tuple[object, object]  # what the columns held when the row was read
    values: tuple[str | None, str | None]  # to write; None where nothing is to be written
    sources: tuple[str | None, str | None]  # the fields that `values` came from
    left_null: str | None = None  # a key of LEFT_NULL where a column stays NULL
    reason: str | None = None  # the same in words

    def columns_from(self, source: str | None) -> list[str]:
        """The columns that are written from field `source`; for None, those left NULL."""
        return [
            column
            for column, stood, name in zip(FIELDS, self.standing, self.sources, strict=True)
            if stood is None and name == source
        ]


def plan_row(
    audit_id: int,
    event_type: object,
    payload: object,
    created_at: object,
    source_event_ts: object,
    supervisor_processed_at: object,
) -> Plan:
    """Decide what is to be written to a row: rule 1 (only where it is NULL) and rule 5.

    The row is given as SELECT_ROWS gives it; text that is not UTF-8 arrives as bytes.
    """
    found = extract_timestamps(payload, created_at)
    standing = (source_event_ts, supervisor_processed_at)
    values = match_offsets(standing, (found["source_event_ts"], found["supervisor_processed_at"]))
    plan = Plan(audit_id, event_type, standing, values, found.sources)
    if None not in values:
        return plan
    plan = plan._replace(
        sources=(
            None if values[0] is None else found.sources[0],
            None if values[1] is None else found.sources[1],
        )
    )
    if not plan.columns_from(None):
        return plan
    if found.malformed is not None:
        return plan._replace(
            left_null="malformed_json", reason=f"payload is not JSON: {found.malformed}"
        )
    return plan._replace(left_null="no_timestamp", reason="no usable timestamp")


def match_offsets(
    standing: tuple[object, object], found: tuple[str | None, str | None]
) -> tuple[str | None, str | None]:
    """Return the values to write, None where one stands, such that a pair can be subtracted.

    Rule 5: AgentOS's readers crash on a pair of which only one carries a UTC offset.
    Where the one without offset is ours, it is UTC and gets its `Z`; where it stands,
    ours is written in UTC without offset.
    """
    if standing == NOTHING and found[0] and found[1] and found[0][-1] == found[1][-1] == "Z":
        return found  # both in AgentOS's own form: the usual case, made fast
    ours = (standing[0] is None, standing[1] is None)
    first = read_as_agentos(found[0] if ours[0] else standing[0])
    second = read_as_agentos(found[1] if ours[1] else standing[1])
    values = [found[0] if ours[0] else None, found[1] if ours[1] else None]
    if first and second and (first.tzinfo is None) != (second.tzinfo is None):
        moments = (first, second)
        naive, aware = (0, 1) if first.tzinfo is None else (1, 0)
        if ours[naive]:
            values[naive] = moments[naive].isoformat() + "Z"
        else:
            values[aware] = _without_offset(moments[aware])
    return values[0], values[1]


def _without_offset(moment: datetime) -> str | None:
    """Write `moment` in UTC without offset, None where UTC has no such year."""
    try:
        return moment.astimezone(UTC).replace(tzinfo=None).isoformat()
    except OverflowError:
        return None


# --- Signals and locks ------------------------------------------------------------


class Interrupted(Exception):
    """SIGINT or SIGTERM came; raised only where nothing is half done."""


class Interruption:
    """Remembers a SIGINT or SIGTERM, so that the batch at hand can be ended first."""

    def __init__(self) -> None:
        self.signum: int | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take both signals. Only the main thread can; elsewhere they stay as they are."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {signum: signal.signal(signum, self._note) for signum in INTERRUPTS}
        try:
            yield
        finally:
            # After a signal the process is about to end: another one must not change how.
            for signum, handler in before.items():
                signal.signal(signum, handler if self.signum is None else signal.SIG_IGN)

    def _note(self, signum: int, _frame: FrameType | None) -> None:
        self.signum = signum

    def check(self) -> None:
        """Raise Interrupted if a signal came."""
        if self.signum is not None:
            raise Interrupted

    def sleep(self, seconds: float) -> None:
        """Sleep, in slices that a signal can end."""
        wake_up = time.monotonic() + seconds
        while self.signum is None and (left := wake_up - time.monotonic()) > 0:
            time.sleep(min(left, SLEEP_SLICE))


class LockWait:
    """Waits up to `busy_timeout` seconds for another process's lock.

    SQLite's own busy timeout cannot be interrupted, so it waits for a slice of that
    time only, and this repeats it.
    """

    def __init__(self, busy_timeout: float, interruption: Interruption) -> None:
        self.busy_timeout = busy_timeout
        self.interruption = interruption

    def __call__(self, action: Callable[..., T], *args: Any) -> T:
        """Return action(*args), repeated while the store is locked.

        Raises the error of SQLite after `busy_timeout`, Interrupted after a signal.
        """
        give_up = time.monotonic() + self.busy_timeout
        while True:
            try:
                return action(*args)
            except sqlite3.OperationalError as error:
                if _code(error) not in LOCKED or time.monotonic() >= give_up:
                    raise
            self.interruption.check()
            time.sleep(LOCK_PAUSE)


def _code(error: sqlite3.Error) -> int | None:
    """SQLite's primary result code of an error, None where it has none."""
    code: int | None = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


# --- The store: open, check, count, copy --------------------------------------------


class StoreError(Exception):
    """What is wrong and the next step, as one sentence for the operator."""


class Survey(NamedTuple):
    """What a store holds before the run."""

    supervisor_rows: int
    to_fill: int
    pages: list[tuple[int, int]]  # first and last audit_id of each page with rows to fill


def open_store(path: Path, wait: LockWait, *, read_only: bool) -> sqlite3.Connection:
    """Open an existing store; never creates a file. Raises StoreError or sqlite3.Error."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise StoreError(
            f"there is no file {printable(path)}: name the store with --db-path"
        ) from None
    except OSError as error:
        raise StoreError(
            f"{printable(path)} cannot be found ({error.strerror}): name the store with --db-path"
        ) from error
    if not stat.S_ISREG(status.st_mode):
        raise StoreError(f"{printable(path)} is no file: name the store with --db-path")
    if status.st_size == 0:
        raise StoreError(f"{printable(path)} is empty, not a store: name the store with --db-path")
    if not os.access(path, os.R_OK):
        raise StoreError(f"{printable(path)} cannot be read: run as a user who may read the store")
    if not read_only and not os.access(path, os.W_OK):
        raise StoreError(
            f"{printable(path)} cannot be written: run as a user who may write the store"
        )
    uri = f"{path.absolute().as_uri()}?mode={'ro' if read_only else 'rw'}"
    store = sqlite3.connect(
        uri, uri=True, timeout=LOCK_SLICE, isolation_level=None, check_same_thread=False
    )
    try:
        store.text_factory = decode_text
        store.execute("PRAGMA trusted_schema = OFF")
        if is_wal(store, wait):
            # In WAL mode this cannot corrupt the file: a power cut may undo the last
            # batches, whole, and the next run does them again.
            store.execute("PRAGMA synchronous = NORMAL")
            # SQLite would checkpoint inside of COMMIT, where we cannot tell it from the
            # write lock that it does not need; Courtesy does it between two batches.
            store.execute("PRAGMA wal_autocheckpoint = 0")
    except BaseException:
        store.close()
        raise
    return store


def is_wal(store: sqlite3.Connection, wait: LockWait) -> bool:
    """Whether the store is in WAL mode, where readers and a writer do not lock each other out."""
    return bool(wait(_fetch_value, store, "PRAGMA journal_mode") == "wal")


def decode_text(text: bytes) -> str | bytes:
    """Return a column's text, as bytes where it is not UTF-8, so that no row can end a run."""
    try:
        return text.decode()
    except UnicodeDecodeError:
        return text


def _fetch_value(store: sqlite3.Connection, sql: str, *parameters: object) -> Any:
    row = store.execute(sql, parameters).fetchone()
    return None if row is None else row[0]


def check_schema(store: sqlite3.Connection) -> None:
    """Raise StoreError unless the store has what migration v21 brings."""
    if _is_real_table(store, "schema_version") and "version" in _columns(store, "schema_version"):
        texts = [text for (text,) in store.execute("SELECT version FROM schema_version")]
        newest = max(filter(None, map(parse_version, texts)), default=None)
        if newest is not None and newest < MIGRATION:
            raise StoreError(
                f"the store is at schema version {'.'.join(map(str, newest))}, before 0.21.0: "
                "apply AgentOS's migration v21 first"
            )
    columns = _columns(store, "task_audits")
    if not columns:
        raise StoreError("the store has no table task_audits: name an AgentOS store with --db-path")
    if not _is_real_table(store, "task_audits"):
        raise StoreError(
            "task_audits is a view or a virtual table here, not AgentOS's table: "
            "name an AgentOS store with --db-path"
        )
    missing = [column for column in NEEDED_COLUMNS if column not in columns]
    if missing:
        raise StoreError(
            f"task_audits has no column {', '.join(missing)}: "
            "apply AgentOS's migration v21 (0.21.0) first"
        )
    if _fetch_value(store, SELECT_ROWID) != "audit_id":
        raise StoreError(
            "task_audits.audit_id is not the INTEGER PRIMARY KEY here: "
            "name an AgentOS store with --db-path"
        )


def _is_real_table(store: sqlite3.Connection, name: str) -> bool:
    """Whether `name` is a table with pages of its own, no view and no virtual table."""
    return bool(_fetch_value(store, SELECT_ROOT_PAGE, name))


def _columns(store: sqlite3.Connection, table: str) -> set[str]:
    """The columns of a table, in lower case."""
    return {name for (name,) in store.execute(SELECT_COLUMNS, (table,))}


def parse_version(text: object) -> tuple[int, ...] | None:
    """Return '0.21.0' as (0, 21, 0), None for what is no version: numbers, not letters, count."""
    try:
        return tuple(int(part) for part in str(text).strip().removeprefix("v").split("."))
    except ValueError:
        return None


def survey_store(
    store: sqlite3.Connection, wait: LockWait, on_page: Callable[[int, int], None]
) -> Survey:
    """Count the rows page by page, so that no read locks the store for long.

    Calls on_page(audit_ids passed, audit_ids in all) after each page.
    """
    lowest, highest = wait(lambda: store.execute(SELECT_BOUNDS).fetchone())
    supervisor_rows = to_fill = 0
    pages = []
    first = lowest
    while first is not None and first <= highest:
        wait.interruption.check()
        last, supervisors, open_rows = wait(
            lambda first=first: store.execute(SURVEY_PAGE, (first, highest, PAGE_ROWS)).fetchone()
        )
        if last is None:  # the rows from here on were deleted meanwhile
            break
        supervisor_rows += int(supervisors)
        to_fill += int(open_rows)
        if open_rows:
            pages.append((first, last))
        first = last + 1
        on_page(first - lowest, highest - lowest + 1)
    return Survey(supervisor_rows, to_fill, pages)


def make_backup(
    store: sqlite3.Connection,
    path: Path,
    target: Path,
    wait: LockWait,
    on_pages: Callable[[int, int], None],
) -> None:
    """Copy the store at `path` as it is at this moment to the new file `target`.

    The copy is made under another name and takes its own when it is whole. It gets the
    store's permissions. A read transaction holds one moment fast: in WAL mode writers
    go on beside it, with a rollback journal their commits wait for its end.

    Calls on_pages(pages copied, pages in all). Raises StoreError, OSError,
    sqlite3.Error or Interrupted, and then leaves no file.
    """
    if os.path.lexists(target):
        raise StoreError(f"{printable(target)} exists already: name a new file with --backup")
    handle, name = tempfile.mkstemp(".partial", f"{target.name}.", target.parent)
    os.close(handle)
    partial = Path(name)

    def on_step(_status: int, left: int, total: int) -> None:
        wait.interruption.check()
        on_pages(total - left, total)

    try:
        store.execute("BEGIN")
        try:
            wait(_fetch_value, store, "SELECT count(*) FROM sqlite_master")
            with closing(sqlite3.connect(partial)) as copy:
                store.backup(copy, pages=BACKUP_PAGES, progress=on_step)
        finally:
            store.execute("ROLLBACK")
        _copy_permissions(path, partial)
        _take_name(partial, target)
    except BaseException:
        for leftover in (
            partial,
            Path(f"{name}-journal"),
            Path(f"{name}-wal"),
            Path(f"{name}-shm"),
        ):
            leftover.unlink(missing_ok=True)
        raise


def _copy_permissions(source: Path, copy: Path) -> None:
    """Give `copy` the owner and mode of `source`, or a mode that nobody else gains by."""
    wanted = source.stat()
    try:
        os.chown(copy, wanted.st_uid, wanted.st_gid)
    except PermissionError:
        copy.chmod(wanted.st_mode & 0o600)
    else:
        copy.chmod(wanted.st_mode & 0o777)


def _take_name(partial: Path, target: Path) -> None:
    """Rename `partial` to `target`, which must not exist: also not since we looked."""
    try:
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        raise StoreError(
            f"{printable(target)} was made by somebody else meanwhile: "
            "name a new file with --backup"
        ) from None
    partial.replace(target)


# --- One batch -------------------------------------------------------------------------


class _Refused(Exception):
    """The database refused the row at `position` of a batch, in the words of `reason`."""

    def __init__(self, position: int, reason: str) -> None:
        super().__init__(reason)
        self.position = position
        self.reason = reason


def read_batches(
    store: sqlite3.Connection, survey: Survey, batch_size: int, wait: LockWait
) -> Generator[list[Plan], None, None]:
    """Yield the plans of all rows to fill, `batch_size` at a time, by ascending rowid.

    Payloads are read and parsed one by one, outside the write lock; no read is open
    while a batch is out. Raises Interrupted between two pages.
    """
    batch: list[Plan] = []
    for first, last in survey.pages:
        position = first
        while position <= last:
            wait.interruption.check()
            limit = min(PAGE_ROWS, batch_size - len(batch))
            plans = wait(_read_plans, store, position, last, limit)
            batch += plans
            if len(batch) == batch_size:
                yield batch
                batch = []
            if len(plans) < limit:
                break
            position = plans[-1].audit_id + 1
    if batch:
        yield batch


def read_ahead(
    batches: Iterator[list[Plan]], in_company: Callable[[], bool]
) -> Generator[list[Plan], None, None]:
    """Yield the batches, the next ones being read in a thread while one is out.

    SQLite writes a batch without Python's lock, so that the two go on side by side. In
    company it would only hold up the write: there is a rest to read in.
    """
    thread = ThreadPoolExecutor(max_workers=1)
    try:
        upcoming = deque([thread.submit(next, batches, None)])
        while (batch := upcoming.popleft().result()) is not None:
            while not in_company() and len(upcoming) < BATCHES_AHEAD:
                upcoming.append(thread.submit(next, batches, None))
            yield batch
            if not upcoming:
                upcoming.append(thread.submit(next, batches, None))
    finally:
        thread.shutdown(cancel_futures=True)


def _read_plans(store: sqlite3.Connection, first: int, last: int, limit: int) -> list[Plan]:
    """Read and plan up to `limit` rows, with SQLite's own decoding where all text is UTF-8."""
    page = (first, last, limit)
    store.text_factory = str
    try:
        return [plan_row(*row) for row in store.execute(SELECT_ROWS, page)]
    except sqlite3.OperationalError as error:
        if _code(error) is not None:  # an error of SQLite's, not of Python's decoding
            raise
    finally:
        store.text_factory = decode_text
    return [plan_row(*row) for row in store.execute(SELECT_ROWS, page)]


def backfill_batch(
    store: sqlite3.Connection, batch: Sequence[Plan], wait: LockWait, outcomes: list[Plan]
) -> float:
    """Write a batch in one transaction; return for how many seconds it held the write lock.

    Where the batch does not go through at once, it is begun again row by row. A row that
    another process changed since it was read is then looked at again; one that it deleted
    has no outcome. A row that the database refuses is left out, and the rest is done in
    two transactions, what was before it and what comes after it: that holds for every
    kind of refusal, also for one that rolls everything back.

    `outcomes`, a plan for each row as it was carried out, grows with every transaction
    that is committed, so that it is right also after an error: sqlite3.Error where the
    store cannot be written, Interrupted where a signal came while it was locked.
    """
    parts = [batch]
    row_by_row = False
    locked = 0.0
    while parts:
        part = parts.pop()
        if all(plan.values == NOTHING for plan in part):
            outcomes += part
            continue
        wait(store.execute, "BEGIN IMMEDIATE")
        locked_at = time.monotonic()
        try:
            if row_by_row:
                done = _fill_row_by_row(store.cursor(), part)
            elif _fill_at_once(store.cursor(), part):
                done = list(part)
            else:
                row_by_row = True
                parts.append(part)
                continue
            wait(store.execute, "COMMIT")
            outcomes += done
        except _Refused as refused:
            at = refused.position
            outcomes.append(_refuse(part[at], refused.reason))
            parts += [part[at + 1 :], part[:at]]
        finally:
            if store.in_transaction:
                store.execute("ROLLBACK")
            locked += time.monotonic() - locked_at
    return locked


def _fill_at_once(cursor: sqlite3.Cursor, plans: Sequence[Plan]) -> bool:
    """Write plans many at a time; False if a row has changed, or is refused, and all is void."""
    both_null: list[object] = []  # audit_id and two values of each row
    others = []
    for plan in plans:
        if plan.standing != NOTHING:
            others.append(plan)
        elif plan.values != NOTHING:
            both_null += (plan.audit_id, *plan.values)
    try:
        for start in range(0, len(both_null), 3 * ROWS_AT_ONCE):
            some = both_null[start : start + 3 * ROWS_AT_ONCE]
            rows = len(some) // 3
            sql = FILL_ROWS.format(", ".join(["(?, ?, ?)"] * rows))
            if cursor.execute(sql, some).rowcount != rows:
                return False
        return all(_fill_as_planned(cursor, plan) for plan in others)
    except sqlite3.Error as error:
        if _code(error) not in REFUSALS:
            raise
        return False


def _fill_row_by_row(cursor: sqlite3.Cursor, plans: Sequence[Plan]) -> list[Plan]:
    """Write plans one at a time; raises _Refused for the first that is refused."""
    outcomes = []
    for position, plan in enumerate(plans):
        try:
            outcome = _fill_row(cursor, plan)
        except sqlite3.Error as error:
            if _code(error) not in REFUSALS:
                raise
            raise _Refused(position, str(error)) from error
        if outcome is not None:
            outcomes.append(outcome)
    return outcomes


def _fill_row(cursor: sqlite3.Cursor, plan: Plan) -> Plan | None:
    """Write one plan, a new one where the row has changed; None where the row is gone."""
    if _fill_as_planned(cursor, plan):
        return plan
    row = cursor.execute(SELECT_ROW, (plan.audit_id,)).fetchone()
    if row is None:
        return None
    plan = plan_row(*row)
    if _fill_as_planned(cursor, plan):
        return plan
    return _refuse(plan, "the update was ignored, by a trigger")


def _fill_as_planned(cursor: sqlite3.Cursor, plan: Plan) -> bool:
    if plan.values == NOTHING:
        return True
    return cursor.execute(FILL_ROW, (*plan.values, plan.audit_id, *plan.standing)).rowcount == 1


def _refuse(plan: Plan, reason: str) -> Plan:
    return plan._replace(
        values=NOTHING,
        sources=NOTHING,
        left_null="refused",
        reason=f"refused by the database: {reason}",
    )


# --- The run ---------------------------------------------------------------------------


@dataclass
class Tally:
    """What a run has done with the rows it looked at."""

    batches: int = 0
    rows: int = 0
    # How often each Plan.left_null and Plan.sources came together.
    kinds: Counter[tuple[str | None, tuple[str | None, str | None]]] = field(
        default_factory=Counter
    )

    def add(self, outcomes: Sequence[Plan]) -> None:
        self.kinds.update(map(attrgetter("left_null", "sources"), outcomes))

    def count(self, left_null: str | None) -> int:
        """How many rows stayed NULL for this reason; for None, how many were filled."""
        return sum(number for (why, _), number in self.kinds.items() if why == left_null)

    @property
    def filled(self) -> int:
        return self.count(None)

    def sources(self, column: str) -> dict[str, int]:
        """How many values of `column` were written from each field."""
        counts = dict.fromkeys((*FIELDS[column], FALLBACK), 0)
        at = list(FIELDS).index(column)
        for (_, sources), number in self.kinds.items():
            if (source := sources[at]) is not None:
                counts[source] += number
        return counts


@dataclass
class Summary:
    """The figures of a run; they hold at every moment of it, also after a failure."""

    db_path: str
    dry_run: bool
    batch_size: int
    status: str = "failed"
    survey: Survey | None = None
    tally: Tally = field(default_factory=Tally)
    elsewhere: int = 0  # rows to fill that other processes filled, or removed, before we came
    elapsed_seconds: float = 0.0

    @property
    def to_fill(self) -> int:
        """Rows to fill at the start; a row that appeared among them later counts too."""
        counted = self.survey.to_fill if self.survey else 0
        return max(counted, self.tally.rows)

    @property
    def already_filled(self) -> int:
        return self.survey.supervisor_rows - self.survey.to_fill if self.survey else 0

    @property
    def supervisor_rows(self) -> int:
        return self.already_filled + self.to_fill

    @property
    def filled(self) -> int:
        return self.tally.filled + self.elsewhere

    @property
    def unreached(self) -> int:
        """Rows to fill that the run did not come to before it ended."""
        return self.to_fill - self.tally.kinds.total() - self.elsewhere

    @property
    def rows_per_second(self) -> float:
        return self.tally.rows / self.elapsed_seconds if self.elapsed_seconds else 0.0

    def as_json(self) -> dict[str, object]:
        """The summary's JSON object. Coverage is null where the rows were not counted."""
        before = after = None
        if self.survey:
            before = percent(self.already_filled, self.supervisor_rows)
            after = percent(self.already_filled + self.filled, self.supervisor_rows)
        return {
            "status": self.status,
            "db_path": self.db_path,
            "dry_run": self.dry_run,
            "batch_size": self.batch_size,
            "batches": self.tally.batches,
            "supervisor_rows": self.supervisor_rows,
            "already_filled": self.already_filled,
            "to_fill": self.to_fill,
            "filled": self.filled,
            "left_null": {reason: self.tally.count(reason) for reason in LEFT_NULL},
            "sources": {column: self.tally.sources(column) for column in FIELDS},
            "coverage_before_pct": before,
            "coverage_after_pct": after,
            "elapsed_seconds": round(self.elapsed_seconds, 3),
            "rows_per_second": round(self.rows_per_second, 1),
        }


def percent(part: int, whole: int) -> float:
    """`part` of `whole` in percent, rounded down: 100 means all. Of nothing, all is done."""
    return part * 1_000_000 // whole / 10_000 if whole else 100.0


def choose_rest(locked: float, unlocked: float, *, company: bool) -> float:
    """Return how long to rest before a batch, in seconds.

    `locked` is how long the last batch held the write lock, `unlocked` how long it has
    been free since. SQLite's waiters poll, with growing sleeps: whether they get in
    depends on the share of the time that the lock is free, and not only on how long it
    is held. Alone, we leave enough of it for another writer to get in and be noticed.
    """
    share = FREE_SHARE_IN_COMPANY if company else FREE_SHARE_ALONE
    return max(0.0, locked * share / (1 - share) - unlocked)


class Courtesy:
    """Rests before a batch, as asked for and as other writers need it to get in.

    A part of that time is spent on the checkpoints: they do not lock out writers.
    """

    def __init__(self, store: sqlite3.Connection, pause: float, wait: LockWait) -> None:
        self._store = store
        self._pause = pause
        self._wait = wait
        self._version = self._data_version()
        self._company_until = 0.0
        self._locked = 0.0
        self._released: float | None = None
        self._since_checkpoint = 0.0

    def _data_version(self) -> int:
        """A number that changes when another connection commits."""
        version: int = self._wait(_fetch_value, self._store, "PRAGMA data_version")
        return version

    def rest(self) -> None:
        """Checkpoint when it is time, then sleep until the next batch may lock the store.

        A signal ends the sleep.
        """
        now = time.monotonic()
        version, self._version = self._version, self._data_version()
        if version != self._version:
            self._company_until = now + COMPANY_SECONDS
        if self._released is None:
            return
        if self._since_checkpoint >= CHECKPOINT_SECONDS:
            self._wait(_fetch_value, self._store, "PRAGMA wal_checkpoint(PASSIVE)")
            self._since_checkpoint = 0.0
        unlocked = time.monotonic() - self._released
        rest = choose_rest(self._locked, unlocked, company=self.in_company())
        self._wait.interruption.sleep(self._pause + rest)

    def in_company(self) -> bool:
        """Whether another connection has committed lately."""
        return time.monotonic() < self._company_until

    def note(self, locked: float) -> None:
        """Take note of a batch that has just ended and locked the store for so many seconds."""
        self._locked, self._released = locked, time.monotonic()
        self._since_checkpoint += locked


def fill_store(
    store: sqlite3.Connection,
    reader: sqlite3.Connection,
    summary: Summary,
    courtesy: Courtesy,
    wait: LockWait,
    on_batch: Callable[[Sequence[Plan]], None],
) -> None:
    """Go through all rows to fill, batch by batch, and keep `summary` up to date.

    A dry run does the same without writing. Calls on_batch(outcomes) after each batch.
    Raises sqlite3.Error, or Interrupted between two batches.

    `reader` reads the payloads: a connection of its own, which then reads ahead,
    or `store`, where a reader would stand in the way of a COMMIT (rollback journal).
    """
    if summary.survey is None:
        raise ValueError("the store has not been surveyed")
    tally = summary.tally
    batches = read_batches(reader, summary.survey, summary.batch_size, wait)
    if reader is not store:
        batches = read_ahead(batches, courtesy.in_company)
    with closing(batches):  # lets the thread end before its connection is closed
        for batch in batches:
            outcomes: list[Plan] = []
            wait.interruption.check()
            try:
                if summary.dry_run:
                    outcomes += batch
                else:
                    courtesy.rest()
                    wait.interruption.check()
                    courtesy.note(backfill_batch(store, batch, wait, outcomes))
                tally.batches += 1
                tally.rows += len(batch)
            finally:
                tally.add(outcomes)
                on_batch(outcomes)
    summary.elsewhere = max(0, summary.to_fill - tally.kinds.total())


# --- Progress and report -------------------------------------------------------------


def printable(value: object, limit: int = 200) -> str:
    """Write a stranger's text so that a terminal or a log takes no harm: rule 7."""
    text = value if isinstance(value, str) else str(value)
    if len(text) > limit:
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


def format_percent(value: float) -> str:
    """Write a percentage with one digit, rounded down: `100.0 %` means all."""
    return f"{math.floor(value * 10) / 10:.1f} %"


def format_progress(label: str, done: int, total: int, unit: str, elapsed: float) -> str:
    """Write progress as one line: percent, done of total, speed, and time left."""
    line = f"{label}  {format_percent(percent(done, total))}  {done:,}/{total:,} {unit}"
    if done and elapsed > 0:
        line += f"  {done / elapsed:,.0f} {unit}/s"
        if done < total:
            line += f"  {format_duration((total - done) * elapsed / done)} left"
    return line


class Progress:
    """Progress on a stream: one line that redraws itself on a terminal, sparse lines elsewhere."""

    def __init__(self, stream: TextIO, *, quiet: bool) -> None:
        self._stream = stream
        self._quiet = quiet
        self._live = stream.isatty() and os.environ.get("TERM") != "dumb"
        self._label = self._unit = ""
        self._done = self._total = 0
        self._started = self._drawn = 0.0
        self._shown = -1

    def start(self, label: str, unit: str) -> None:
        """Begin a phase of the run."""
        self._label, self._unit = label, unit
        self._done = self._total = 0
        self._started = self._drawn = time.monotonic()
        self._shown = -1

    def update(self, done: int, total: int) -> None:
        """Take note of where the phase is, and show it when it is time."""
        self._done, self._total = min(done, total), total
        if self._shown == self._done:
            return
        if time.monotonic() - self._drawn >= (REDRAW_SECONDS if self._live else PLAIN_SECONDS):
            self._show()

    def end(self) -> None:
        """Show where the phase ended, if there was anything to show, and leave the line."""
        if self._total and self._shown != self._done:
            self._show()
        if self._live and self._shown >= 0 and not self._quiet:
            print(file=self._stream)
        self._total, self._shown = 0, -1

    def clear(self) -> None:
        """Make room for another line."""
        if self._live and self._shown >= 0 and not self._quiet:
            print("\r\x1b[K", end="", file=self._stream, flush=True)
            self._shown, self._drawn = -1, 0.0

    def _show(self) -> None:
        self._drawn, self._shown = time.monotonic(), self._done
        if self._quiet:
            return
        elapsed = self._drawn - self._started
        line = format_progress(self._label, self._done, self._total, self._unit, elapsed)
        if not self._live:
            print(line, file=self._stream, flush=True)
            return
        width = shutil.get_terminal_size().columns - 1
        room = min(width - len(line) - 3, BAR_WIDTH)
        if room >= BAR_WIDTH // 4:
            full = room * self._done // self._total
            line = f"[{'#' * full}{'-' * (room - full)}] {line}"
        print(f"\r\x1b[K{line[:width]}", end="", file=self._stream, flush=True)


def format_preview(plan: Plan) -> str:
    """Write what is to become of a row: both values and the field each comes from."""
    lines = [f"  audit_id {plan.audit_id}  {printable(plan.event_type)}"]
    for i, column in enumerate(FIELDS):
        if plan.standing[i] is not None:
            text = f"{printable(plan.standing[i])}  (stands already)"
        elif plan.values[i] is not None:
            text = f"{printable(plan.values[i])}  from {plan.sources[i]}"
        else:
            text = f"NULL  ({printable(plan.reason)})"
        lines.append(f"    {column:<{COLUMN_WIDTH}}  {text}")
    return "\n".join(lines)


def format_report(summary: Summary) -> str:
    """Write the summary for people."""
    tally, dry_run = summary.tally, summary.dry_run
    title = "Dry run of" if dry_run else "Backfill of"
    figures = summary.as_json()
    before, after = figures["coverage_before_pct"], figures["coverage_after_pct"]
    lines = [
        f"{title} {printable(summary.db_path)}: {summary.status}"
        + (", nothing was written" if dry_run else ""),
        "",
        _figure("Supervisor rows", summary.supervisor_rows),
        _figure("  already filled", summary.already_filled),
        _figure("  to fill", summary.to_fill),
        _figure("    would be filled" if dry_run else "    filled", summary.filled),
    ]
    lines += [
        _figure(f"    left NULL, {reason}", tally.count(reason)) + f"  {meaning}"
        for reason, meaning in LEFT_NULL.items()
    ]
    if summary.unreached:
        lines.append(_figure("    not reached", summary.unreached))
    lines += [
        f"{'Coverage':<{LABEL_WIDTH}}{_coverage(before)} before, {_coverage(after)} after",
        "",
        "Values that would be written, by the field they come from"
        if dry_run
        else "Values written, by the field they came from",
    ]
    for column in FIELDS:
        lines.append(f"  {column}")
        lines += [_figure(f"    {name}", n) for name, n in tally.sources(column).items()]
    lines += [
        "",
        f"{tally.batches:,} batches of up to {summary.batch_size:,} rows in "
        f"{summary.elapsed_seconds:.1f} s, {summary.rows_per_second:,.0f} rows/s",
    ]
    if summary.status == "completed":
        store = shlex.quote(printable(summary.db_path, limit=4096))
        lines.append(
            "To write these values, run again without --dry-run."
            if dry_run
            else f"To check the result: sqlite3 {store} < verify_backfill.sql"
        )
    return "\n".join(lines)


def _figure(label: str, number: int) -> str:
    return f"{label:<{LABEL_WIDTH}}{number:>{FIGURE_WIDTH},}"


def _coverage(value: object) -> str:
    return format_percent(value) if isinstance(value, float) else "unknown"


class TerminalLog(logging.Handler):
    """Shows the first warnings and counts the others."""

    def __init__(self, stream: TextIO, progress: Progress) -> None:
        super().__init__(logging.WARNING)
        self._stream = stream
        self._progress = progress
        self._warnings = 0

    def emit(self, record: logging.LogRecord) -> None:
        self._warnings += 1
        if self._warnings <= TERMINAL_WARNINGS:
            self._progress.clear()
            print(f"warning: {record.getMessage()}", file=self._stream, flush=True)

    def say_how_many_more(self, log_file: Path | None) -> None:
        """Print how many warnings were not shown, and where they are or could have been."""
        more = self._warnings - TERMINAL_WARNINGS
        if more > 0:
            where = f"{printable(log_file)} has" if log_file else "--log-file PATH keeps"
            print(f"warning: and {more:,} more like these; {where} them all", file=self._stream)


class FileLog(logging.Handler):
    """Writes one line for each warning, and for each row that fell back to created_at."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        formatter = logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%SZ")
        formatter.converter = time.gmtime
        self.setFormatter(formatter)
        self._file = path.open("ab", buffering=0)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line; one that cannot be written ends the run, for the log must be whole."""
        line = f"{self.format(record)}\n".encode(errors="backslashreplace")
        try:
            self._file.write(line)
        except OSError as error:
            raise StoreError(f"the log file cannot be written: {error.strerror}") from error

    def close(self) -> None:
        self._file.close()
        super().close()


def log_outcomes(outcomes: Sequence[Plan]) -> None:
    """Log every row that stays NULL as a warning, and every fall-back to created_at."""
    for plan in outcomes:
        if plan.left_null is not None:
            columns = " and ".join(plan.columns_from(None))
            log.warning("audit_id %d: %s NULL: %s", plan.audit_id, columns, printable(plan.reason))
    if log.isEnabledFor(logging.INFO):
        for plan in outcomes:
            if FALLBACK in plan.sources:
                columns = " and ".join(plan.columns_from(FALLBACK))
                log.info("audit_id %d: %s from %s", plan.audit_id, columns, FALLBACK)


# --- The command line -------------------------------------------------------------------


class Options(argparse.Namespace):
    """The command line, parsed."""

    db_path: Path
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
        prog="backfill_audit_decision_fields.py",
        description="Fill source_event_ts and supervisor_processed_at of an AgentOS audit store "
        "from the JSON payloads beside them. Only NULLs are written; the store may be in use.",
        epilog="Exit code: 0 done, 1 the store cannot be used or the run failed, 2 wrong usage, "
        "130 or 143 interrupted by SIGINT or SIGTERM. An interrupted or failed run is continued "
        "by running the same command again.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--db-path",
        metavar="PATH",
        type=_path,
        default=DEFAULT_STORE,
        help="the store (default %(default)s)",
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
        help="write nothing: preview the first rows and report what a run would do",
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
        help="append every warning to this file, and every fall-back to created_at",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print the summary as one JSON object, and nothing else, on stdout",
    )
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


class Console:
    """What an operator sees during a run, all but the report."""

    def __init__(self, options: Options, summary: Summary, stderr: TextIO) -> None:
        self.progress = Progress(stderr, quiet=options.quiet)
        self.warnings = TerminalLog(stderr, self.progress)
        self._stderr = stderr
        self._summary = summary
        self._previewed: int | None = 0 if options.dry_run and not options.json else None

    def say(self, text: str) -> None:
        """Print a line on stderr."""
        self.progress.clear()
        print(text, file=self._stderr, flush=True)

    def show_batch(self, outcomes: Sequence[Plan]) -> None:
        """Show what a batch came to."""
        if self._previewed is not None and self._previewed < PREVIEW_ROWS:
            self._preview(outcomes[: PREVIEW_ROWS - self._previewed])
        log_outcomes(outcomes)
        self.progress.update(self._summary.tally.rows, self._summary.to_fill)

    def _preview(self, outcomes: Sequence[Plan]) -> None:
        self.progress.clear()
        if not self._previewed:
            print("The first rows, as a run would fill them:")
        for plan in outcomes:
            print(format_preview(plan))
        sys.stdout.flush()
        self._previewed = (self._previewed or 0) + len(outcomes)

    def show_end(self, log_file: Path | None) -> None:
        """End the progress; say how many warnings and fall-backs there were."""
        self.progress.end()
        self.warnings.say_how_many_more(log_file)
        for column in FIELDS:
            if fell_back := self._summary.tally.sources(column)[FALLBACK]:
                self.say(f"note: {fell_back:,} values of {column} come from {FALLBACK}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; wrong usage raises SystemExit(2)."""
    options = build_parser().parse_args(argv, namespace=Options())
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by whoever started us
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 - for good
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    summary = Summary(str(options.db_path), options.dry_run, options.batch_size)
    console = Console(options, summary, sys.stderr)
    interruption = Interruption()
    try:
        with interruption.listening():
            code = _run(options, summary, console, interruption)
            if options.json:
                print(json.dumps(summary.as_json()))
            elif summary.survey is not None:
                print(format_report(summary))
            sys.stdout.flush()
    except OSError as error:
        # Who read our output has gone, or its disk is full.
        with suppress(OSError):  # stderr may be what is gone: then nobody is left to tell
            console.say(f"error: the output cannot be written: {error.strerror}")
        # Python flushes both once more at its end, and would complain or exit with 120.
        for stream in (sys.stdout, sys.stderr):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return EXIT_FAILED
    return code


def _run(options: Options, summary: Summary, console: Console, interruption: Interruption) -> int:
    """Do the work, say on stderr how it ended, and return the exit code."""
    try:
        _backfill(options, summary, console, LockWait(options.busy_timeout, interruption))
    except Interrupted:
        summary.status = "interrupted"
        signum = interruption.signum or signal.SIGINT
        console.say(
            f"interrupted by {signal.Signals(signum).name}: what was committed stays; "
            "run the same command again to go on"
        )
        return EXIT_SIGNAL + signum
    except (StoreError, sqlite3.Error) as error:
        stays = f"; the {summary.filled:,} rows filled so far stay" if summary.filled else ""
        console.say(f"error: {explain(error, options)}{stays}")
        return EXIT_FAILED
    summary.status = "completed"
    return EXIT_DONE


def _backfill(options: Options, summary: Summary, console: Console, wait: LockWait) -> None:
    """Check the store, back it up, count its rows and fill them."""
    with ExitStack() as stack:
        store = open_store(options.db_path, wait, read_only=options.dry_run)
        stack.enter_context(closing(store))
        wait(check_schema, store)
        reader = store
        if not options.dry_run and is_wal(store, wait):
            reader = open_store(options.db_path, wait, read_only=True)
            stack.enter_context(closing(reader))
        stack.enter_context(_logging_to(console.warnings))
        if options.log_file is not None:
            stack.enter_context(_logging_to(_open_log(options.log_file, options.db_path)))
        if options.backup is not None and not options.dry_run:
            _back_up(store, options.db_path, options.backup, console.progress, wait)
        started = time.monotonic()
        courtesy = Courtesy(store, options.pause, wait)
        try:
            console.progress.start("Counting", "audit_ids")
            summary.survey = survey_store(store, wait, console.progress.update)
            console.progress.clear()
            console.progress.start("Dry run" if options.dry_run else "Filling", "rows")
            fill_store(store, reader, summary, courtesy, wait, console.show_batch)
            console.progress.update(summary.to_fill, summary.to_fill)
        finally:
            summary.elapsed_seconds = time.monotonic() - started
            console.show_end(options.log_file)


def _back_up(
    store: sqlite3.Connection, path: Path, target: Path, progress: Progress, wait: LockWait
) -> None:
    progress.start("Backup", "pages")
    try:
        make_backup(store, path, target, wait, progress.update)
    except (OSError, sqlite3.Error) as error:
        words = error.strerror if isinstance(error, OSError) else printable(error)
        raise StoreError(
            f"the backup {printable(target)} cannot be made, so nothing was written: {words}"
        ) from error
    finally:
        progress.end()


def _open_log(path: Path, store: Path) -> FileLog:
    try:
        if path.exists() and path.samefile(store):
            raise StoreError("--log-file names the store itself: name another file")
        return FileLog(path)
    except OSError as error:
        raise StoreError(
            f"the log file {printable(path)} cannot be written: {error.strerror}: "
            "name another with --log-file"
        ) from error


@contextmanager
def _logging_to(handler: logging.Handler) -> Iterator[None]:
    log.propagate = False
    log.setLevel(logging.INFO if isinstance(handler, FileLog) else logging.WARNING)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        handler.close()


def explain(error: Exception, options: Options) -> str:
    """Say what went wrong and what to do, as one line."""
    if not isinstance(error, sqlite3.Error):
        return str(error)
    store = printable(options.db_path)
    advice = ADVICE.get(_code(error) or sqlite3.SQLITE_ERROR, OTHER_ADVICE)
    return f"{store}: {advice.format(options=options)} ({printable(error)})"


if __name__ == "__main__":
    raise SystemExit(main())
