-- Bulk actions over jobs, and jobs that remember how far they came.

-- Kept over crashes and retries, unlike progress, which is for people.
ALTER TABLE jobs ADD COLUMN checkpoint jsonb;

-- What a dry run counted: the apply takes exactly that set.
CREATE TABLE bulk_plans (
    id uuid CONSTRAINT bulk_plans_pk PRIMARY KEY,
    action text NOT NULL,
    filter jsonb NOT NULL,
    -- Only what had been finished, or asked for, by then.
    boundary timestamptz NOT NULL,
    matched bigint NOT NULL,
    created_by text NOT NULL,
    expires_at timestamptz NOT NULL
);
