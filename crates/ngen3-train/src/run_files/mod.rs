//! Files of a run: `paths.rs` names and locks them, `record.rs` and `state.rs` hold what resuming needs, `metrics.rs` and
//! `run_log.rs` its measurements.

pub(crate) mod metrics;
pub(crate) mod paths;
pub(crate) mod plot;
pub(crate) mod record;
pub(crate) mod run_log;
pub(crate) mod state;
pub(crate) mod tensorboard;
