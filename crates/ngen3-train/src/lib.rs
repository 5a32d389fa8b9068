//! The training loop: schedule, metrics, checkpoints and resumption.
//!
//! Read `pretrain.rs` first: it is the loop, one straight page. Before it, `settings.rs` (what can be set, and to what
//! it is set if nobody does), `job.rs` (what was asked for becomes a run that is ready to start). After it, what it
//! leaves on the disk: `state.rs` (to go on from) and `run_log.rs` (to look at).

mod config_file;
mod error;
mod job;
mod memory;
mod paths;
mod plot;
mod pretrain;
mod run_log;
mod schedule;
mod settings;
mod start;
mod state;
mod tensorboard;
#[cfg(test)]
mod testing;

pub use config_file::Shape;
pub use error::Error;
pub use job::{Begin, Job, Moments, Request, Weights};
pub use paths::RunPaths;
pub use pretrain::{Outcome, Progress, StepReport, pretrain};
pub use run_log::{Line, Train, read_metrics};
pub use settings::{Overrides, TrainSettings};
pub use state::DataIdentity;
