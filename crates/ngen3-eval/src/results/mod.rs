//! Results of an evaluation (`task_result.rs`) and how they are shown: as JSON (`report.rs`), as a table (`table.rs`), and question by
//! question (`samples.rs`).

mod report;
mod samples;
pub(crate) mod table;
pub(crate) mod task_result;
