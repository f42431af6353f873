-- What operators decided about the image of a runtime. The pin that is in force stays in runtime_image_pins.
CREATE TABLE image_pin_changes (
    id bigint GENERATED ALWAYS AS IDENTITY CONSTRAINT image_pin_changes_pk PRIMARY KEY,
    template_name text NOT NULL,
    from_digest text CHECK (from_digest ~ '^[0-9a-f]{64}$'),
    to_digest text CHECK (to_digest ~ '^[0-9a-f]{64}$'),
    changed_by text NOT NULL,
    notes text,
    changed_at timestamptz NOT NULL DEFAULT longshore_now()
);
CREATE INDEX image_pin_changes_template_name_idx ON image_pin_changes (template_name, id);

CREATE TYPE image_rollout_state AS ENUM ('running', 'held', 'rolling_back', 'done', 'aborted', 'rolled_back');

-- A digest on its way to the workspaces of a runtime, ring by ring. `rings` are shares in percent of all of them, each
-- with what the rings before it took; `ring` is the index of the one that is being taken.
CREATE TABLE image_rollouts (
    id uuid CONSTRAINT image_rollouts_pk PRIMARY KEY,
    template_name text NOT NULL,
    sha256_digest text NOT NULL CHECK (sha256_digest ~ '^[0-9a-f]{64}$'),
    rings integer[] NOT NULL,
    max_failures integer NOT NULL CHECK (max_failures >= 0),
    soak_seconds integer NOT NULL CHECK (soak_seconds >= 0),
    state image_rollout_state NOT NULL DEFAULT 'running',
    reason text,
    ring integer NOT NULL DEFAULT 0,
    checked boolean NOT NULL DEFAULT false,
    soaking_since timestamptz,
    -- It has set the pin, and what the pin was before; rolled back it goes back to that.
    pinned boolean NOT NULL DEFAULT false,
    previous_pin text,
    job_id uuid,
    created_by text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT longshore_now(),
    updated_at timestamptz NOT NULL DEFAULT longshore_now()
);
CREATE INDEX image_rollouts_template_name_idx ON image_rollouts (template_name, created_at);
CREATE UNIQUE INDEX image_rollouts_open_uk ON image_rollouts (template_name)
    WHERE state IN ('running', 'held', 'rolling_back');

CREATE TYPE image_rollout_part AS ENUM ('taken', 'up', 'failed', 'left', 'restoring', 'restored', 'lost');

-- What a rollout took. `generation` is the workspace's when its restart was asked for: one that has begun has a higher.
CREATE TABLE image_rollout_workspaces (
    rollout_id uuid NOT NULL REFERENCES image_rollouts (id) ON DELETE CASCADE,
    workspace_id uuid NOT NULL REFERENCES workspaces (id) ON DELETE CASCADE,
    ring integer NOT NULL,
    part image_rollout_part NOT NULL,
    previous_digest text CHECK (previous_digest ~ '^[0-9a-f]{64}$'),
    generation bigint NOT NULL,
    job_id uuid,
    reason text,
    asked_at timestamptz NOT NULL DEFAULT longshore_now(),
    CONSTRAINT image_rollout_workspaces_pk PRIMARY KEY (rollout_id, workspace_id)
);
CREATE INDEX image_rollout_workspaces_workspace_id_idx ON image_rollout_workspaces (workspace_id);

-- What one workspace runs whatever the pin of its runtime says, because a rollout took it or took it back. Goes with the
-- next decision about the pin.
CREATE TABLE workspace_image_pins (
    workspace_id uuid CONSTRAINT workspace_image_pins_pk PRIMARY KEY REFERENCES workspaces (id) ON DELETE CASCADE,
    template_name text NOT NULL,
    sha256_digest text NOT NULL CHECK (sha256_digest ~ '^[0-9a-f]{64}$'),
    set_at timestamptz NOT NULL DEFAULT longshore_now()
);
CREATE INDEX workspace_image_pins_template_name_idx ON workspace_image_pins (template_name);
