-- What the control plane knows of workspaces, their secrets, tokens and settings.

-- One row: who we are to the outside. Everything made in an engine carries this id as a label.
CREATE TABLE installation (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    id uuid NOT NULL DEFAULT gen_random_uuid(),
    -- Only tests move the clock.
    clock_offset interval NOT NULL DEFAULT '0'
);
INSERT INTO installation DEFAULT VALUES;

-- The one clock of the system. Not `now()`: a long transaction must not see a frozen time.
CREATE FUNCTION longshore_now() RETURNS timestamptz LANGUAGE sql VOLATILE PARALLEL SAFE AS
    $$ SELECT clock_timestamp() + clock_offset FROM installation $$;

CREATE TYPE workspace_status AS ENUM (
    'provisioning', 'online', 'offline', 'degraded', 'failed',
    'removed', 'paused', 'hibernated', 'hibernating', 'awaiting_agent'
);

CREATE TABLE workspaces (
    id uuid CONSTRAINT workspaces_pk PRIMARY KEY,
    name text NOT NULL,
    role text,
    tier integer NOT NULL DEFAULT 2 CHECK (tier BETWEEN 1 AND 4),
    status workspace_status NOT NULL DEFAULT 'provisioning',
    runtime text NOT NULL DEFAULT 'claude-code',
    -- The template named at create; a restart never applies it again by itself.
    template text,
    parent_id uuid REFERENCES workspaces (id) ON DELETE SET NULL,
    awareness_namespace text,
    workspace_dir text,
    workspace_access varchar(20) NOT NULL DEFAULT 'none'
        CHECK (workspace_access IN ('none', 'read_only', 'read_write')),
    url text NOT NULL DEFAULT '',
    delivery_mode text CHECK (delivery_mode IN ('push', 'poll')),
    agent_card jsonb,
    instance_id text,
    container_id text,
    engine_id text,
    runtime_image_digest text,
    platform_inbound_secret text,
    last_heartbeat_at timestamptz,
    last_outbound_at timestamptz,
    last_error_rate double precision NOT NULL DEFAULT 0,
    last_sample_error text NOT NULL DEFAULT '',
    active_tasks integer NOT NULL DEFAULT 0,
    max_concurrent_tasks integer NOT NULL DEFAULT 1,
    uptime_seconds integer NOT NULL DEFAULT 0,
    current_task text NOT NULL DEFAULT '',
    budget_limit bigint,
    monthly_spend bigint NOT NULL DEFAULT 0,
    hibernation_idle_minutes integer CHECK (hibernation_idle_minutes >= 0),
    source_bundle_id text,
    forwarded_to uuid REFERENCES workspaces (id) ON DELETE SET NULL,
    -- Raised by every (re)provision when its run starts, and by pause, hibernate, delete and purge when they are asked for.
    provision_generation bigint NOT NULL DEFAULT 0,
    provision_started_at timestamptz,
    idle_since timestamptz,
    removed_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT longshore_now(),
    updated_at timestamptz NOT NULL DEFAULT longshore_now()
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.01);

CREATE INDEX workspaces_parent_id_idx ON workspaces (parent_id);
CREATE INDEX workspaces_status_idx ON workspaces (status);
CREATE INDEX workspaces_created_at_idx ON workspaces (created_at, id) WHERE status <> 'removed';
CREATE INDEX workspaces_hibernation_idx ON workspaces (hibernation_idle_minutes) WHERE hibernation_idle_minutes IS NOT NULL;
CREATE INDEX workspaces_instance_id_idx ON workspaces (instance_id) WHERE instance_id IS NOT NULL;
CREATE INDEX workspaces_runtime_image_digest_idx ON workspaces (runtime_image_digest) WHERE runtime_image_digest IS NOT NULL;
CREATE INDEX workspaces_provision_started_at_idx ON workspaces (provision_started_at) WHERE status = 'provisioning';
CREATE INDEX workspaces_id12_idx ON workspaces ((left(id::text, 12)));

CREATE TABLE canvas_layouts (
    workspace_id uuid CONSTRAINT canvas_layouts_pk PRIMARY KEY REFERENCES workspaces (id) ON DELETE CASCADE,
    x double precision NOT NULL DEFAULT 0,
    y double precision NOT NULL DEFAULT 0,
    collapsed boolean NOT NULL DEFAULT false
);

CREATE TABLE workspace_config (
    workspace_id uuid CONSTRAINT workspace_config_pk PRIMARY KEY REFERENCES workspaces (id) ON DELETE CASCADE,
    data jsonb NOT NULL DEFAULT '{}',
    updated_at timestamptz NOT NULL DEFAULT longshore_now()
);

-- `encryption_version`: 0 = plaintext (dev mode only), 1 = AES-256-GCM without associated data, as other
-- installations of this ecosystem write it, 2 = with `workspace_id || key` as associated data. No default, so no writer can forget it.
CREATE TABLE workspace_secrets (
    id uuid CONSTRAINT workspace_secrets_pk PRIMARY KEY DEFAULT gen_random_uuid(),
    workspace_id uuid NOT NULL REFERENCES workspaces (id) ON DELETE CASCADE,
    key text NOT NULL,
    encrypted_value bytea NOT NULL,
    encryption_version integer NOT NULL,
    key_id text,
    created_at timestamptz NOT NULL DEFAULT longshore_now(),
    updated_at timestamptz NOT NULL DEFAULT longshore_now(),
    CONSTRAINT workspace_secrets_workspace_id_key_uk UNIQUE (workspace_id, key)
);

CREATE TABLE global_secrets (
    id uuid CONSTRAINT global_secrets_pk PRIMARY KEY DEFAULT gen_random_uuid(),
    key text NOT NULL CONSTRAINT global_secrets_key_uk UNIQUE,
    encrypted_value bytea NOT NULL,
    encryption_version integer NOT NULL,
    key_id text,
    created_at timestamptz NOT NULL DEFAULT longshore_now(),
    updated_at timestamptz NOT NULL DEFAULT longshore_now()
);

CREATE TABLE workspace_auth_tokens (
    id uuid CONSTRAINT workspace_auth_tokens_pk PRIMARY KEY DEFAULT gen_random_uuid(),
    workspace_id uuid NOT NULL REFERENCES workspaces (id) ON DELETE CASCADE,
    token_hash bytea NOT NULL CONSTRAINT workspace_auth_tokens_token_hash_uk UNIQUE,
    prefix text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT longshore_now(),
    last_used_at timestamptz,
    revoked_at timestamptz
);
CREATE INDEX workspace_auth_tokens_workspace_id_idx ON workspace_auth_tokens (workspace_id) WHERE revoked_at IS NULL;

CREATE TABLE org_api_tokens (
    id uuid CONSTRAINT org_api_tokens_pk PRIMARY KEY DEFAULT gen_random_uuid(),
    token_hash bytea NOT NULL CONSTRAINT org_api_tokens_token_hash_uk UNIQUE,
    prefix text NOT NULL,
    name text,
    created_by text,
    org_id uuid REFERENCES workspaces (id) ON DELETE SET NULL,
    created_at timestamptz NOT NULL DEFAULT longshore_now(),
    last_used_at timestamptz,
    revoked_at timestamptz
);
CREATE INDEX org_api_tokens_org_id_idx ON org_api_tokens (org_id) WHERE org_id IS NOT NULL;

CREATE TABLE runtime_image_pins (
    template_name text CONSTRAINT runtime_image_pins_pk PRIMARY KEY,
    sha256_digest text NOT NULL CHECK (sha256_digest ~ '^[0-9a-f]{64}$'),
    pinned_by text,
    notes text,
    created_at timestamptz NOT NULL DEFAULT longshore_now(),
    updated_at timestamptz NOT NULL DEFAULT longshore_now()
);

CREATE TABLE agent_memories (
    id uuid CONSTRAINT agent_memories_pk PRIMARY KEY DEFAULT gen_random_uuid(),
    workspace_id uuid REFERENCES workspaces (id),
    content text NOT NULL,
    scope varchar(10) NOT NULL CHECK (scope IN ('LOCAL', 'TEAM', 'GLOBAL')),
    namespace varchar(50) NOT NULL DEFAULT 'general',
    content_tsv tsvector GENERATED ALWAYS AS (to_tsvector('english', content)) STORED,
    created_at timestamptz NOT NULL DEFAULT longshore_now(),
    updated_at timestamptz NOT NULL DEFAULT longshore_now()
);
CREATE INDEX agent_memories_workspace_id_namespace_idx ON agent_memories (workspace_id, namespace);
CREATE INDEX agent_memories_content_tsv_idx ON agent_memories USING gin (content_tsv);

CREATE TABLE activity_logs (
    id uuid CONSTRAINT activity_logs_pk PRIMARY KEY DEFAULT gen_random_uuid(),
    workspace_id uuid NOT NULL REFERENCES workspaces (id) ON DELETE CASCADE,
    activity_type text NOT NULL,
    source_id uuid,
    target_id uuid,
    method text,
    summary text,
    request_body jsonb,
    response_body jsonb,
    tool_trace jsonb,
    duration_ms integer,
    status text NOT NULL DEFAULT 'ok',
    error_detail text,
    idempotency_key text,
    metadata jsonb,
    created_at timestamptz NOT NULL DEFAULT longshore_now()
);
CREATE INDEX activity_logs_workspace_id_type_idx ON activity_logs (workspace_id, activity_type, created_at DESC);
CREATE INDEX activity_logs_created_at_idx ON activity_logs (created_at);
CREATE UNIQUE INDEX activity_logs_idempotency_key_uk ON activity_logs (workspace_id, idempotency_key) WHERE idempotency_key IS NOT NULL;

-- One owner at a time per reconciler and scope, taken by compare-and-set.
CREATE TABLE reconcilers (
    name text NOT NULL,
    scope text NOT NULL,
    owner text,
    beat bigint NOT NULL DEFAULT 0,
    interval_seconds integer NOT NULL,
    enabled boolean NOT NULL DEFAULT true,
    last_pass jsonb,
    last_pass_at timestamptz,
    CONSTRAINT reconcilers_pk PRIMARY KEY (name, scope)
);
