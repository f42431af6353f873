//! The job engine: ledger, admission, Redis Streams dispatch, leases, fencing.
