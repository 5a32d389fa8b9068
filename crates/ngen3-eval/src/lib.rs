//! Benchmarks and perplexity, as the field measures them: the numbers can stand beside those of EleutherAI's
//! lm-evaluation-harness.
//!
//! Read `tasks/task.rs` first (the trait of a task), then a task beside it; then the way of the data: `tasks/task_data.rs` (records, from
//! the hub or a folder), `tasks/prompts.rs` (records become questions, with examples before them), `scorer.rs` (questions become
//! batches, batches log-likelihoods), `metric.rs` (log-likelihoods become numbers), `evaluate.rs` (all of it, in order). Perplexity
//! goes its own way, in `perplexity.rs`. `results/` is what comes of it and what a user sees.

mod error;
mod evaluate;
mod metric;
mod perplexity;
mod results;
mod scorer;
mod tasks;
#[cfg(test)]
mod testing;

pub use error::Error;
pub use evaluate::{EvalConfig, EvalModel, Evaluation, Progress};
pub use metric::Metric;
pub use perplexity::PerplexityText;
pub use results::table::table;
pub use results::task_result::{MetricValue, Report, TaskResult};
pub use scorer::{Request, Scorer, Scores};
pub use tasks::task::{Choices, FewshotSampler, Question, RecordView, Task, TaskSource};
