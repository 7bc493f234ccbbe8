-- Check the result of the backfill:  sqlite3 STORE < verify_backfill.sql
--
-- Eight checks. Each prints its figures and ends with a line "N  name  VERDICT  detail". PASS: as
-- it should be. WARN: worth a look. FAIL: wrong. INFO: nothing to judge. The last line of all
-- names the checks that fail. The exit code is 1 if there is one, or if the store cannot be read.
-- For SQLite from 3.34 up. Nothing is written to the store: what is made here is made in "temp".

.bail on
.timeout 5000
.mode list
.headers off
PRAGMA temp.cache_size = -64000;  -- kB of what is made here that may stay in memory

-- A file without the table ends here.
CREATE TABLE temp.needed (columns INTEGER CONSTRAINT
    "there is no table task_audits here with the columns of migration v21" CHECK (columns = 6));
INSERT INTO temp.needed
SELECT count(*) FROM pragma_table_xinfo('task_audits', 'main')
 WHERE lower(name) IN ('audit_id', 'event_type', 'payload', 'created_at',
                       'source_event_ts', 'supervisor_processed_at');

-- One transaction to the end: what others write meanwhile makes no difference.
BEGIN;
SELECT printf('store   %s
time    %s UTC
SQLite  %s
rows    %,d in task_audits: this takes about %d s, several times that before a run%s',
              file, datetime('now'), sqlite_version(), rows, rows / 40000 + 1,
              CASE journal_mode WHEN 'wal' THEN '' ELSE '
Not in WAL mode: while this store is read, its writers wait. To spare them,
check a copy:  sqlite3 STORE ".backup COPY"; sqlite3 COPY < verify_backfill.sql' END)
  FROM pragma_database_list, pragma_journal_mode, (SELECT count(*) AS rows FROM main.task_audits)
 WHERE name = 'main';

-- == The rules and the rows =======================================================================

-- A column's value comes from the first candidate that is usable: fields of the payload, then
-- created_at. Rank 0 is the column itself.
CREATE TABLE temp.candidate (target INTEGER, rank INTEGER, field TEXT,
                             PRIMARY KEY (target, rank)) WITHOUT ROWID;
INSERT INTO temp.candidate VALUES
    (1, 0, 'source_event_ts'), (1, 1, 'source_event_ts'), (1, 2, 'source_ts'),
    (1, 3, 'event_timestamp'), (1, 4, 'task_created_at'), (1, 9, 'created_at'),
    (2, 0, 'supervisor_processed_at'), (2, 1, 'supervisor_processed_at'), (2, 2, 'processed_at'),
    (2, 3, 'timestamp'), (2, 9, 'created_at');

-- One row for each column (target) of each of the Supervisor's rows. us: microseconds since 1970,
-- NULL if it is no timestamp. utc: it has a UTC offset. winner: rank of the first usable candidate.
CREATE TABLE temp.value (audit_id INTEGER, target INTEGER, missing INTEGER, us INTEGER, utc INTEGER,
                         finding TEXT, passed_over INTEGER, winner INTEGER,
                         PRIMARY KEY (audit_id, target)) WITHOUT ROWID;

-- NOT INDEXED: a scan, whatever the statistics say.
CREATE VIEW temp.event AS
SELECT audit_id, event_type, payload, created_at, source_event_ts, supervisor_processed_at
  FROM main.task_audits NOT INDEXED WHERE event_type LIKE '%SUPERVISOR%';
-- odd: SQLite may read the payload differently than Python. other: the other column.
CREATE VIEW temp.given AS
SELECT audit_id, target, CAST(payload AS TEXT) AS payload,
       CASE target WHEN 1 THEN source_event_ts ELSE supervisor_processed_at END AS value,
       CASE target WHEN 1 THEN supervisor_processed_at ELSE source_event_ts END AS other,
       CASE WHEN typeof(created_at) <> 'blob' AND NOT instr(created_at, char(0))
            THEN created_at END AS created_at,
       CASE WHEN (typeof(payload) = 'blob' AND (SELECT encoding FROM pragma_encoding) <> 'UTF-8')
              OR CAST(payload AS TEXT) <> printf('%s', payload)  -- which ends at a NUL
              OR CAST(payload AS TEXT) GLOB '*\u0000*'
              OR CAST(payload AS TEXT) GLOB '*\u00[5-7]*'  -- a letter, perhaps of a name
            THEN 1 ELSE 0 END AS odd
  FROM temp.event CROSS JOIN (SELECT 1 AS target UNION ALL SELECT 2);

-- == The scan =====================================================================================

-- It settles most values by comparing them, letter by letter, with the first candidate that is
-- there, or with that and the Z that rule 5 adds where there is no offset. The value must be a
-- moment that exists (julianday() takes only digits for a ?, but makes another day of the 30th of
-- February, and of hour 24), with up to nine digits of a second, and with Z, an offset that
-- strftime() takes, or neither. The close examination would reject none of these. It gets the
-- latest rows too, because they are shown. usual: in the form that AgentOS writes itself.
-- LIMIT -1, here and below, keeps SQLite from working out an inner column once for each use of it.
CREATE TABLE temp.latest AS SELECT audit_id FROM temp.event ORDER BY audit_id DESC LIMIT 10;
INSERT INTO temp.value (audit_id, target, missing, us, utc, finding, passed_over)
SELECT audit_id, target, 0,
       CASE WHEN usual THEN round((day - 2440587.5) * 86400) * 1000000 + substr(rest, 2, 6)
            ELSE strftime('%s', substr(value, 1, 19) || ltrim(rest, '.0123456789')) * 1000000
                 + CAST(('0' || rest) * 1000000 + 0.01 AS INTEGER) END,
       CASE WHEN usual THEN 1 ELSE rest GLOB '*[Z:]*' END,
       CASE WHEN field IS NULL THEN 'as created_at says' ELSE 'as the payload says' END, 0
  FROM (SELECT audit_id, target, value, field, substr(value, 20) AS rest,
               value GLOB '20??-??-??[T ]??:??:??.[0-9][0-9][0-9][0-9][0-9][0-9]Z' AS usual,
               julianday(substr(value, 1, 19)) AS day
          FROM (SELECT audit_id, target, value, created_at,
                       CASE target
                       WHEN 1 THEN coalesce(json_extract(payload, '$.source_event_ts'),
                                            json_extract(payload, '$.source_ts'),
                                            json_extract(payload, '$.event_timestamp'),
                                            json_extract(payload, '$.task_created_at'))
                       ELSE coalesce(json_extract(payload, '$.supervisor_processed_at'),
                                     json_extract(payload, '$.processed_at'),
                                     json_extract(payload, '$.timestamp')) END AS field
                  FROM temp.given
                 WHERE NOT odd AND json_valid(payload)
                   AND audit_id < (SELECT min(audit_id) FROM temp.latest)
                 LIMIT -1)
         WHERE value = coalesce(field, created_at)
            OR value = replace(coalesce(field, created_at), ' ', 'T') || 'Z'
         LIMIT -1)
 WHERE date(day) = substr(value, 1, 10) AND (usual
        OR (value GLOB '20??-??-??[T ]??:??:??*' AND rest NOT GLOB '*[^0-9.:Z+-]*'
            AND strftime('%s', value)
            AND rest NOT GLOB '.[0-9][0-9][0-9][0-9][0-9][0-9][0-9][0-9][0-9][0-9]*'));

-- == The close examination ========================================================================

-- For the values that the scan has left: each column (rank 0) and each candidate that is there.
-- cause: why nothing can be taken from the row.
CREATE TABLE temp.instant (audit_id INTEGER, target INTEGER, rank INTEGER, cause TEXT, value,
                           us INTEGER, utc INTEGER,
                           PRIMARY KEY (audit_id, target, rank)) WITHOUT ROWID;
INSERT INTO temp.instant
WITH doubtful AS (
    SELECT audit_id, target, value, created_at,
           CASE WHEN json_valid(payload) THEN payload END AS payload,
           CASE WHEN odd OR (NOT json_valid(payload)
                             AND (payload GLOB '*NaN*' OR payload GLOB '*Infinity*'))
                  OR length(payload) - length(replace(replace(payload, '[', ''), '{', '')) > 500
                THEN 'not judged: JSON read differently'
                WHEN NOT json_valid(payload) AND trim(payload, char(9, 10, 11, 12, 13, 32)) <> ''
                THEN CASE WHEN value IS NULL THEN 'the payload is not JSON'
                          ELSE 'nothing to compare with' END
                WHEN value IS NULL AND (typeof(other) NOT IN ('text', 'null')
                                        OR other GLOB '*[^ -~]*')
                THEN 'the other column is not readable' END AS cause
      FROM (SELECT * FROM temp.given
             WHERE (SELECT count(*) FROM temp.value WHERE audit_id = given.audit_id) < 2  -- most: 2
               AND NOT EXISTS (SELECT * FROM temp.value
                                WHERE audit_id = given.audit_id AND target = given.target)
             LIMIT -1)
     LIMIT -1),
ranked AS (
    SELECT audit_id, target, rank, cause,
           CASE WHEN rank = 0 THEN value WHEN cause IS NOT NULL THEN NULL
                WHEN rank = 9 THEN created_at
                ELSE json_extract(payload, '$.' || field) END AS value
      FROM doubtful JOIN temp.candidate USING (target)
     LIMIT -1),
-- Candidates are stripped. AgentOS's readers strip nothing, and take a day for its midnight.
stripped AS (
    SELECT audit_id, target, rank, cause, value,
           CASE WHEN typeof(value) <> 'text' OR instr(value, char(0)) THEN NULL
                WHEN rank > 0 THEN trim(value, char(9, 10, 11, 12, 13, 32))
                WHEN length(value) = 10 THEN value || 'T00:00'
                ELSE value END AS text
      FROM ranked
     WHERE value IS NOT NULL OR rank = 0
     LIMIT -1),
-- Either a number, or the minute, what is between it and the zone, and the zone.
split AS (
    SELECT *, ltrim(substr(text, 17), '0123456789:.,') AS rest,
           substr(text, 1, 10) || 'T' || substr(text, 12, 5) AS minute,
           CASE WHEN rank = 0 THEN NULL
                WHEN typeof(value) IN ('integer', 'real') THEN value
                WHEN text GLOB '[1-9]*' AND text NOT GLOB '*[^0-9.]*'
                 AND text NOT GLOB '*.*.*' AND text NOT GLOB '*.'
                 AND instr(text || '.', '.') BETWEEN 10 AND 20
                THEN CAST(text AS NUMERIC) END AS number
      FROM stripped
     LIMIT -1),
part AS (
    SELECT *, substr(text, 17, length(text) - 16 - length(rest)) AS clock,
           CASE WHEN rest GLOB ' ?*' AND NOT (rank = 0 AND text GLOB '*[.,]* *')
                THEN substr(rest, 2) ELSE rest END AS zone
      FROM split
     LIMIT -1),
-- A number is seconds, milliseconds, microseconds or nanoseconds. A text is a moment that exists
-- (strftime() gives back the same letters) in a spelling of rule 3; in the column, in one that
-- AgentOS's readers take. (They take a week's date too, which nobody writes there.)
moment AS (
    SELECT audit_id, target, rank, cause, value, number, zone,
           CASE WHEN number < 1e10 THEN CAST(round(number * 1e6) AS INTEGER)
                WHEN number < 1e13 THEN CAST(round(number * 1e3) AS INTEGER)
                WHEN number < 1e16 THEN CAST(round(number) AS INTEGER)
                WHEN number IS NOT NULL THEN (CAST(number AS INTEGER) + 500) / 1000
                WHEN (rank = 0 OR text GLOB '20[0-9][0-9]-[0-9][0-9]-[0-9][0-9][Tt ]*')
                 AND date(minute || ':00', '+0 days') = substr(text, 1, 10)
                 AND (clock = '' OR clock GLOB ':[0-5][0-9]'
                      OR (clock GLOB ':[0-5][0-9][.,][0-9]*'
                          AND substr(clock, 5) NOT GLOB '*[^0-9]*'
                          AND (rank = 0 OR length(clock) <= 13)))
                 AND (zone IN ('', 'Z') OR (zone IN ('z', 'UTC') AND rank > 0)
                      OR (substr(zone, 2, 2) <= CASE rank WHEN 0 THEN '23' ELSE '14' END
                          AND (zone GLOB '[+-][0-9][0-9]' OR zone GLOB '[+-][0-9][0-9][0-5][0-9]'
                               OR zone GLOB '[+-][0-9][0-9]:[0-5][0-9]')))
                THEN (strftime('%s', minute) + substr(clock, 2, 2)
                      - CASE WHEN zone GLOB '[+-]*' THEN (substr(zone, 1, 1) || '60')
                             * (substr(zone, 2, 2) * 60 + substr(replace(zone, ':', ''), 4))
                        ELSE 0 END) * 1000000
                     + substr(substr(clock, 5) || '000000', 1, 6) END AS us
      FROM part
     LIMIT -1)
SELECT audit_id, target, rank, cause, value,
       CASE WHEN number IS NULL OR us BETWEEN 946684800000000 AND 4102444799999999 THEN us END,
       number IS NOT NULL OR zone <> ''
  FROM moment;

INSERT INTO temp.value
SELECT mine.audit_id, mine.target, mine.value IS NULL, mine.us, mine.utc,
       CASE WHEN mine.cause IS NOT NULL THEN mine.cause
            WHEN mine.value IS NULL THEN iif(best.rank, 'should be filled', 'no usable timestamp')
            WHEN best.rank IS NULL THEN 'nothing to compare with'
            WHEN abs(mine.us - best.us) < 1000 THEN
                CASE best.rank WHEN 9 THEN 'as created_at says' ELSE 'as the payload says' END
            ELSE 'different' END,
       (SELECT count(*) FROM temp.instant
         WHERE audit_id = mine.audit_id AND target = mine.target
           AND rank BETWEEN 1 AND coalesce(best.rank, 9) - 1),
       best.rank
  FROM temp.instant AS mine
  LEFT JOIN temp.instant AS best ON best.audit_id = mine.audit_id AND best.target = mine.target
   AND best.rank = (SELECT min(rank) FROM temp.instant
                     WHERE audit_id = mine.audit_id AND target = mine.target
                       AND rank > 0 AND us IS NOT NULL)
 WHERE mine.rank = 0;

-- What seems wrong is no fault if Python reads the JSON differently, because a name is there twice
-- or bytes are not UTF-8. Each letter that is not ASCII is looked at once: it is UTF-8 if its code
-- gives back the same bytes (SQLite has no code for the two that Unicode leaves out). ltrim() tries
-- letters in the order given, so the most frequent come first.
UPDATE temp.value
   SET finding = 'not judged: JSON read differently', winner = NULL
 WHERE winner IS NOT NULL AND finding IN ('different', 'should be filled')
   AND (SELECT (SELECT count(*) > count(DISTINCT key)
                  FROM json_each(CASE WHEN json_valid(payload) THEN payload END)
                 WHERE key IN (SELECT field FROM temp.candidate WHERE target = value.target))
            OR EXISTS (
                   WITH RECURSIVE letter (rest) AS (
                       SELECT ltrim(payload, ascii)
                        UNION ALL
                       SELECT ltrim(replace(rest, substr(rest, 1, 1), ' '), ascii)
                         FROM letter WHERE rest <> '')
                   SELECT * FROM letter WHERE rest <> ''
                      AND substr(rest, 1, 1) NOT IN (char(unicode(rest)), char(65534), char(65535)))
          FROM (SELECT CAST(payload AS TEXT) AS payload,
                       ' "etaonirsdlcf_0123456789:,umpghybvwkxjqz-.{}[]/TZ()' || char(9, 10, 13)
                       || 'EAONIRSDLCHUMPGFYBWVKXJQ!#$%&''*+;<=>?@\^`|~' AS ascii
                  FROM main.task_audits WHERE audit_id = value.audit_id));

-- Each finding, counted; missing: those of them where the column is NULL.
CREATE TABLE temp.tally AS
SELECT target, finding, count(*) AS number, sum(missing) AS missing,
       min(CASE WHEN missing THEN audit_id END) AS first, sum(passed_over) AS passed_over,
       count(*) - sum(missing) - count(us) AS unreadable, min(us) AS earliest, max(us) AS latest,
       sum(us >= (strftime('%s', 'now') + 1) * 1000000) AS future,
       sum(us NOT BETWEEN 946684800000000 AND 4102444799999999) AS outside
  FROM temp.value
 GROUP BY finding, target;

-- From the event to the decision, in order; NULL if only one of the two has a UTC offset.
CREATE TABLE temp.lag AS
SELECT CASE WHEN source.utc = processed.utc THEN processed.us - source.us END AS us
  FROM temp.value AS source JOIN temp.value AS processed USING (audit_id)
 WHERE source.target = 1 AND processed.target = 2 AND processed.us - source.us IS NOT NULL
 ORDER BY us;
CREATE TABLE temp.summary AS
SELECT count(us) AS pairs, count(*) - count(us) AS mixed, sum(us < 0) AS negative,
       CAST(avg(us) AS INTEGER) / 1000 / 1e3 AS average
  FROM temp.lag;

-- == The eight checks =============================================================================

CREATE TABLE temp.verdict (number INTEGER PRIMARY KEY, name TEXT, verdict TEXT, detail TEXT);
CREATE VIEW temp.last_line AS
SELECT printf('
%d  %s  %s  %s', number, name, verdict, detail) FROM temp.verdict ORDER BY number DESC LIMIT 1;

SELECT '
1. Coverage: how many of the Supervisor''s rows are filled, and from created_at

column                       rows    filled      NULL  percent  from created_at';
-- Percentages are cut, not rounded: 100 means all.
CREATE VIEW temp.coverage AS
SELECT field, rows, filled, created, 10000 * filled / rows / 100.0 AS percent,
       10000 * created / max(filled, 1) / 100.0 AS created_percent
  FROM (SELECT field, sum(number) AS rows, sum(number - missing) AS filled,
               sum(number * (finding = 'as created_at says')) AS created
          FROM temp.tally JOIN temp.candidate USING (target)
         WHERE rank = 0
         GROUP BY target);
SELECT printf('%-23s %9d %9d %9d %8.2f %7d %6.2f %%', field, rows, filled, rows - filled, percent,
              created, created_percent)
  FROM temp.coverage;
INSERT INTO temp.verdict
SELECT 1, 'coverage',
       CASE WHEN count(*) = 0 THEN 'INFO' WHEN min(percent) < 95 THEN 'FAIL' ELSE 'PASS' END,
       CASE WHEN count(*) = 0 THEN 'the Supervisor has no rows here'
            ELSE printf('filled %s %%, from created_at %s %%', group_concat(percent, ' and '),
                        group_concat(created_percent, ' and ')) END
  FROM temp.coverage;
SELECT * FROM temp.last_line;

SELECT '
2. Consistency: each column against its first usable candidate, as instants

finding                                source_event_ts  supervisor_processed_at';
SELECT printf('%-38s %15d %24d', finding, sum((number - missing) * (target = 1)),
              sum((number - missing) * (target = 2)))
  FROM temp.tally
 WHERE number > missing
 GROUP BY finding;
SELECT printf('%-38s %15d %24d', 'payload fields there and unusable',
              total(passed_over * (target = 1)), total(passed_over * (target = 2)))
  FROM temp.tally;
-- A column, and below it the candidate that it is compared with, if there is one.
CREATE VIEW temp.example AS
SELECT audit_id, target, rank, finding,
       printf('%-23s %.35s%s', field,
              CASE WHEN CAST(value AS TEXT) GLOB '*[^ -~]*' THEN '(not printable)'
                   WHEN typeof(value) = 'real' THEN printf('%.6f', value)
                   ELSE coalesce(value, 'NULL') END,
              CASE WHEN rank = winner THEN '  ' || finding
                   WHEN winner IS NULL THEN char(10) || '-  ' || finding END) AS text
  FROM temp.value JOIN temp.instant USING (audit_id, target)
  JOIN temp.candidate USING (target, rank) WHERE rank IN (0, winner);
SELECT CASE rank WHEN 0 THEN printf('
audit_id %d
', audit_id) ELSE '' END || text
  FROM temp.example WHERE finding = 'different' ORDER BY audit_id, target, rank LIMIT 6;
INSERT INTO temp.verdict
SELECT 2, 'consistency',
       CASE WHEN different > 0 THEN 'FAIL' WHEN agree > 0 THEN 'PASS' WHEN rest > 0 THEN 'WARN'
            ELSE 'INFO' END,
       printf('%d values differ, %d agree, %d not judged', different, agree, rest)
  FROM (SELECT total(number * (finding = 'different')) AS different,
               total(number * (finding GLOB 'as * says')) AS agree,
               total((number - missing) * (finding GLOB 'no*')) AS rest
          FROM temp.tally);
SELECT * FROM temp.last_line;

SELECT '
3. Distribution: the Supervisor''s rows by event type

event_type                                     rows     filled  with a NULL';
CREATE TABLE temp.distribution AS
SELECT event_type AS type, count(*) AS rows,
       sum(audit_id NOT IN (SELECT audit_id FROM temp.value WHERE missing)) AS filled
  FROM main.task_audits WHERE event_type LIKE '%SUPERVISOR%'
 GROUP BY 1;
SELECT printf('%-40.40s %10d %10d %12d',
              CASE WHEN type GLOB '*[^ -~]*' THEN '(not printable)' ELSE type END,
              rows, filled, rows - filled)
  FROM temp.distribution
 ORDER BY rows DESC, type LIMIT 20;
INSERT INTO temp.verdict
SELECT 3, 'distribution', 'INFO', printf('%d event types, %d rows', count(*), sum(rows))
  FROM temp.distribution;
SELECT * FROM temp.last_line;

SELECT '
4. Index use: the plan of a query for a time range
';
EXPLAIN QUERY PLAN
SELECT audit_id FROM task_audits WHERE supervisor_processed_at IS NOT NULL
   AND source_event_ts >= '2026-01-01' AND source_event_ts < '2026-02-01';
-- The indexes of v21 that are not there, the worst first. An index is judged by its key columns,
-- compared as they are, whatever its name or condition.
CREATE TABLE temp.missing AS
SELECT column1 AS name, column2 AS columns, column3 AS verdict, column1 || column4 AS detail
  FROM (VALUES
        ('idx_task_audits_source_event_ts', 'source_event_ts', 'FAIL', ' is missing: create it'),
        ('idx_task_audits_decision_lag', 'source_event_ts, supervisor_processed_at',
         'WARN', ' is missing: create it'),
        ('idx_task_audits_event_source_ts', 'event_type, source_event_ts',
         'INFO', ': v24 leaves it out, no need'))
 WHERE NOT EXISTS (
       SELECT * FROM pragma_index_list('task_audits', 'main') AS list
        WHERE (SELECT group_concat(CASE WHEN coll = 'BINARY' AND cid >= 0 THEN lower(name)
                                        ELSE '?' END, ', ')
                 FROM pragma_index_xinfo(list.name, 'main') WHERE key) || ',' GLOB column2 || ',*');
SELECT printf('missing, and worth creating:
CREATE INDEX %s
    ON task_audits (%s)
    WHERE %s IS NOT NULL;', name, columns, replace(columns, ', ', ' IS NOT NULL AND '))
  FROM temp.missing
 WHERE verdict <> 'INFO';
INSERT INTO temp.verdict
SELECT 4, 'index use', verdict, detail
  FROM (SELECT * FROM temp.missing
         UNION ALL SELECT '', '', 'PASS', 'the indexes of v21 are there')
 LIMIT 1;
SELECT * FROM temp.last_line;

SELECT '
5. Timestamp sanity: range, and whether AgentOS can read the values

column                     unreadable  in the future  outside 2000-2099';
SELECT printf('%-24s %12d %14d %18d
    from %s to %s UTC', field, sum(unreadable), total(future), total(outside),
              datetime(min(earliest) / 1000000, 'unixepoch'),
              datetime(max(latest) / 1000000, 'unixepoch'))
  FROM temp.tally JOIN temp.candidate USING (target)
 WHERE rank = 0
 GROUP BY target;
INSERT INTO temp.verdict
SELECT 5, 'timestamp sanity',
       CASE WHEN unreadable + mixed > 0 THEN 'FAIL' WHEN out_of_range > 0 THEN 'WARN'
            WHEN number = 0 THEN 'INFO' ELSE 'PASS' END,
       printf('%d unreadable, %d mixed pairs, %d out of range', unreadable, mixed, out_of_range)
  FROM (SELECT total(number - missing) AS number, total(unreadable) AS unreadable,
               total(future) + total(outside) AS out_of_range
          FROM temp.tally), temp.summary;
SELECT * FROM temp.last_line;

SELECT '
6. Remaining NULLs: why a column is still NULL

cause                                  source_event_ts  supervisor_processed_at';
SELECT printf('%-38s %15d %24d
    the first is audit_id %d', finding, sum(missing * (target = 1)), sum(missing * (target = 2)),
              min(first))
  FROM temp.tally
 WHERE missing > 0
 GROUP BY finding;
INSERT INTO temp.verdict
SELECT 6, 'remaining NULLs',
       CASE WHEN forgotten > 0 THEN 'FAIL' WHEN with_null > 0 THEN 'WARN'
            WHEN NOT EXISTS (SELECT * FROM temp.tally) THEN 'INFO' ELSE 'PASS' END,
       printf('%d rows have a NULL, %d should be filled', with_null, forgotten)
  FROM (SELECT count(DISTINCT audit_id) AS with_null,
               count(DISTINCT CASE finding WHEN 'should be filled' THEN audit_id END) AS forgotten
          FROM temp.value WHERE missing);
SELECT * FROM temp.last_line;

SELECT '
7. Latest rows: each column above the field that it should come from';
SELECT CASE WHEN target = 1 AND rank = 0 THEN printf('
audit_id %d
', audit_id) ELSE '' END || text
  FROM temp.example
 WHERE audit_id IN (SELECT audit_id FROM temp.latest)
 ORDER BY audit_id DESC, target, rank;
INSERT INTO temp.verdict
SELECT 7, 'latest rows', 'INFO', printf('%d rows shown', count(*)) FROM temp.latest;
SELECT * FROM temp.last_line;

SELECT '
8. Decision lag: from the event to the decision, in seconds

pairs          average            p50            p95        maximum negative';
-- Whole milliseconds: SQLite's versions round the rest in different ways.
SELECT printf('%-7d %14.3f %14.3f %14.3f %14.3f %8d
', pairs, average,
              (SELECT us FROM temp.lag WHERE rowid = mixed + (pairs * 50 + 99) / 100) / 1000 / 1e3,
              (SELECT us FROM temp.lag WHERE rowid = mixed + (pairs * 95 + 99) / 100) / 1000 / 1e3,
              (SELECT max(us) FROM temp.lag) / 1000 / 1e3, negative)
  FROM temp.summary
 WHERE pairs > 0;
SELECT rtrim(printf('%-12s %10d  %s', column2, coalesce(number, 0),
                    substr('##################################################', 1,
                           (number * 50 + longest - 1) / longest)))
  FROM (VALUES (0, 'negative'), (1, 'under 0.1 s'), (2, 'under 1 s'), (3, 'under 10 s'),
               (4, 'under 1 min'), (5, 'under 10 min'), (6, 'under 1 h'), (7, '1 h and more'))
  LEFT JOIN (SELECT (us >= 0) + (us >= 1e5) + (us >= 1e6) + (us >= 1e7) + (us >= 6e7)
                    + (us >= 6e8) + (us >= 36e8) AS range, count(*) AS number,
                    max(count(*)) OVER () AS longest
               FROM temp.lag WHERE us IS NOT NULL GROUP BY 1) ON range = column1
 WHERE (SELECT pairs FROM temp.summary) > 0
 ORDER BY column1;
INSERT INTO temp.verdict
SELECT 8, 'decision lag', 'INFO',
       printf('%d pairs, average %.3f s, %d negative', pairs, average, negative)
  FROM temp.summary;
SELECT * FROM temp.last_line;

COMMIT;
SELECT char(10) || CASE count(*) WHEN 0 THEN 'No check fails.'
                   ELSE 'FAIL: ' || group_concat(number || ' ' || name, ', ') END
  FROM (SELECT number, name FROM temp.verdict WHERE verdict = 'FAIL' ORDER BY number);
-- An error raised on purpose makes the exit code 1.
CREATE TABLE temp.gate (failed INTEGER CONSTRAINT
    "the line above names the checks that fail" CHECK (failed = 0));
INSERT INTO temp.gate SELECT count(*) FROM temp.verdict WHERE verdict = 'FAIL';
