//! The training loop: schedule, metrics, checkpoints and resumption.
//!
//! Read `train.rs` first: the loop of every run, one page. A run optimises an [`Objective`] (`objectives/`). `setup.rs` leads
//! from a request to the loop, through `config/` and `prepare/`. `run_files/` has the files that a run writes.

mod config;
mod error;
#[cfg(feature = "fuzz")]
pub mod fuzz;
mod hash;
mod objective;
mod objectives;
mod prepare;
pub mod ranks;
mod reference;
mod rounds;
mod run;
mod run_files;
mod schedule;
pub mod setup;
#[cfg(test)]
mod testing;
mod train;

pub use config::choices::{OptimizerKind, RecipeName, ReduceDtype, Schedule};
pub use config::config_file::parse as parse_settings;
pub use config::field::Flag;
pub use config::finetune_defaults::FINETUNE_HELP;
pub use config::settings::{Overrides, TrainSettings};
pub use config::shape::Shape;
pub use error::Error;
pub use hash::{sha256, sha256_of_model};
pub use objective::{Evaluation, Micro, Objective, StepOutput, ValLoss};
pub use objectives::chat_objective::ChatObjective;
pub use objectives::distill;
pub use objectives::teacher_cache::TeacherCache;
pub use objectives::teacher_texts::{TeacherTexts, WritingIdentity, WrittenText, parse as parse_texts};
pub use objectives::token_objective::{TokenObjective, check_reads};
pub use prepare::job::{DataInfo, InitialWeights, Job};
pub use prepare::memory::check_fits;
pub use prepare::resolve::{LONGEST_SEQUENCE, Moments, Resolved, was_never_begun};
pub use prepare::spec::{RunSpec, StartFrom};
pub use reference::{Reference, ReferenceReport, default_reference, read_reference};
pub use run::{Outcome, Progress, StepReport};
pub use run_files::metrics::{MetricsLine, StepMetrics};
pub use run_files::paths::{RunLock, RunPaths};
pub use run_files::record::{
    AdapterRecord, ChatRecord, DataIdentity, DistillRecord, ObjectiveRecord, RunKind, RunRecord, TrainProgress,
};
pub use run_files::run_log::read_metrics;
pub use run_files::state::{State, load as load_state};
pub use train::train;
