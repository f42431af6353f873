-- Vacuum summarises these indexes. By themselves they would ask for it at every few pages that are new: more often than
-- Postgres notes such requests when many jobs end, and each that it does not note is a line in its log, statement and all.
ALTER INDEX jobs_deadline_at_idx SET (autosummarize = off);
DROP INDEX job_history_finished_at_idx;
CREATE INDEX job_history_finished_at_idx ON job_history USING brin (finished_at) WITH (pages_per_range = 32);
