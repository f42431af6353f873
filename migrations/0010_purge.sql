-- Purging workspaces: a deleted row makes Postgres look for rows that name it as their successor.
CREATE INDEX workspaces_forwarded_to_idx ON workspaces (forwarded_to) WHERE forwarded_to IS NOT NULL;
