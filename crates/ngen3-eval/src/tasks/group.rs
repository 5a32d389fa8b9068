//! Groups of tasks.

/// Tasks that are shown as one, with the mean over all their questions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct TaskGroup {
    /// Its name.
    pub name: &'static str,
    /// Its short name, for tables in which its own group stands above it.
    pub alias: &'static str,
    /// The version of the harness's definition.
    pub version: f64,
    /// Names of the groups and tasks in it.
    pub members: &'static [&'static str],
}
