//! Benchmarks and perplexity, comparable with EleutherAI's lm-evaluation-harness.
//!
//! Read `tasks/task.rs` first (the trait of a task), then a task beside it, then follow the data: `tasks/task_data.rs` (records,
//! from the hub or a folder), `tasks/prompts.rs` (records to questions with few-shot examples), `scorer.rs` (questions to
//! batches to log-likelihoods), `metric.rs` (log-likelihoods to metrics), `evaluate.rs` (the whole sequence). Perplexity is
//! separate, in `perplexity.rs`. `dealt.rs` shares all of it among several ranks. `results/` holds the results and their formats.

mod dealt;
mod error;
mod evaluate;
mod metric;
mod perplexity;
mod results;
mod scorer;
mod tasks;
#[cfg(test)]
mod testing;

pub use dealt::Dealt;
pub use error::Error;
pub use evaluate::{EvalConfig, EvalModel, Evaluation, Progress};
pub use metric::Metric;
pub use perplexity::PerplexityText;
pub use results::table::table;
pub use results::task_result::{MetricValue, Report, TaskResult};
pub use scorer::{Request, Scorer, Scores};
pub use tasks::task::{Choices, FewshotSampler, Question, RecordView, Task, TaskSource};
