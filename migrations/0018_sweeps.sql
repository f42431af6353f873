-- What sweeps read: only rows that are due, or a page of them in the order of an index, however many are up.

-- When a workspace was last heard, to the minute; 1970 if never. Indexes have this instead of `last_heartbeat_at`, which
-- changes with every beat that is stored: most of these stay updates that touch no index.
ALTER TABLE workspaces ADD COLUMN beat_minute timestamptz GENERATED ALWAYS AS
    (coalesce(date_bin('1 minute', last_heartbeat_at, '1970-01-01 00:00:00+00'), '1970-01-01 00:00:00+00')) STORED;
-- Who is silent. It serves what is asked by status alone too.
CREATE INDEX workspaces_status_beat_minute_idx ON workspaces (status, beat_minute, id);
DROP INDEX workspaces_status_idx;
-- What should run on an engine, page by page.
CREATE INDEX workspaces_engine_id_idx ON workspaces (engine_id, id) WHERE status IN ('online', 'degraded');
-- Until when it may be idle by its own minutes; since when it is where they are NULL. Zero minutes stand for never. In UTC,
-- since only without a time zone adding minutes is the same everywhere.
ALTER TABLE workspaces ADD COLUMN idle_until timestamptz GENERATED ALWAYS AS
    ((idle_since AT TIME ZONE 'UTC' + make_interval(mins => coalesce(hibernation_idle_minutes, 0))) AT TIME ZONE 'UTC') STORED;
CREATE INDEX workspaces_idle_until_idx ON workspaces (status, (hibernation_idle_minutes IS NULL), idle_until, id)
    WHERE coalesce(hibernation_idle_minutes, 1) > 0;
DROP INDEX workspaces_hibernation_idx;

-- What a moving tag named when `image-watch` looked last, and since when it names something else than before, while
-- somebody may still run that.
CREATE TABLE watched_images (
    template_name text CONSTRAINT watched_images_pk PRIMARY KEY,
    reference text NOT NULL,
    sha256_digest text NOT NULL CHECK (sha256_digest ~ '^[0-9a-f]{64}$'),
    moved_at timestamptz,
    seen_at timestamptz NOT NULL DEFAULT longshore_now()
);
