-- The answers to requests that carried an `Idempotency-Key`, so that a repetition is answered and not done again. A row
-- is written in the transaction of the work it answers for; there is none for a request that is still under way.
CREATE TABLE idempotency_keys (
    -- Who sent it: the class of the credential and its id, never the credential.
    caller text NOT NULL,
    method text NOT NULL,
    route text NOT NULL,
    key text NOT NULL,
    -- HMAC of method, path, query and body, under a key derived from the sealing key.
    fingerprint bytea NOT NULL,
    status smallint NOT NULL,
    headers jsonb NOT NULL,
    -- Some bodies hold tokens, so they are stored like secrets are.
    encrypted_body bytea NOT NULL,
    encryption_version integer NOT NULL,
    key_id text,
    created_at timestamptz NOT NULL DEFAULT longshore_now(),
    expires_at timestamptz NOT NULL,
    CONSTRAINT idempotency_keys_pk PRIMARY KEY (caller, method, route, key)
) WITH (autovacuum_vacuum_scale_factor = 0.01);
CREATE INDEX idempotency_keys_expires_at_idx ON idempotency_keys (expires_at);
