//! The training loop: schedule, metrics, checkpoints and resumption.
//!
//! Read `train.rs` first: it is the loop of every run, one straight page. What a run learns is an [`Objective`]:
//! `token_objective.rs` is the plain one, `distill.rs` adds a teacher, `chat_objective.rs` is that of conversations. The road to the
//! loop is `setup.rs`: `settings.rs` and `config_file.rs`, `spec.rs`, `resolve.rs`, `job.rs`, in this order. What a run leaves on
//! the disk: `record.rs` and `state.rs` (to go on from), `metrics.rs` and `run_log.rs` (to look at).

mod chat_objective;
mod config_file;
pub mod distill;
mod error;
mod field;
mod hash;
mod job;
mod memory;
mod metrics;
mod objective;
mod paths;
mod plot;
mod record;
mod reference;
mod resolve;
mod run;
mod run_log;
mod schedule;
mod settings;
pub mod setup;
mod shape;
mod spec;
mod state;
mod surgery;
mod teacher_cache;
mod tensorboard;
#[cfg(test)]
mod testing;
mod token_objective;
mod train;

pub use chat_objective::ChatObjective;
pub use config_file::parse as parse_settings;
pub use error::Error;
pub use field::Flag;
pub use hash::sha256;
pub use job::{DataInfo, InitialWeights, Job};
pub use memory::check_fits;
pub use metrics::{MetricsLine, StepMetrics};
pub use objective::{Evaluation, Micro, Objective, StepOutput};
pub use paths::{RunLock, RunPaths};
pub use record::{
    AdapterRecord, ChatRecord, DataIdentity, DistillRecord, ObjectiveRecord, RunKind, RunRecord, TrainProgress,
};
pub use reference::{Reference, ReferenceReport, default_reference, read_reference};
pub use resolve::{Moments, Resolved};
pub use run::{Outcome, Progress, StepReport};
pub use run_log::read_metrics;
pub use settings::{Overrides, TrainSettings};
pub use shape::Shape;
pub use spec::{RunSpec, StartFrom};
pub use state::{State, load as load_state};
pub use teacher_cache::TeacherCache;
pub use token_objective::{TokenObjective, check_reads};
pub use train::train;
