"""As sitecustomize.py on PYTHONPATH: let `import sqlite3` be the package with the newest SQLite."""

import contextlib
import sqlite3
import sys

with contextlib.suppress(ImportError):  # in another Python, which a test starts
    import pysqlite3

    for name in dir(sqlite3):  # result codes that the package does not name
        if name.startswith("SQLITE_") and not hasattr(pysqlite3, name):
            setattr(pysqlite3, name, getattr(sqlite3, name))
    sys.modules["sqlite3"] = pysqlite3
