-- When heartbeats can be delivered, so that an outage of ours is not taken for the silence of agents; and what sweeps ask for.

-- One row, written every few seconds by every process that accepts heartbeats.
CREATE TABLE heartbeat_intake (
    singleton boolean CONSTRAINT heartbeat_intake_pk PRIMARY KEY DEFAULT true CHECK (singleton),
    -- Since when they have been accepted without a gap.
    since timestamptz NOT NULL,
    seen_at timestamptz NOT NULL
) WITH (fillfactor = 10);

-- What the sweep for leaks has to know: open rows, and those an operator keeps.
CREATE INDEX leaks_known_idx ON leaks (backend, engine_id) WHERE resolved_at IS NULL OR state = 'kept';

-- The few workspaces that run elsewhere have a sweep of their own, which must not read all the others.
CREATE INDEX workspaces_external_status_idx ON workspaces (status) WHERE runtime = 'external';
