-- Check the result of the backfill:
--
--     sqlite3 STORE < verify_backfill.sql
--
-- Eight checks, each with its figures and a last line "N  name  VERDICT  detail", then a
-- summary. PASS: as it should be. WARN: worth a look. FAIL: wrong. INFO: nothing to judge.
-- Nothing is written to the store: what is worked out on the way goes to temporary tables.
-- Needs the sqlite3 shell from 3.37 up.

.bail off
.timeout 5000
.nullvalue NULL
PRAGMA trusted_schema = OFF;

-- The rules as data: where each column's value comes from, in the order of preference.
-- The last candidate, without a path, is the row's own created_at.
CREATE TEMP TABLE candidate (target TEXT, rank INTEGER, path TEXT,
                             PRIMARY KEY (target, rank)) WITHOUT ROWID;
INSERT INTO candidate VALUES
    ('source_event_ts', 1, '$.source_event_ts'),
    ('source_event_ts', 2, '$.source_ts'),
    ('source_event_ts', 3, '$.event_timestamp'),
    ('source_event_ts', 4, '$.task_created_at'),
    ('source_event_ts', 5, NULL),
    ('supervisor_processed_at', 1, '$.supervisor_processed_at'),
    ('supervisor_processed_at', 2, '$.processed_at'),
    ('supervisor_processed_at', 3, '$.timestamp'),
    ('supervisor_processed_at', 4, NULL);
CREATE TEMP TABLE target AS SELECT DISTINCT target AS name FROM candidate;

-- One row for each column of each Supervisor's row.
--   kind      the payload: 'object', 'none' (nothing in it), 'malformed'
--   stored    what the column holds
--   expected  what the rules say: '=' and a text, '#' and epoch milliseconds,
--             '?' where SQLite cannot tell whether Python takes a candidate,
--             NULL where no candidate is usable
-- A text is a timestamp for certain in the usual forms of ISO-8601, is none for certain if it
-- is not ASCII or does not begin with four digits, and between the two SQLite cannot tell.
-- LIMIT -1 keeps SQLite from working out an inner column once for each use of it.
CREATE TEMP TABLE value AS
SELECT audit_id, target.name AS target, kind,
       CASE target.name WHEN 'source_event_ts' THEN source_event_ts
                        ELSE supervisor_processed_at END AS stored,
       CASE WHEN kind <> 'malformed' THEN (
           SELECT verdict
             FROM (SELECT rank,
                          CASE WHEN type IN ('integer', 'real') THEN
                              CASE WHEN round(iif(v >= 1e11, v, v * 1000.0))
                                        BETWEEN 946684800000 AND 4102444799999
                                   THEN '#' || CAST(round(iif(v >= 1e11, v, v * 1000.0)) AS INTEGER)
                              END
                          WHEN type IS NOT 'text' THEN NULL
                          WHEN instr(CAST(v AS BLOB), x'00') THEN '?'
                          WHEN length(v) < 7 OR v NOT GLOB '[0-9][0-9][0-9][0-9]*'
                            OR v GLOB '*[^' || char(1) || '-' || char(127) || ']*' THEN NULL
                          WHEN julianday(v) IS NOT NULL
                           AND substr(v, 1, 10) IS date(substr(v, 1, 10), '+0 days')
                           AND substr(v, 1, 4) BETWEEN '0002' AND '9998'
                           AND (length(v) = 10
                                OR (substr(v, 11, 6) GLOB '[T ][0-2][0-9]:[0-5][0-9]'
                                    AND substr(v, 12, 2) <= '23'
                                    AND substr(v, 12) NOT GLOB '*[ Tz]*')) THEN '=' || v
                          ELSE '?' END AS verdict
                     FROM (SELECT rank,
                                  CASE WHEN path IS NULL THEN typeof(created_at)
                                       WHEN kind = 'object' THEN json_type(payload, path)
                                  END AS type,
                                  CASE WHEN path IS NULL THEN created_at
                                       WHEN kind = 'object' THEN json_extract(payload, path)
                                  END AS v
                             FROM candidate
                            WHERE candidate.target = target.name))
            WHERE verdict IS NOT NULL
            ORDER BY rank
            LIMIT 1) END AS expected
  FROM (SELECT audit_id, source_event_ts, supervisor_processed_at, created_at, payload,
               CASE WHEN payload IS NULL OR trim(payload, blanks) = '' THEN 'none'
                    WHEN NOT json_valid(payload) THEN 'malformed'
                    WHEN json_type(payload) = 'object' THEN 'object'
                    ELSE 'none' END AS kind
          FROM (SELECT audit_id, source_event_ts, supervisor_processed_at, created_at,
                       CAST(payload AS TEXT) AS payload,
                       char(9, 10, 11, 12, 13, 28, 29, 30, 31, 32, 133, 160) AS blanks
                  FROM task_audits
                 WHERE event_type LIKE '%SUPERVISOR%'
                 LIMIT -1)
         LIMIT -1)
 CROSS JOIN target;

-- The same as instants: epoch milliseconds, NULL where SQLite cannot tell.
--   readable  whether AgentOS can read the column: 1, 0, or NULL where SQLite cannot tell
--   utc       whether the column carries a UTC offset
CREATE TEMP TABLE judged AS
SELECT audit_id, target, kind, stored IS NULL AS missing, expected IS '=' || stored AS same,
       CASE WHEN expected = '?' THEN 'unsure' WHEN expected IS NULL THEN 'none' ELSE 'sure' END
           AS expected,
       CASE substr(expected, 1, 1)
           WHEN '=' THEN CAST(round((julianday(substr(expected, 2)) - 2440587.5) * 86400000)
                              AS INTEGER)
           WHEN '#' THEN CAST(substr(expected, 2) AS INTEGER) END AS expected_ms,
       readable,
       CASE WHEN readable
            THEN CAST(round((julianday(stored) - 2440587.5) * 86400000) AS INTEGER) END
           AS stored_ms,
       CASE WHEN readable
            THEN substr(stored, 11) GLOB '*[Z+]*' OR substr(stored, 11) GLOB '*-*' END AS utc
  FROM (SELECT *,
               CASE WHEN stored IS NULL THEN NULL
                    WHEN typeof(stored) <> 'text' THEN 0
                    WHEN instr(CAST(stored AS BLOB), x'00') THEN NULL
                    WHEN length(stored) < 7 OR stored NOT GLOB '[0-9][0-9][0-9][0-9]*' THEN 0
                    WHEN julianday(stored) IS NOT NULL
                     AND substr(stored, 1, 10) IS date(substr(stored, 1, 10), '+0 days')
                     AND substr(stored, 1, 4) BETWEEN '0002' AND '9998'
                     AND (length(stored) = 10
                          OR (substr(stored, 11, 6) GLOB '[T ][0-2][0-9]:[0-5][0-9]'
                              AND substr(stored, 12, 2) <= '23'
                              AND substr(stored, 12) NOT GLOB '*[ Tz]*')) THEN 1
               END AS readable
          FROM value
         LIMIT -1);

-- Rows that seem wrong, but whose payload SQLite may read otherwise than Python: text that is
-- not plain ASCII (perhaps not even UTF-8), keys that come twice or are written with escapes,
-- nesting that may be too deep. They are counted apart and never called a failure.
CREATE TEMP TABLE doubtful (audit_id INTEGER PRIMARY KEY);
INSERT INTO doubtful
SELECT audit_id
  FROM (SELECT audit_id, CAST(payload AS TEXT) AS payload, kind = 'object' AS is_object
          FROM task_audits
          JOIN (SELECT DISTINCT audit_id, kind
                  FROM judged
                 WHERE kind <> 'malformed' AND expected = 'sure' AND NOT same
                   AND (missing OR readable IS NOT 1 OR abs(stored_ms - expected_ms) > 1))
         USING (audit_id)
         LIMIT -1)
 WHERE payload GLOB '*[^' || char(9, 10, 13) || ' -~]*'
    OR instr(CAST(payload AS BLOB), x'00')
    OR instr(payload, '\u0000')
    OR length(payload) - length(replace(replace(payload, '[', ''), '{', '')) > 900
    OR (SELECT count(*) FROM json_each(iif(is_object, payload, '{}'))
         WHERE instr(key, '\') OR '$.' || key IN (SELECT path FROM candidate))
       > (SELECT count(*) FROM candidate
           WHERE is_object AND path IS NOT NULL AND json_type(payload, path) IS NOT NULL);

-- What becomes of each column in check 2 and check 6.
CREATE TEMP TABLE finding AS
SELECT audit_id, target, missing,
       CASE WHEN missing THEN
           CASE WHEN kind = 'malformed' THEN 'payload is not JSON'
                WHEN expected = 'none' THEN 'no usable timestamp'
                WHEN expected = 'unsure' OR doubtful THEN 'SQLite cannot judge'
                ELSE 'should have been filled' END
       ELSE
           CASE WHEN same THEN 'as the payload says'
                WHEN kind = 'malformed' OR expected = 'none' THEN 'nothing to compare with'
                WHEN expected = 'unsure' OR doubtful OR readable IS NULL
                    THEN 'SQLite cannot judge'
                WHEN readable AND abs(stored_ms - expected_ms) <= 1 THEN 'the same instant'
                ELSE 'different' END
       END AS finding
  FROM (SELECT *, audit_id IN (SELECT audit_id FROM doubtful) AS doubtful FROM judged);

-- What the columns hold beside what the payload says, for the ten latest rows and for three
-- that differ. It is a stranger's text: shown only where it is printable ASCII, and cut.
CREATE TEMP TABLE shown AS
SELECT audit_id, target, finding,
       CASE WHEN stored IS NULL THEN NULL
            WHEN typeof(stored) <> 'text' OR stored GLOB '*[^ -~]*' THEN '(not printable)'
            ELSE substr(stored, 1, 30) END AS stored,
       CASE substr(expected, 1, 1)
            WHEN '=' THEN iif(expected GLOB '*[^ -~]*', '(not printable)',
                              substr(expected, 2, 30))
            WHEN '#' THEN strftime('%Y-%m-%dT%H:%M:%fZ', substr(expected, 2) / 1000.0,
                                   'unixepoch')
            WHEN '?' THEN '(SQLite cannot judge)'
            ELSE iif(kind = 'malformed', '(not JSON)', '(nothing usable)') END AS payload
  FROM finding
  JOIN value USING (audit_id, target)
 WHERE audit_id IN (SELECT DISTINCT audit_id FROM finding ORDER BY audit_id DESC LIMIT 10)
    OR (audit_id, target) IN (SELECT audit_id, target FROM finding
                               WHERE finding = 'different' ORDER BY audit_id LIMIT 3);
DROP TABLE value;

-- Decision lags in milliseconds, of the pairs that can be read.
CREATE TEMP TABLE lag AS
SELECT processed.stored_ms - source.stored_ms AS ms, processed.utc IS NOT source.utc AS mixed
  FROM judged AS source
  JOIN judged AS processed USING (audit_id)
 WHERE source.target = 'source_event_ts' AND source.readable
   AND processed.target = 'supervisor_processed_at' AND processed.readable;

CREATE TEMP TABLE verdict (number INTEGER PRIMARY KEY, name TEXT, verdict TEXT, detail TEXT);

INSERT INTO verdict
SELECT 1, 'coverage', iif(min(share) < 95, 'FAIL', 'PASS'),
       CASE WHEN count(*) = 0 THEN 'the Supervisor has no rows here'
            ELSE group_concat(printf('%.2f %% of %s', share, target), ', ') END
  FROM (SELECT target, 100.0 * sum(NOT missing) / count(*) AS share FROM judged GROUP BY target);

INSERT INTO verdict
SELECT 2, 'consistency', iif(total(finding = 'different') > 0, 'FAIL', 'PASS'),
       printf('%d values differ from the payload, %d agree, %d not judged',
              total(finding = 'different'),
              total(finding IN ('as the payload says', 'the same instant')),
              total(finding IN ('nothing to compare with', 'SQLite cannot judge')))
  FROM finding
 WHERE NOT missing;

INSERT INTO verdict
SELECT 3, 'distribution', 'INFO',
       printf('%d event types, %d rows', count(DISTINCT event_type), count(*))
  FROM task_audits
 WHERE event_type LIKE '%SUPERVISOR%';

-- The indexes that migration v21 makes, and how.
CREATE TEMP TABLE v21_index (name TEXT, made_by TEXT);
INSERT INTO v21_index VALUES
    ('idx_task_audits_source_event_ts',
     'CREATE INDEX idx_task_audits_source_event_ts ON task_audits(source_event_ts)'
     || ' WHERE source_event_ts IS NOT NULL;'),
    ('idx_task_audits_decision_lag',
     'CREATE INDEX idx_task_audits_decision_lag'
     || ' ON task_audits(source_event_ts, supervisor_processed_at)'
     || ' WHERE source_event_ts IS NOT NULL AND supervisor_processed_at IS NOT NULL;'),
    ('idx_task_audits_event_source_ts',
     'CREATE INDEX idx_task_audits_event_source_ts ON task_audits(event_type, source_event_ts)'
     || ' WHERE source_event_ts IS NOT NULL;');
CREATE TEMP TABLE missing_index AS
SELECT name, made_by FROM v21_index
 WHERE name NOT IN (SELECT name FROM pragma_index_list('task_audits'));
INSERT INTO verdict
SELECT 4, 'index use',
       CASE WHEN NOT EXISTS (SELECT * FROM pragma_index_list('task_audits') AS list
                              WHERE (SELECT name FROM pragma_index_info(list.name)
                                      WHERE seqno = 0) = 'source_event_ts') THEN 'FAIL'
            WHEN count(*) > 0 THEN 'WARN'
            ELSE 'PASS' END,
       CASE WHEN count(*) > 0 THEN 'missing: ' || group_concat(name, ', ')
            ELSE 'all indexes of v21 are there' END
  FROM missing_index;

INSERT INTO verdict
SELECT 5, 'timestamp sanity',
       CASE WHEN unreadable + mixed > 0 THEN 'FAIL' WHEN future > 0 THEN 'WARN' ELSE 'PASS' END,
       printf('%d unreadable, %d pairs of mixed offsets, %d in the future, %d not judged',
              unreadable, mixed, future, unsure)
  FROM (SELECT total(readable = 0) AS unreadable,
               total(stored_ms > (julianday('now') - 2440587.5) * 86400000) AS future,
               total(readable IS NULL) AS unsure,
               (SELECT total(mixed) FROM lag) AS mixed
          FROM judged
         WHERE NOT missing);

INSERT INTO verdict
SELECT 6, 'remaining NULLs',
       CASE WHEN total(finding = 'should have been filled') > 0 THEN 'FAIL'
            WHEN count(*) > 0 THEN 'WARN'
            ELSE 'PASS' END,
       CASE WHEN count(*) = 0 THEN 'none'
            ELSE printf('%d rows have a NULL, %d of them should have been filled',
                        count(DISTINCT audit_id),
                        count(DISTINCT iif(finding = 'should have been filled', audit_id, NULL)))
            END
  FROM finding
 WHERE missing;

INSERT INTO verdict
SELECT 7, 'latest rows', 'INFO', printf('%d rows shown', count(DISTINCT audit_id))
  FROM (SELECT DISTINCT audit_id FROM finding ORDER BY audit_id DESC LIMIT 10);

INSERT INTO verdict
SELECT 8, 'decision lag', 'INFO',
       CASE WHEN count(*) = 0 THEN 'no pair to measure'
            ELSE printf('%d pairs, average %.3f s, %d negative', count(*), avg(ms) / 1000.0,
                        total(ms < 0)) END
  FROM lag;

CREATE TEMP VIEW line AS
SELECT number, printf('%d  %s  %s  %s', number, name, verdict, detail) AS line FROM verdict;

.mode column
.headers on
.print 1. Coverage: how many of the Supervisor's rows have a column filled
.print
SELECT target AS "column", count(*) AS rows, sum(NOT missing) AS filled, sum(missing) AS "NULL",
       printf('%.2f', 100.0 * sum(NOT missing) / count(*)) AS percent
  FROM judged
 GROUP BY target;
.mode list
.headers off
.print
SELECT line FROM line WHERE number = 1;

.mode column
.headers on
.print
.print 2. Consistency: whether a column says what the payload says, as instants
.print
SELECT finding, sum(target = 'source_event_ts') AS source_event_ts,
       sum(target = 'supervisor_processed_at') AS supervisor_processed_at
  FROM finding
 WHERE NOT missing
 GROUP BY finding;
.print
SELECT audit_id, target AS "column that differs", stored, payload AS "the payload says"
  FROM shown
 WHERE finding = 'different'
 ORDER BY audit_id
 LIMIT 3;
.mode list
.headers off
.print
SELECT line FROM line WHERE number = 2;

.mode column
.headers on
.print
.print 3. Distribution: the Supervisor's rows by event type
.print
SELECT CASE WHEN event_type GLOB '*[^ -~]*' THEN '(not printable)'
            ELSE substr(event_type, 1, 40) END AS event_type,
       count(*) AS rows,
       sum(source_event_ts NOT NULL AND supervisor_processed_at NOT NULL) AS filled,
       sum(source_event_ts IS NULL OR supervisor_processed_at IS NULL) AS "with a NULL"
  FROM task_audits
 WHERE event_type LIKE '%SUPERVISOR%'
 GROUP BY 1
 ORDER BY rows DESC
 LIMIT 20;
.mode list
.headers off
.print
SELECT line FROM line WHERE number = 3;

.print
.print 4. Index use: the plan of a query for a time range
.print
EXPLAIN QUERY PLAN
SELECT audit_id FROM task_audits
 WHERE source_event_ts >= '2026-01-01' AND source_event_ts < '2026-02-01'
   AND supervisor_processed_at IS NOT NULL;
SELECT 'missing: ' || name || char(10) || '    ' || made_by FROM missing_index;
.print
SELECT line FROM line WHERE number = 4;

.mode column
.headers on
.print
.print 5. Timestamp sanity: range, and whether AgentOS can read the values
.print
SELECT target AS "column",
       strftime('%Y-%m-%dT%H:%M:%fZ', min(stored_ms) / 1000.0, 'unixepoch') AS earliest,
       strftime('%Y-%m-%dT%H:%M:%fZ', max(stored_ms) / 1000.0, 'unixepoch') AS latest,
       sum(readable = 0) AS unreadable,
       sum(stored_ms > (julianday('now') - 2440587.5) * 86400000) AS future
  FROM judged
 WHERE NOT missing
 GROUP BY target;
.mode list
.headers off
.print
SELECT line FROM line WHERE number = 5;

.mode column
.headers on
.print
.print 6. Remaining NULLs: why a column is still NULL
.print
SELECT finding AS cause, sum(target = 'source_event_ts') AS source_event_ts,
       sum(target = 'supervisor_processed_at') AS supervisor_processed_at,
       min(audit_id) AS "first audit_id"
  FROM finding
 WHERE missing
 GROUP BY finding;
.mode list
.headers off
.print
SELECT line FROM line WHERE number = 6;

.mode column
.headers on
.print
.print 7. Latest rows: the columns beside what the payload says
.print
SELECT audit_id, target AS "column", stored, payload AS "the payload says"
  FROM shown
 WHERE audit_id IN (SELECT DISTINCT audit_id FROM finding ORDER BY audit_id DESC LIMIT 10)
 ORDER BY audit_id DESC, target;
.mode list
.headers off
.print
SELECT line FROM line WHERE number = 7;

.mode column
.headers on
.print
.print 8. Decision lag: from the event to the decision, in seconds
.print
SELECT count(*) AS pairs, printf('%.3f', avg(ms) / 1000.0) AS average,
       printf('%.3f', (SELECT ms FROM lag ORDER BY ms LIMIT 1
                       OFFSET (SELECT (count(*) * 50 + 99) / 100 - 1 FROM lag)) / 1000.0) AS p50,
       printf('%.3f', (SELECT ms FROM lag ORDER BY ms LIMIT 1
                       OFFSET (SELECT (count(*) * 95 + 99) / 100 - 1 FROM lag)) / 1000.0) AS p95,
       printf('%.3f', max(ms) / 1000.0) AS maximum, sum(ms < 0) AS negative
  FROM lag
 GROUP BY NULL;
.mode list
.headers off
.print
SELECT line FROM line WHERE number = 8;

.print
.print Summary
.print
SELECT printf('  %d  %-16s  %s  %s', number, name, verdict, detail) FROM verdict ORDER BY number;
