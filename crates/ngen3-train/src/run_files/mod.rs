//! Files of a run: `paths.rs` names and locks them, `record.rs` and `state.rs` hold what a run resumes from, `metrics.rs` and
//! `run_log.rs` what people and programs look at.

pub(crate) mod metrics;
pub(crate) mod paths;
pub(crate) mod plot;
pub(crate) mod record;
pub(crate) mod run_log;
pub(crate) mod state;
pub(crate) mod tensorboard;
