-- The operator's hands on the queues, and fairness between tenants.

CREATE TYPE control_scope AS ENUM ('queue', 'all', 'kind', 'engine', 'tenant', 'workspace');
CREATE TYPE control_mode AS ENUM ('pause', 'drain', 'reject');

-- What holds work back, now and before. `queue` is the mode of a queue, the others are holds; no row means `run`.
-- Ended rows stay: time under a control does not count against a job's deadline.
CREATE TABLE queue_controls (
    id uuid CONSTRAINT queue_controls_pk PRIMARY KEY,
    -- In the order of commits, since changes exclude each other: what workers say they have seen.
    seq bigint GENERATED ALWAYS AS IDENTITY CONSTRAINT queue_controls_seq_uk UNIQUE,
    scope control_scope NOT NULL,
    -- A kind, an engine id, a tenant or a workspace id; empty for `all`.
    value text NOT NULL DEFAULT '',
    mode control_mode NOT NULL,
    reason text,
    set_by text NOT NULL,
    since timestamptz NOT NULL,
    -- It lifts itself then.
    until timestamptz,
    ended_at timestamptz,
    ended_by text,
    CHECK ((scope = 'all') = (value = ''))
);
CREATE INDEX queue_controls_open_idx ON queue_controls (scope, value) WHERE ended_at IS NULL;
CREATE INDEX queue_controls_ended_at_idx ON queue_controls (ended_at) WHERE ended_at IS NOT NULL;
CREATE UNIQUE INDEX queue_controls_queue_uk ON queue_controls (value) WHERE scope = 'queue' AND ended_at IS NULL;

-- What an operator allows a queue at most; no row or NULL means no limit.
CREATE TABLE queue_limits (
    queue text CONSTRAINT queue_limits_pk PRIMARY KEY,
    max_running integer CHECK (max_running >= 0),
    max_per_worker integer CHECK (max_per_worker >= 0),
    rate_per_minute integer CHECK (rate_per_minute >= 0),
    -- Admissions are spaced evenly; the next one is not before this.
    next_at timestamptz,
    set_by text NOT NULL,
    since timestamptz NOT NULL
);

-- Start-time fair queueing: where each tenant that was served lately stands, and the queue's virtual clock.
CREATE TABLE queue_tenants (
    queue text NOT NULL,
    tenant text NOT NULL,
    tag double precision NOT NULL,
    served_at timestamptz NOT NULL,
    CONSTRAINT queue_tenants_pk PRIMARY KEY (queue, tenant)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.01);
CREATE TABLE queue_clocks (
    queue text CONSTRAINT queue_clocks_pk PRIMARY KEY,
    virtual_time double precision NOT NULL
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.01);

-- How many admitted jobs this worker wants ahead of its slots, and how many slots it has, by queue: {"provision@…": [1, 8]}.
ALTER TABLE workers ADD COLUMN windows jsonb NOT NULL DEFAULT '{}';
-- The newest control this worker has seen, after everything it had claimed before has begun.
ALTER TABLE workers ADD COLUMN seen_control bigint NOT NULL DEFAULT 0;

DROP INDEX jobs_ready_idx;
CREATE INDEX jobs_ready_idx ON jobs (queue, tenant, priority, seq) WHERE state = 'scheduled' AND wait = 'ready';

-- Rates of the last minute, and dead jobs by kind: what `GET /queues` shows.
CREATE INDEX job_history_finished_at_idx ON job_history USING brin (finished_at) WITH (pages_per_range = 32, autosummarize = on);
CREATE INDEX job_history_dead_kind_idx ON job_history_dead (kind, id);
