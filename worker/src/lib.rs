//! The worker runtime and the reconcilers.
