//! From a request to a run that is ready to start: read `spec.rs`, `resolve.rs` (with `surgery.rs` for changes of shape) and
//! `job.rs` (with `memory.rs` for its memory), in this order.

pub(crate) mod job;
pub(crate) mod memory;
pub(crate) mod resolve;
pub(crate) mod spec;
pub(crate) mod surgery;
