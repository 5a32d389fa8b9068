//! Files of a run: `paths.rs` names and locks them, `record.rs` and `state.rs` hold what resuming needs, `metrics.rs`,
//! `run_log.rs` and `samples.rs` its measurements and texts.

pub(crate) mod metrics;
pub(crate) mod paths;
pub(crate) mod plot;
pub(crate) mod record;
pub(crate) mod run_log;
pub(crate) mod samples;
pub(crate) mod state;
pub(crate) mod tensorboard;
