//! Where a workspace runs.
