-- What retention has taken out of the history: between which ids the dropped jobs of an outcome lie. No id outside was ever
-- dropped; between them are also ids that no job ever had, and jobs that are still there.
CREATE TABLE job_history_pruned (
    outcome job_outcome CONSTRAINT job_history_pruned_pk PRIMARY KEY,
    oldest_id uuid NOT NULL,
    newest_id uuid NOT NULL
);
