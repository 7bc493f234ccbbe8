-- Check the result of the backfill:
--
--     sqlite3 STORE < verify_backfill.sql
--
-- Eight checks, each with its figures and a last line "N  name  VERDICT  detail". PASS: as it
-- should be. WARN: worth a look. FAIL: wrong. INFO: nothing to judge. The last line of all names
-- the checks that fail, and the exit code is 1 if there is one, or if the store cannot be read,
-- else 0. For the sqlite3 shell from 3.34 up; SQL lays out the lines, because shells differ.
--
-- Nothing is written to the store: every name that is made or filled here is one of "temp".
-- A scan compares each value with its first candidate, letter by letter, which settles nearly
-- all; what is left is read again and examined by all the rules.

.bail on
.timeout 5000
.mode list
.headers off

-- A file without the table ends here, with one line.
CREATE TABLE temp.needed (columns INTEGER CONSTRAINT
    "there is no table task_audits here with the columns of migration v21" CHECK (columns = 6));
INSERT INTO temp.needed
SELECT count(*)
  FROM pragma_table_xinfo('task_audits', 'main')
 WHERE lower(name) IN ('audit_id', 'event_type', 'payload', 'created_at',
                       'source_event_ts', 'supervisor_processed_at');

-- Rows that come later, while this runs, are not looked at.
CREATE TABLE temp.extent AS
SELECT count(*) AS rows, max(audit_id) AS last FROM main.task_audits;
SELECT printf('%,d rows in task_audits: about %d s, and several times that before a run',
              rows, rows / 50000 + 1)
  FROM temp.extent;
SELECT 'Not in WAL mode: while this store is read, its writers wait. To spare them,
check a copy:  sqlite3 STORE ".backup COPY"; sqlite3 COPY < verify_backfill.sql'
  FROM pragma_journal_mode
 WHERE journal_mode <> 'wal';

-- == The rules, as data ===========================================================================

-- A column's value comes from the first candidate that is usable: fields of the payload, then
-- created_at. Rank 0 is the column itself.
CREATE TABLE temp.candidate (target TEXT, rank INTEGER, field TEXT, path TEXT,
                             PRIMARY KEY (target, rank)) WITHOUT ROWID;
INSERT INTO temp.candidate VALUES
    ('source_event_ts', 0, 'source_event_ts', NULL),
    ('source_event_ts', 1, 'source_event_ts', '$.source_event_ts'),
    ('source_event_ts', 2, 'source_ts', '$.source_ts'),
    ('source_event_ts', 3, 'event_timestamp', '$.event_timestamp'),
    ('source_event_ts', 4, 'task_created_at', '$.task_created_at'),
    ('source_event_ts', 5, 'created_at', NULL),
    ('supervisor_processed_at', 0, 'supervisor_processed_at', NULL),
    ('supervisor_processed_at', 1, 'supervisor_processed_at', '$.supervisor_processed_at'),
    ('supervisor_processed_at', 2, 'processed_at', '$.processed_at'),
    ('supervisor_processed_at', 3, 'timestamp', '$.timestamp'),
    ('supervisor_processed_at', 4, 'created_at', NULL);

-- blanks: what may stand at either end of a timestamp, and all that an empty payload may hold.
-- usual, even_second, zero: the forms that AgentOS writes itself, as the scan knows them.
CREATE TABLE temp.rule AS
SELECT char(9, 10, 11, 12, 13, 32) AS blanks,
       moment || '.[0-9][0-9][0-9][0-9][0-9][0-9]Z' AS usual,
       moment || 'Z' AS even_second,
       moment || '.[0-9][0-9][0-9][0-9][0-9][0-9]+00:00' AS zero,
       '*\u00[5-7][0-9A-Fa-f]*' AS escaped_letter,
       ' "etaonirsdlcf_0123456789:,umpghybvwkxjqz-.{}[]/TZ()' || char(9, 10, 13)
       || 'EAONIRSDLCHUMPGFYBWVKXJQ!#$%&''*+;<=>?@\^`|~' AS ascii,
       strftime('%s', 'now') * 1000000 AS now_us
  FROM (SELECT '20[0-9][0-9]-[0-9][0-9]-[0-9][0-9][T ][0-9][0-9]:[0-9][0-9]:[0-9][0-9]' AS moment);

-- == The scan =====================================================================================

-- One row for each of the Supervisor's. The instants (us: microseconds since 1970) are set where
-- both columns are plainly right: in a form that AgentOS writes, a moment that exists (date() of
-- the 30th of February is another day, and of hour 24 too), and to the letter what the first
-- candidate says that is there, or that without an offset and the Z that rule 5 gives it. The
-- scan takes nothing for right that the close examination would not.
-- NOT INDEXED: a scan, whatever the statistics say. LIMIT -1 keeps SQLite from working out an
-- inner column once for each use of it.
CREATE TABLE temp.audit (audit_id INTEGER PRIMARY KEY, event_type TEXT, has_source INTEGER,
                         has_processed INTEGER, source_us INTEGER, processed_us INTEGER);
INSERT INTO temp.audit
SELECT audit_id, event_type, source IS NOT NULL, processed IS NOT NULL,
       CASE WHEN plain THEN strftime('%s', substr(source, 1, 19)) * 1000000
                            + substr(source, 21, 6) END,
       CASE WHEN plain THEN strftime('%s', substr(processed, 1, 19)) * 1000000
                            + substr(processed, 21, 6) END
  FROM (SELECT audit_id, event_type, source, processed,
               CASE WHEN (source = source_says
                          OR source = replace(source_says, ' ', 'T') || 'Z')
                     AND (processed = processed_says
                          OR processed = replace(processed_says, ' ', 'T') || 'Z')
                     AND (source GLOB usual OR source GLOB even_second OR source GLOB zero)
                     AND (processed GLOB usual OR processed GLOB even_second
                          OR processed GLOB zero)
                     AND date(source, '+0 days') = substr(source, 1, 10)
                     AND date(processed, '+0 days') = substr(processed, 1, 10)
                    THEN 1 END AS plain
          FROM (SELECT audit_id, substr(event_type, 1, 41) AS event_type, usual, even_second, zero,
                       source_event_ts AS source, supervisor_processed_at AS processed,
                       CASE WHEN json_valid(payload) AND payload NOT GLOB escaped_letter THEN
                           coalesce(json_extract(payload, '$.source_event_ts'),
                                    json_extract(payload, '$.source_ts'),
                                    json_extract(payload, '$.event_timestamp'),
                                    json_extract(payload, '$.task_created_at'), created_at)
                           END AS source_says,
                       CASE WHEN json_valid(payload) THEN
                           coalesce(json_extract(payload, '$.supervisor_processed_at'),
                                    json_extract(payload, '$.processed_at'),
                                    json_extract(payload, '$.timestamp'), created_at)
                           END AS processed_says
                  FROM main.task_audits NOT INDEXED CROSS JOIN temp.rule
                 WHERE event_type LIKE '%SUPERVISOR%'
                   AND audit_id <= (SELECT last FROM temp.extent)
                 LIMIT -1)
         LIMIT -1)
 LIMIT -1;
-- The latest rows are shown, so they are examined like those that are in doubt.
UPDATE temp.audit
   SET source_us = NULL, processed_us = NULL
 WHERE audit_id IN (SELECT audit_id FROM temp.audit ORDER BY audit_id DESC LIMIT 10);

CREATE TABLE temp.verdict (number INTEGER PRIMARY KEY, name TEXT, verdict TEXT, detail TEXT);
CREATE VIEW temp.line AS
SELECT number, printf('%d  %s  %s  %s', number, name, verdict, detail) AS line
  FROM temp.verdict;

SELECT '
1. Coverage: how many of the Supervisor''s rows have a column filled

column                         rows     filled       NULL  percent';
INSERT INTO temp.verdict
SELECT 1, 'coverage',
       CASE WHEN rows = 0 THEN 'INFO' WHEN source < 95 OR processed < 95 THEN 'FAIL'
            ELSE 'PASS' END,
       CASE WHEN rows = 0 THEN 'the Supervisor has no rows here'
            ELSE printf('source_event_ts %.2f %%, supervisor_processed_at %.2f %%',
                        source, processed) END
  FROM (SELECT count(*) AS rows, 100.0 * sum(has_source) / count(*) AS source,
               100.0 * sum(has_processed) / count(*) AS processed
          FROM temp.audit);
SELECT printf('%-24s %10d %10d %10d %8.2f', target, rows, filled, rows - filled,
              100.0 * filled / max(rows, 1))
  FROM (SELECT 'source_event_ts' AS target, count(*) AS rows, total(has_source) AS filled
          FROM temp.audit
         UNION ALL
        SELECT 'supervisor_processed_at', count(*), total(has_processed) FROM temp.audit);
SELECT char(10) || line FROM temp.line WHERE number = 1;

-- == The close examination ========================================================================

-- Of what the scan has left, step by step. Each row is looked up by its audit_id alone: under
-- any statistics that is a search, and a join is not. From BEGIN to COMMIT it is one view of the
-- store, so what is written meanwhile makes no difference.

-- The rows as they are now, and what kind of payload each has: 'object', 'none' (it has no
-- fields), 'malformed', or in words why SQLite cannot judge it.
CREATE VIEW temp.payload AS
SELECT *, CASE WHEN type NOT IN ('text', 'blob') OR trim(payload, blanks) = '' THEN 'none'
               WHEN type = 'blob' AND encoding <> 'UTF-8' THEN 'not judged: a BLOB'
               WHEN instr(payload, char(0)) OR instr(payload, '\u0000') THEN 'not judged: a NUL'
               WHEN payload GLOB escaped_letter THEN 'not judged: a name with an escape'
               WHEN length(payload) - length(replace(replace(payload, '[', ''), '{', '')) > 500
               THEN 'not judged: over 500 brackets'
               WHEN json_valid(payload)
               THEN CASE json_type(payload) WHEN 'object' THEN 'object' ELSE 'none' END
               WHEN payload GLOB '*NaN*' OR payload GLOB '*Infinity*'
               THEN 'not judged: NaN or Infinity'
               ELSE 'malformed' END AS kind
  FROM (SELECT audit_id, blanks, escaped_letter,
               (SELECT event_type LIKE '%SUPERVISOR%' FROM main.task_audits
                 WHERE audit_id = audit.audit_id) AS is_supervisors,
               (SELECT source_event_ts FROM main.task_audits
                 WHERE audit_id = audit.audit_id) AS source_event_ts,
               (SELECT supervisor_processed_at FROM main.task_audits
                 WHERE audit_id = audit.audit_id) AS supervisor_processed_at,
               (SELECT created_at FROM main.task_audits
                 WHERE audit_id = audit.audit_id) AS created_at,
               (SELECT typeof(payload) FROM main.task_audits
                 WHERE audit_id = audit.audit_id) AS type,
               (SELECT CAST(payload AS TEXT) FROM main.task_audits
                 WHERE audit_id = audit.audit_id) AS payload
          FROM temp.audit CROSS JOIN temp.rule
         WHERE source_us IS NULL
         LIMIT -1)
 CROSS JOIN pragma_encoding
 WHERE is_supervisors
 LIMIT -1;

-- The column's value, and each candidate that is there.
CREATE VIEW temp.value AS
SELECT *, typeof(value) AS type
  FROM (SELECT audit_id, target, rank, rank = 0 AS is_column, kind, blanks,
               CASE WHEN rank = 0
                    THEN CASE target WHEN 'source_event_ts' THEN source_event_ts
                                     ELSE supervisor_processed_at END
                    WHEN kind NOT IN ('object', 'none') THEN NULL
                    WHEN path IS NULL THEN created_at
                    WHEN kind = 'object' THEN json_extract(payload, path) END AS value
          FROM temp.payload CROSS JOIN temp.candidate
         LIMIT -1)
 WHERE value IS NOT NULL OR is_column
 LIMIT -1;

-- Candidates are stripped. AgentOS's readers strip nothing, and a day is its midnight to them.
CREATE VIEW temp.stripped AS
SELECT *, CASE WHEN type <> 'text' OR instr(value, char(0)) THEN NULL
               WHEN NOT is_column THEN trim(value, blanks)
               WHEN length(value) = 10 THEN value || 'T00:00'
               ELSE value END AS text
  FROM temp.value
 LIMIT -1;

-- The parts: either a number, or the minute, what is up to the zone, and the zone.
CREATE VIEW temp.part AS
SELECT *, substr(text, 1, 10) || 'T' || substr(text, 12, 5) AS minute,
       substr(text, 17, length(text) - 16 - length(rest)) AS clock,
       CASE WHEN rest GLOB ' ?*' AND NOT (is_column AND text GLOB '*[.,]* *')
            THEN substr(rest, 2) ELSE rest END AS zone
  FROM (SELECT *, ltrim(substr(text, 17), '0123456789:.,') AS rest,
               CASE WHEN is_column THEN NULL
                    WHEN type IN ('integer', 'real') THEN value
                    WHEN text GLOB '[1-9]*' AND text NOT GLOB '*[^0-9.]*'
                     AND text NOT GLOB '*.*.*' AND text NOT GLOB '*.'
                     AND instr(text || '.', '.') BETWEEN 10 AND 20
                    THEN CAST(text AS NUMERIC) END AS number
          FROM temp.stripped
         LIMIT -1)
 LIMIT -1;

-- us: the instant, NULL where it is no timestamp. utc: whether it carries a UTC offset.
-- A number is seconds, milliseconds, microseconds or nanoseconds of the years 2000 to 2099; its
-- whole and the rest are multiplied apart, for together they have too many digits. A text is a
-- moment that exists (strftime() gives back the same letters), in a spelling of rule 3; of the
-- column, in one that AgentOS's readers take. (They would take a day without hyphens and a
-- week's date too, which nobody writes there.)
CREATE VIEW temp.instant_of AS
SELECT *,
       CASE WHEN number IS NOT NULL THEN
           CASE WHEN number < 1e10
                THEN CAST(number AS INTEGER) * 1000000
                     + CAST(round((number - CAST(number AS INTEGER)) * 1e6) AS INTEGER)
                WHEN number < 1e13
                THEN CAST(number AS INTEGER) * 1000
                     + CAST(round((number - CAST(number AS INTEGER)) * 1e3) AS INTEGER)
                WHEN number < 1e16 THEN CAST(round(number) AS INTEGER)
                ELSE (CAST(number AS INTEGER) + 500) / 1000 END
       WHEN strftime('%Y-%m-%dT%H:%M', minute, '+0 days') = minute
        AND (is_column OR (minute GLOB '20*' AND substr(text, 11, 1) IN ('T', 't', ' ')))
        AND (clock = '' OR clock GLOB ':[0-5][0-9]'
             OR (clock GLOB ':[0-5][0-9][.,][0-9]*' AND substr(clock, 5) NOT GLOB '*[^0-9]*'
                 AND (is_column OR length(clock) <= 13)))
        AND (zone IN ('', 'Z') OR (zone IN ('z', 'UTC') AND NOT is_column)
             OR ((zone GLOB '[+-][0-9][0-9]' OR zone GLOB '[+-][0-9][0-9][0-5][0-9]'
                  OR zone GLOB '[+-][0-9][0-9]:[0-5][0-9]')
                 AND substr(zone, 2, 2) <= CASE WHEN is_column THEN '23' ELSE '14' END))
       THEN (strftime('%s', minute) + substr(clock, 2, 2)
             - CASE WHEN zone GLOB '[+-]*'
                    THEN (substr(zone, 1, 1) || '1')
                         * (substr(zone, 2, 2) * 60 + substr(replace(zone, ':', ''), 4)) * 60
                    ELSE 0 END) * 1000000
            + substr(substr(clock, 5) || '000000', 1, 6)
       END AS us,
       number IS NOT NULL OR zone <> '' AS utc
  FROM temp.part
 LIMIT -1;

CREATE TABLE temp.instant (audit_id INTEGER, target TEXT, rank INTEGER, kind TEXT, type TEXT,
                           text TEXT, us INTEGER, utc INTEGER,
                           PRIMARY KEY (audit_id, target, rank)) WITHOUT ROWID;
BEGIN;
INSERT INTO temp.instant
SELECT audit_id, target, rank, kind, type, CASE type WHEN 'text' THEN substr(value, 1, 36) END,
       CASE WHEN number IS NULL OR us BETWEEN 946684800000000 AND 4102444799999999 THEN us END,
       utc
  FROM temp.instant_of
 LIMIT -1;

-- One row for each column of each row, with what the rules say.
CREATE TABLE temp.examined (audit_id INTEGER, target TEXT, kind TEXT, type TEXT, us INTEGER,
                            utc INTEGER, winner INTEGER, passed_over INTEGER, finding TEXT,
                            PRIMARY KEY (audit_id, target)) WITHOUT ROWID;
INSERT INTO temp.examined
SELECT mine.audit_id, mine.target, mine.kind, mine.type, mine.us, mine.utc, winner,
       (SELECT count(*)
          FROM temp.instant AS other JOIN temp.candidate USING (target, rank)
         WHERE other.audit_id = mine.audit_id AND other.target = mine.target
           AND rank > 0 AND rank < coalesce(winner, 9) AND path IS NOT NULL),
       CASE WHEN mine.kind NOT IN ('object', 'none', 'malformed') THEN mine.kind
            WHEN mine.type = 'null' THEN
                CASE WHEN mine.kind = 'malformed' THEN 'the payload is not JSON'
                     WHEN best.us IS NULL THEN 'no usable timestamp'
                     WHEN sibling.type NOT IN ('text', 'null') THEN 'the other column holds no text'
                     ELSE 'should be filled' END
            WHEN best.us IS NULL THEN 'nothing to compare with'
            WHEN abs(mine.us - best.us) < 1000 THEN 'as the payload says'
            ELSE 'different' END
  FROM (SELECT *, (SELECT min(rank) FROM temp.instant AS usable
                    WHERE usable.audit_id = instant.audit_id AND usable.target = instant.target
                      AND rank > 0 AND us IS NOT NULL) AS winner
          FROM temp.instant
         WHERE rank = 0
         LIMIT -1) AS mine
  JOIN temp.instant AS sibling
    ON sibling.audit_id = mine.audit_id AND sibling.target <> mine.target AND sibling.rank = 0
  LEFT JOIN temp.instant AS best
    ON best.audit_id = mine.audit_id AND best.target = mine.target AND best.rank = winner;

-- What seems wrong is no fault where SQLite may read the JSON otherwise than Python does.
UPDATE temp.examined
   SET finding = coalesce((
        SELECT 'not judged: ' || CASE
               WHEN kind = 'object'
                AND (SELECT count(*) > count(DISTINCT key)
                       FROM json_each(payload)
                      WHERE key IN (SELECT field FROM temp.candidate
                                     WHERE target = examined.target AND path IS NOT NULL))
               THEN 'a name twice'
               -- Each letter that is not ASCII, once: it is UTF-8 if its code gives back the
               -- same bytes (SQLite has no code for the two that Unicode leaves out).
               WHEN EXISTS (
                   WITH RECURSIVE letter (rest) AS (
                       SELECT ltrim(coalesce(payload, '') || beside, ascii)
                        UNION ALL
                       SELECT ltrim(replace(rest, substr(rest, 1, 1), ' '), ascii)
                         FROM letter WHERE rest <> '')
                   SELECT * FROM letter
                    WHERE rest <> ''
                      AND substr(rest, 1, 1) NOT IN (char(unicode(rest)), char(65534), char(65535)))
               THEN 'bytes that are no UTF-8' END
          FROM (SELECT CAST(payload AS TEXT) AS payload,
                       CASE finding WHEN 'should be filled'
                                    THEN coalesce(source_event_ts, supervisor_processed_at, '')
                                    ELSE '' END AS beside,
                       (SELECT ascii FROM temp.rule) AS ascii
                  FROM main.task_audits
                 WHERE audit_id = examined.audit_id)), finding)
 WHERE finding IN ('different', 'should be filled');
COMMIT;

-- What has become of the values, counted.
CREATE TABLE temp.tally AS
SELECT 'source_event_ts' AS target, 0 AS missing, 'as the payload says' AS finding,
       count(source_us) AS number, NULL AS first, 0 AS passed_over, 0 AS unreadable,
       total(source_us > now_us) AS future, 0 AS outside, min(source_us) AS earliest,
       max(source_us) AS latest
  FROM temp.audit CROSS JOIN temp.rule
 UNION ALL
SELECT 'supervisor_processed_at', 0, 'as the payload says', count(processed_us), NULL, 0, 0,
       total(processed_us > now_us), 0, min(processed_us), max(processed_us)
  FROM temp.audit CROSS JOIN temp.rule
 UNION ALL
SELECT target, type = 'null', finding, count(*), min(audit_id), sum(passed_over),
       sum(us IS NULL AND type <> 'null'), total(us > now_us),
       total(us NOT BETWEEN 946684800000000 AND 4102444799999999), min(us), max(us)
  FROM temp.examined CROSS JOIN temp.rule
 GROUP BY 1, 2, 3;

-- A value is a stranger's text: shown where it is printable, and cut.
CREATE VIEW temp.shown AS
SELECT audit_id, target, rank,
       CASE WHEN type = 'null' THEN 'NULL'
            WHEN type = 'text' AND text GLOB '*[^ -~]*' THEN '(not printable)'
            WHEN type = 'text' AND length(text) > 35 THEN substr(text, 1, 32) || '...'
            WHEN type = 'text' THEN text
            WHEN us IS NOT NULL THEN strftime('%Y-%m-%dT%H:%M:%S', us / 1000000, 'unixepoch')
                                     || printf('.%06dZ', us % 1000000)
            ELSE '(no text)' END AS text
  FROM temp.instant;
CREATE TABLE temp.comparison AS
SELECT audit_id, target, finding,
       (SELECT text FROM temp.shown
         WHERE audit_id = row.audit_id AND target = row.target AND rank = 0) AS holds,
       coalesce((SELECT text FROM temp.shown
                  WHERE audit_id = row.audit_id AND target = row.target AND rank = winner), '-')
           AS says,
       coalesce((SELECT field FROM temp.candidate WHERE target = row.target AND rank = winner), '-')
           AS field
  FROM (SELECT * FROM temp.examined
         WHERE audit_id IN (SELECT audit_id FROM temp.audit ORDER BY audit_id DESC LIMIT 10)
            OR audit_id IN (SELECT audit_id FROM temp.examined WHERE finding = 'different'
                             LIMIT 3)) AS row;

SELECT '
2. Consistency: whether a column says what the payload says, as instants

finding                                source_event_ts  supervisor_processed_at';
SELECT printf('%-38s %15d %24d', finding, total(number * (target = 'source_event_ts')),
              total(number * (target <> 'source_event_ts')))
  FROM (SELECT target, finding, number FROM temp.tally WHERE NOT missing
         UNION ALL
        SELECT target, 'payload fields there and unusable', passed_over FROM temp.tally)
 GROUP BY finding
 ORDER BY finding = 'payload fields there and unusable', finding;
SELECT printf('
audit_id %d, %s
holds  %s
says   %s  (%s)', audit_id, target, holds, says, field)
  FROM temp.comparison
 WHERE finding = 'different'
 ORDER BY audit_id, target
 LIMIT 3;
INSERT INTO temp.verdict
SELECT 2, 'consistency',
       CASE WHEN different > 0 THEN 'FAIL' WHEN number = 0 THEN 'INFO' WHEN agree = 0 THEN 'WARN'
            ELSE 'PASS' END,
       printf('%d values differ, %d agree, %d not judged', different, agree,
              number - different - agree)
  FROM (SELECT total(number) AS number,
               total(number * (finding = 'different')) AS different,
               total(number * (finding = 'as the payload says')) AS agree
          FROM temp.tally
         WHERE NOT missing);
SELECT char(10) || line FROM temp.line WHERE number = 2;

SELECT '
3. Distribution: the Supervisor''s rows by event type

event_type                                     rows     filled  with a NULL';
SELECT printf('%-40s %10d %10d %12d', type, rows, filled, rows - filled)
  FROM (SELECT CASE WHEN event_type GLOB '*[^ -~]*' THEN '(not printable)'
                    ELSE substr(event_type, 1, 40) END AS type,
               count(*) AS rows, sum(has_source AND has_processed) AS filled
          FROM temp.audit
         GROUP BY 1
         ORDER BY rows DESC, type
         LIMIT 20);
INSERT INTO temp.verdict
SELECT 3, 'distribution', 'INFO',
       printf('%d event types, %d rows', count(DISTINCT event_type), count(*))
  FROM temp.audit;
SELECT char(10) || line FROM temp.line WHERE number = 3;

SELECT '
4. Index use: the plan of a query for a time range
';
EXPLAIN QUERY PLAN
SELECT audit_id FROM task_audits
 WHERE source_event_ts >= '2026-01-01' AND source_event_ts < '2026-02-01'
   AND supervisor_processed_at IS NOT NULL;
-- What an index holds counts, not its name: its columns in order, compared as they are, and
-- its condition, which may leave out no row but those with a NULL in one of the two columns.
CREATE TABLE temp.index_text AS
SELECT name, lower(sql) AS sql FROM main.sqlite_master WHERE type = 'index';
UPDATE temp.index_text
   SET sql = replace(replace(replace(replace(sql, ' ', ''), char(9), ''), char(10), ''),
                     char(13), '');
UPDATE temp.index_text
   SET sql = replace(replace(replace(replace(replace(sql, '"', ''), '`', ''), '[', ''), ']', ''),
                     'isnotnull', 'notnull');
CREATE TABLE temp.serving AS
SELECT columns || ',' AS columns, instr(condition, 'supervisor_processed_at') > 0 AS needs_both
  FROM (SELECT (SELECT group_concat(CASE coll WHEN 'BINARY' THEN coalesce(lower(name), '?')
                                              ELSE '?' END, ', ')
                  FROM pragma_index_xinfo(list.name, 'main') WHERE key) AS columns,
               CASE WHEN partial THEN substr(sql, instr(sql, ')where') + 6) ELSE '' END AS condition
          FROM pragma_index_list('task_audits', 'main') AS list
          LEFT JOIN temp.index_text USING (name))
 WHERE replace(replace(replace(replace(replace(condition, 'source_event_tsnotnull', ''),
               'supervisor_processed_atnotnull', ''), 'and', ''), '(', ''), ')', '') = '';
CREATE TABLE temp.missing AS
SELECT column1 AS name, column2 AS columns, column3 AS condition,
       column1 = 'idx_task_audits_event_source_ts' AS left_out_by_v24
  FROM (VALUES
        ('idx_task_audits_source_event_ts', 'source_event_ts', 'source_event_ts IS NOT NULL'),
        ('idx_task_audits_decision_lag', 'source_event_ts, supervisor_processed_at',
         'source_event_ts IS NOT NULL AND supervisor_processed_at IS NOT NULL'),
        -- Migration v24 does not make this one again.
        ('idx_task_audits_event_source_ts', 'event_type, source_event_ts',
         'source_event_ts IS NOT NULL'))
 WHERE NOT EXISTS (SELECT * FROM temp.serving
                    WHERE columns GLOB column2 || ',*'
                      AND needs_both <= (column3 GLOB '*supervisor_processed_at*'));
SELECT printf('missing:
CREATE INDEX %s
    ON task_audits (%s)
    WHERE %s;', name, columns, condition)
  FROM temp.missing;
INSERT INTO temp.verdict
SELECT 4, 'index use',
       CASE WHEN NOT EXISTS (SELECT * FROM temp.serving
                              WHERE columns GLOB 'source_event_ts,*') THEN 'FAIL'
            WHEN count(*) = 0 THEN 'PASS'
            WHEN min(left_out_by_v24) THEN 'INFO'
            ELSE 'WARN' END,
       CASE count(*) WHEN 0 THEN 'all indexes of v21 are there'
                     WHEN 1 THEN 'missing: ' || name
                     ELSE printf('%d indexes of v21 are missing', count(*)) END
  FROM temp.missing;
SELECT char(10) || line FROM temp.line WHERE number = 4;

SELECT '
5. Timestamp sanity: range, and whether AgentOS can read the values

column                   earliest                    latest';
SELECT printf('%-24s %-27s %s', target,
              strftime('%Y-%m-%dT%H:%M:%S', min(earliest) / 1000000, 'unixepoch')
              || printf('.%06dZ', abs(min(earliest) % 1000000)),
              strftime('%Y-%m-%dT%H:%M:%S', max(latest) / 1000000, 'unixepoch')
              || printf('.%06dZ', abs(max(latest) % 1000000)))
  FROM temp.tally
 GROUP BY target;
SELECT '
column                     unreadable  in the future  outside 2000-2099';
SELECT printf('%-24s %12d %14d %18d', target, total(unreadable), total(future), total(outside))
  FROM temp.tally
 GROUP BY target;
-- Both values of a row.
CREATE VIEW temp.pair AS
SELECT processed.us - source.us AS us, source.utc <> processed.utc AS mixed
  FROM temp.examined AS source JOIN temp.examined AS processed USING (audit_id)
 WHERE source.target = 'source_event_ts' AND source.us IS NOT NULL
   AND processed.target = 'supervisor_processed_at' AND processed.us IS NOT NULL;
INSERT INTO temp.verdict
SELECT 5, 'timestamp sanity',
       CASE WHEN unreadable + mixed > 0 THEN 'FAIL' WHEN odd > 0 THEN 'WARN'
            WHEN number = 0 THEN 'INFO' ELSE 'PASS' END,
       printf('%d unreadable, %d mixed pairs, %d out of range', unreadable, mixed, odd)
  FROM (SELECT total(number * NOT missing) AS number, total(unreadable) AS unreadable,
               total(future) + total(outside) AS odd,
               (SELECT total(mixed) FROM temp.pair) AS mixed
          FROM temp.tally);
SELECT char(10) || line FROM temp.line WHERE number = 5;

SELECT '
6. Remaining NULLs: why a column is still NULL

cause                                  source_event_ts  supervisor_processed_at';
SELECT printf('%-38s %15d %24d
    the first is audit_id %d', finding, total(number * (target = 'source_event_ts')),
              total(number * (target <> 'source_event_ts')), min(first))
  FROM temp.tally
 WHERE missing
 GROUP BY finding;
INSERT INTO temp.verdict
SELECT 6, 'remaining NULLs',
       CASE WHEN forgotten > 0 THEN 'FAIL' WHEN with_null > 0 THEN 'WARN'
            WHEN NOT EXISTS (SELECT * FROM temp.audit) THEN 'INFO' ELSE 'PASS' END,
       CASE WHEN with_null = 0 THEN 'none'
            ELSE printf('%d rows have a NULL, %d should be filled', with_null, forgotten) END
  FROM (SELECT count(DISTINCT audit_id) AS with_null,
               count(DISTINCT CASE finding WHEN 'should be filled' THEN audit_id END) AS forgotten
          FROM temp.examined
         WHERE type = 'null');
SELECT char(10) || line FROM temp.line WHERE number = 6;

SELECT '
7. Latest rows: the columns beside what the payload says, and in which field

       source_event_ts                      supervisor_processed_at';
SELECT printf('
audit_id %d  %s
holds  %-35s  %s
says   %-35s  %s
from   %-35s  %s', audit.audit_id,
              CASE WHEN event_type GLOB '*[^ -~]*' THEN '(not printable)'
                   ELSE substr(event_type, 1, 40) END,
              source.holds, processed.holds, source.says, processed.says,
              source.field, processed.field)
  FROM (SELECT audit_id, event_type FROM temp.audit ORDER BY audit_id DESC LIMIT 10) AS audit
  JOIN temp.comparison AS source USING (audit_id)
  JOIN temp.comparison AS processed ON processed.audit_id = audit.audit_id
 WHERE source.target = 'source_event_ts' AND processed.target = 'supervisor_processed_at'
 ORDER BY audit.audit_id DESC;
INSERT INTO temp.verdict
SELECT 7, 'latest rows', 'INFO', printf('%d rows shown', min(count(*), 10)) FROM temp.audit;
SELECT char(10) || line FROM temp.line WHERE number = 7;

SELECT '
8. Decision lag: from the event to the decision, in seconds

pairs       average        p50        p95    maximum  negative';
-- In order, so that the key is the place.
CREATE TABLE temp.lag (place INTEGER PRIMARY KEY, us INTEGER);
INSERT INTO temp.lag (us)
SELECT processed_us - source_us AS us FROM temp.audit WHERE source_us IS NOT NULL
 UNION ALL
SELECT us FROM temp.pair WHERE NOT mixed
 ORDER BY us;
SELECT printf('%-8d %10.3f %10.3f %10.3f %10.3f %9d', count(*), avg(us) / 1e6,
              (SELECT us FROM temp.lag
                WHERE place = (SELECT (count(*) * 50 + 99) / 100 FROM temp.lag)) / 1e6,
              (SELECT us FROM temp.lag
                WHERE place = (SELECT (count(*) * 95 + 99) / 100 FROM temp.lag)) / 1e6,
              max(us) / 1e6, sum(us < 0))
  FROM temp.lag
 GROUP BY NULL;
INSERT INTO temp.verdict
SELECT 8, 'decision lag', 'INFO',
       CASE count(*) WHEN 0 THEN 'no pair to measure'
            ELSE printf('%d pairs, average %.3f s, %d negative', count(*), avg(us) / 1e6,
                        sum(us < 0)) END
  FROM temp.lag;
SELECT char(10) || line FROM temp.line WHERE number = 8;

-- == The end ======================================================================================

SELECT char(10) || 'WARN: ' || group_concat(number || ' ' || name, ', ')
  FROM (SELECT number, name FROM temp.verdict WHERE verdict = 'WARN' ORDER BY number)
 GROUP BY NULL;
SELECT char(10) || CASE count(*) WHEN 0 THEN 'No check fails.'
                   ELSE 'FAIL: ' || group_concat(number || ' ' || name, ', ') END
  FROM (SELECT number, name FROM temp.verdict WHERE verdict = 'FAIL' ORDER BY number);
-- An error raised on purpose makes the exit code 1.
CREATE TABLE temp.gate (failed INTEGER CONSTRAINT "the line above names the checks that fail"
                        CHECK (failed = 0));
INSERT INTO temp.gate SELECT count(*) FROM temp.verdict WHERE verdict = 'FAIL';
