-- The event log. Append only; rows survive the purge of what they are about, so there is no foreign key.
CREATE TABLE structure_events (
    id uuid CONSTRAINT structure_events_pk PRIMARY KEY,
    -- Readers take rows below pg_snapshot_xmin(pg_current_snapshot()) in (xid, seq) order: no row appears behind a reader's back.
    xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
    seq bigint GENERATED ALWAYS AS IDENTITY,
    event_type text NOT NULL,
    workspace_id uuid,
    agent_id uuid,
    target_id uuid,
    payload jsonb NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL DEFAULT longshore_now()
);
CREATE UNIQUE INDEX structure_events_xid_seq_uk ON structure_events (xid, seq);
CREATE INDEX structure_events_workspace_id_idx ON structure_events (workspace_id, seq);
CREATE INDEX structure_events_created_at_idx ON structure_events (created_at);
