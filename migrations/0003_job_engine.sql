-- The job engine. Live jobs in `jobs`, finished ones in `job_history`; no foreign key points at either.

CREATE TYPE job_state AS ENUM ('scheduled', 'queued', 'running');
CREATE TYPE job_outcome AS ENUM ('succeeded', 'dead', 'cancelled', 'superseded');
-- Why a scheduled job is where it is: `ready` = due and first on its keys, only admission stands between;
-- `key` = due, behind another job on one of its keys; `time` = not due yet.
CREATE TYPE job_wait AS ENUM ('ready', 'key', 'time');

CREATE TABLE jobs (
    id uuid CONSTRAINT jobs_pk PRIMARY KEY,
    seq bigint GENERATED ALWAYS AS IDENTITY,
    kind text NOT NULL,
    queue text NOT NULL,
    tenant text NOT NULL,
    workspace_id uuid,
    keys text[] NOT NULL DEFAULT '{}',
    dedupe_key text,
    args jsonb NOT NULL,
    args_version smallint NOT NULL,
    -- Smaller runs first.
    priority smallint NOT NULL DEFAULT 0,
    state job_state NOT NULL DEFAULT 'scheduled',
    wait job_wait NOT NULL,
    backing_off boolean NOT NULL DEFAULT false,
    dispatch integer NOT NULL DEFAULT 0,
    republished smallint NOT NULL DEFAULT 0,
    attempt integer NOT NULL DEFAULT 0,
    crashes integer NOT NULL DEFAULT 0,
    snoozes integer NOT NULL DEFAULT 0,
    max_attempts integer NOT NULL,
    run_at timestamptz NOT NULL,
    deadline_at timestamptz NOT NULL,
    worker text,
    token uuid,
    cancel_requested jsonb,
    progress jsonb,
    -- Counts every change a watcher of the job would want to see; the id of its stream events.
    revision bigint NOT NULL DEFAULT 0,
    errors jsonb NOT NULL DEFAULT '[]',
    trace_context text,
    created_by text NOT NULL,
    created_at timestamptz NOT NULL,
    queued_at timestamptz,
    started_at timestamptz
) WITH (
    fillfactor = 70,
    autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0,
    autovacuum_analyze_scale_factor = 0.05
);

CREATE UNIQUE INDEX jobs_kind_dedupe_key_uk ON jobs (kind, dedupe_key)
    WHERE dedupe_key IS NOT NULL AND state IN ('scheduled', 'queued');
CREATE INDEX jobs_ready_idx ON jobs (queue, priority, seq) WHERE state = 'scheduled' AND wait = 'ready';
CREATE INDEX jobs_due_idx ON jobs (queue, run_at) WHERE state = 'scheduled' AND wait = 'time';
-- Who else wants a key. Jobs with several keys are few; theirs stand in `job_keys`.
CREATE INDEX jobs_key_idx ON jobs ((keys[1]), seq) WHERE state = 'scheduled' AND wait <> 'time' AND cardinality(keys) = 1;
CREATE INDEX jobs_queued_idx ON jobs (queue, queued_at) WHERE state = 'queued';
CREATE INDEX jobs_running_idx ON jobs (worker) WHERE state = 'running';
CREATE INDEX jobs_workspace_id_idx ON jobs (workspace_id) WHERE workspace_id IS NOT NULL;

-- The keys of live jobs that have more than one.
CREATE TABLE job_keys (
    key text NOT NULL,
    job_id uuid NOT NULL,
    CONSTRAINT job_keys_pk PRIMARY KEY (key, job_id)
);

CREATE TABLE job_slots (
    key text CONSTRAINT job_slots_pk PRIMARY KEY,
    job_id uuid NOT NULL
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0);

CREATE TABLE job_history (
    id uuid NOT NULL,
    outcome job_outcome NOT NULL,
    finished_at timestamptz NOT NULL,
    seq bigint NOT NULL,
    kind text NOT NULL,
    queue text NOT NULL,
    tenant text NOT NULL,
    workspace_id uuid,
    keys text[] NOT NULL,
    dedupe_key text,
    args jsonb NOT NULL,
    args_version smallint NOT NULL,
    priority smallint NOT NULL,
    dispatch integer NOT NULL,
    attempt integer NOT NULL,
    crashes integer NOT NULL,
    snoozes integer NOT NULL,
    max_attempts integer NOT NULL,
    run_at timestamptz NOT NULL,
    deadline_at timestamptz NOT NULL,
    worker text,
    cancel_requested jsonb,
    progress jsonb,
    revision bigint NOT NULL,
    errors jsonb NOT NULL,
    trace_context text,
    created_by text NOT NULL,
    created_at timestamptz NOT NULL,
    started_at timestamptz,
    result jsonb
) PARTITION BY LIST (outcome);

-- One branch per outcome, each split by day; retention drops whole days. The default leaf takes what has no day yet.
CREATE TABLE job_history_succeeded PARTITION OF job_history FOR VALUES IN ('succeeded') PARTITION BY RANGE (finished_at);
CREATE TABLE job_history_dead PARTITION OF job_history FOR VALUES IN ('dead') PARTITION BY RANGE (finished_at);
CREATE TABLE job_history_cancelled PARTITION OF job_history FOR VALUES IN ('cancelled') PARTITION BY RANGE (finished_at);
CREATE TABLE job_history_superseded PARTITION OF job_history FOR VALUES IN ('superseded') PARTITION BY RANGE (finished_at);
CREATE TABLE job_history_succeeded_default PARTITION OF job_history_succeeded DEFAULT;
CREATE TABLE job_history_dead_default PARTITION OF job_history_dead DEFAULT;
CREATE TABLE job_history_cancelled_default PARTITION OF job_history_cancelled DEFAULT;
CREATE TABLE job_history_superseded_default PARTITION OF job_history_superseded DEFAULT;

CREATE INDEX job_history_id_idx ON job_history (id);
CREATE INDEX job_history_workspace_id_idx ON job_history (workspace_id, id) WHERE workspace_id IS NOT NULL;

CREATE TABLE workers (
    name text CONSTRAINT workers_pk PRIMARY KEY,
    host text NOT NULL,
    version text NOT NULL,
    -- [{kind, args_versions}] this process can run, and the queues it reads.
    kinds jsonb NOT NULL,
    queues text[] NOT NULL,
    engine_id text,
    slots integer NOT NULL,
    beat bigint NOT NULL DEFAULT 0,
    draining boolean NOT NULL DEFAULT false,
    started_at timestamptz NOT NULL DEFAULT longshore_now(),
    last_beat_at timestamptz NOT NULL DEFAULT longshore_now()
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.01);

-- Page ranges by deadline, so that looking for overdue jobs does not read the whole backlog.
CREATE INDEX jobs_deadline_at_idx ON jobs USING brin (deadline_at) WITH (pages_per_range = 32, autosummarize = on);
