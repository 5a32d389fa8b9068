//! The training loop: schedule, metrics, checkpoints and resumption.
//!
//! Read `train.rs` first: it is the loop of every run, one straight page. What a run learns is a [`Objective`]: `corpus.rs` is
//! the plain one, `distill.rs` adds a teacher, `finetune.rs` is that of conversations. Before the loop come `settings.rs`
//! (what can be set, and to what it is set if nobody does) and `job.rs` (what was asked for becomes a run that is ready to
//! start). After it, what it leaves on the disk: `state.rs` (to go on from) and `run_log.rs` (to look at).

mod config_file;
mod corpus;
pub mod distill;
mod error;
mod finetune;
mod hash;
mod job;
mod memory;
mod objective;
mod paths;
mod plot;
mod run_log;
mod schedule;
mod settings;
mod start;
mod state;
mod teacher_cache;
mod tensorboard;
#[cfg(test)]
mod testing;
mod train;

pub use config_file::{Shape, parse as parse_settings};
pub use corpus::{TokenObjective, check_reads};
pub use error::Error;
pub use finetune::{Conversations, Reference, ReferenceReport, default_reference, read_reference};
pub use hash::sha256;
pub use job::{Begin, Data, Init, Job, Kind, Moments, Request, Weights};
pub use memory::check_fits;
pub use objective::{Evaluation, Micro, Objective, StepOutput};
pub use paths::{Held, RunPaths};
pub use run_log::{Line, Train, read_metrics};
pub use settings::{Overrides, TrainSettings};
pub use start::Start;
pub use state::{Adapting, DataIdentity, Reached, State, load as load_state};
pub use teacher_cache::TeacherCache;
pub use train::{Outcome, Progress, StepReport, train};
