//! Benchmarks and perplexity, as the field measures them: the numbers can stand beside those of EleutherAI's
//! lm-evaluation-harness.
//!
//! Read `task.rs` first (what a task is), then a task in `tasks/`; then the way of the data: `task_data.rs` (records, from the
//! hub or a folder), `prompts.rs` (records become questions, with examples before them), `scorer.rs` (questions become batches,
//! batches log-likelihoods), `metric.rs` (log-likelihoods become numbers), `evaluate.rs` (all of it, in order). Perplexity
//! goes its own way, in `perplexity.rs`. `results.rs` is what comes of it; `report.rs`,
//! `table.rs` and `samples.rs` are what a user sees.

mod error;
mod evaluate;
mod metric;
mod perplexity;
mod prompts;
mod python;
mod report;
mod results;
mod samples;
mod scorer;
mod table;
mod task;
mod task_data;
mod tasks;
#[cfg(test)]
mod testing;

pub use error::Error;
pub use evaluate::{EvalConfig, EvalModel, Evaluation, Progress};
pub use metric::Metric;
pub use perplexity::PerplexityText;
pub use results::{MetricValue, Report, TaskResult};
pub use scorer::{Request, Scorer, Scores};
pub use table::table;
pub use task::{Choices, FewshotSampler, Item, RecordView, Task, TaskSource};
