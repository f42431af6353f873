-- What jobs work on that cannot be made again: files of imported workspaces. Found by the workspace; dropped when a start
-- has delivered it, when its job is put away, and with the workspace. No foreign key points at the jobs.
CREATE TABLE job_payloads (
    job_id uuid CONSTRAINT job_payloads_pk PRIMARY KEY,
    workspace_id uuid NOT NULL REFERENCES workspaces (id) ON DELETE CASCADE,
    payload jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT longshore_now()
);
CREATE INDEX job_payloads_workspace_id_idx ON job_payloads (workspace_id);
