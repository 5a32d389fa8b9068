//! Results of an evaluation (`task_result.rs`) and their formats: JSON (`report.rs`), a table (`table.rs`), and samples by
//! question (`samples.rs`).

mod report;
mod samples;
pub(crate) mod table;
pub(crate) mod task_result;
