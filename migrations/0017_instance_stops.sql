-- Stops of instances that are called, or were and nobody has written down the answer. Written before the call: who then
-- finds that the control plane knows no such instance knows why. The row goes with the answer, or with the leak.
CREATE TABLE instance_stops (
    instance_id text CONSTRAINT instance_stops_pk PRIMARY KEY,
    workspace_id uuid NOT NULL,
    called_at timestamptz NOT NULL DEFAULT longshore_now()
);
