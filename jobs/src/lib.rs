//! What there is to do: one folder per job kind.
