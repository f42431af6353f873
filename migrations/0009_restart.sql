-- Restarts, and what was to be stopped and may still run.

-- `workspace_id` has no foreign key: what is left behind outlives its row.
CREATE TABLE leaks (
    id uuid CONSTRAINT leaks_pk PRIMARY KEY,
    found_at timestamptz NOT NULL DEFAULT longshore_now(),
    -- Who wanted it stopped: restart, auto-restart, pause, hibernate, purge, provision, sweep.
    source text NOT NULL,
    workspace_id uuid,
    backend text NOT NULL,
    engine_id text,
    resource text NOT NULL CHECK (resource IN ('container', 'volume', 'instance')),
    resource_id text NOT NULL,
    -- The last refusal, in public words.
    error text NOT NULL,
    attempts integer NOT NULL,
    state text NOT NULL DEFAULT 'suspected'
        CHECK (state IN ('suspected', 'confirmed', 'adopted', 'removed', 'gone', 'kept')),
    resolved_at timestamptz
);
-- One open row for one thing, however often its stop fails.
CREATE UNIQUE INDEX leaks_open_uk ON leaks (backend, resource, resource_id) WHERE resolved_at IS NULL;
CREATE INDEX leaks_found_at_idx ON leaks (found_at, id);

-- When automatic restarts of the last while began: what the crash-loop budget is counted from.
ALTER TABLE workspaces ADD COLUMN auto_restarted_at timestamptz[] NOT NULL DEFAULT '{}';
-- What the agent is told about its restart once it is online; taken by whoever sees it come online.
ALTER TABLE workspaces ADD COLUMN restart_context jsonb;
