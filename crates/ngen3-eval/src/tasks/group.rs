//! Groups of tasks.

/// A group of tasks, reported as the mean over all their questions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct TaskGroup {
    /// Name in the harness.
    pub name: &'static str,
    /// Short name, for table lines below its own group.
    pub alias: &'static str,
    /// Version of the harness's definition.
    pub version: f64,
    /// Names of its groups and tasks.
    pub members: &'static [&'static str],
}
