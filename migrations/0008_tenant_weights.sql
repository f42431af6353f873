-- How many turns an organisation gets for each one of another's; no row means one.
CREATE TABLE tenant_weights (
    tenant text CONSTRAINT tenant_weights_pk PRIMARY KEY,
    weight smallint NOT NULL CHECK (weight BETWEEN 1 AND 100),
    reason text,
    set_by text NOT NULL,
    since timestamptz NOT NULL
);
