-- The operator's hand on reconcilers, and one pass at a time, whoever asked for it.

ALTER TABLE reconcilers
    -- The worker that makes a pass now, and since when; a dead one's counts for nothing.
    ADD COLUMN passing text,
    ADD COLUMN passing_since timestamptz,
    -- What the last pass wanted to destroy beyond its budget: `{reason, wanted, budget, since}`.
    ADD COLUMN blocked jsonb,
    -- Of that, what an operator lets one pass destroy nevertheless: the same list.
    ADD COLUMN approved jsonb,
    -- The last enable or disable.
    ADD COLUMN changed_by text,
    ADD COLUMN changed_at timestamptz,
    ADD COLUMN change_reason text;
