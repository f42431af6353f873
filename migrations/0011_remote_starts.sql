-- Starts that cannot be repeated. Written before the call, cleared when it is known what became of it: under which
-- generation it was made, and from when on its answer cannot come any more.
ALTER TABLE workspaces
    ADD COLUMN start_called_as bigint,
    ADD COLUMN start_certain_at timestamptz,
    ADD CONSTRAINT workspaces_start_called_ck CHECK ((start_called_as IS NULL) = (start_certain_at IS NULL));
CREATE INDEX workspaces_start_called_idx ON workspaces (start_certain_at) WHERE start_called_as IS NOT NULL;
