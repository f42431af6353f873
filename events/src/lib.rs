//! The event log: append, tail, fan out; what Redis carries between processes.
