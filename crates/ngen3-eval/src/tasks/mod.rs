//! The tasks, one file each. To add one, write its file and add a line to [`all`].

mod group;
mod hellaswag;
mod mmlu;
mod piqa;
pub(crate) mod prompts;
pub(crate) mod python;
pub(crate) mod task;
pub(crate) mod task_data;
mod winogrande;

use std::collections::BTreeSet;

pub(crate) use group::TaskGroup;
use strsim::levenshtein;

use crate::{Error, Task};

/// Every task.
fn all() -> Vec<Box<dyn Task>> {
    let mut tasks: Vec<Box<dyn Task>> =
        vec![Box::new(piqa::Piqa), Box::new(hellaswag::HellaSwag), Box::new(winogrande::WinoGrande)];
    tasks.extend(mmlu::subjects());
    tasks
}

/// Names of the tasks' data folders.
pub(crate) fn dataset_folders() -> BTreeSet<&'static str> {
    all().iter().map(|task| task.source().folder()).collect()
}

/// Every group, after its members.
const GROUPS: &[TaskGroup] = &mmlu::GROUPS;

/// Tasks and groups selected by name.
#[derive(Default)]
pub(crate) struct Selected {
    /// Tasks, including those of groups, each once.
    pub tasks: Vec<Box<dyn Task>>,
    /// Groups, including nested ones, each once.
    pub groups: Vec<TaskGroup>,
}

/// Selects tasks and groups by name, in the order of the names.
///
/// # Errors
/// [`Error::Input`] for an unknown name, listing the known ones.
pub(crate) fn select(names: &[&str]) -> Result<Selected, Error> {
    let mut known = all();
    let mut selected = Selected::default();
    let mut wanted: Vec<&str> = names.iter().rev().copied().collect();
    while let Some(name) = wanted.pop() {
        if selected.tasks.iter().any(|task| task.name() == name) {
            continue;
        }
        if let Some(group) = GROUPS.iter().find(|group| group.name == name) {
            wanted.extend(group.members.iter().rev());
            if !selected.groups.contains(group) {
                selected.groups.push(*group);
            }
        } else if let Some(at) = known.iter().position(|task| task.name() == name) {
            selected.tasks.push(known.swap_remove(at));
        } else {
            let nearest = nearest_name(name).map(|name| format!("; did you mean {name}?")).unwrap_or_default();
            return Err(Error::Input(format!("unknown task {name:?}: expected {}{nearest}", known_names())));
        }
    }
    Ok(selected)
}

/// Lists the names of tasks and groups, without those inside a group.
fn known_names() -> String {
    let inside = |name: &str| GROUPS.iter().any(|group| group.members.contains(&name));
    let mut names: Vec<_> = all().iter().map(|task| task.name()).filter(|name| !inside(name)).collect();
    for group in GROUPS.iter().filter(|group| !inside(group.name)) {
        let members: Vec<_> = group.members.to_vec();
        names.push(format!("{} (or a part: {}, or a subject such as {})", group.name, members.join(", "), EXAMPLE));
    }
    names.push("perplexity".into());
    names.join(", ")
}

/// Returns the name closest to `typed`, if one is close enough to be a typo.
fn nearest_name(typed: &str) -> Option<String> {
    let typed = typed.replace('-', "_").to_ascii_lowercase();
    let tasks = all().into_iter().map(|task| task.name());
    let names = tasks.chain(GROUPS.iter().map(|group| group.name.to_owned())).chain(["perplexity".into()]);
    let (distance, name) = names.map(|name| (levenshtein(&typed, &name), name)).min()?;
    (distance <= 1 + name.len() / 4).then_some(name)
}

/// Example of a task that is listed only through its group.
const EXAMPLE: &str = "mmlu_anatomy";

#[cfg(test)]
mod tests {
    use super::*;

    fn names(wanted: &[&str]) -> (Vec<String>, Vec<&'static str>) {
        let Selected { tasks, groups } = select(wanted).unwrap();
        (tasks.iter().map(|task| task.name()).collect(), groups.iter().map(|group| group.name).collect())
    }

    #[test]
    fn a_group_stands_for_its_tasks() {
        let (tasks, groups) = names(&["mmlu", "piqa"]);
        assert_eq!((tasks.len(), tasks[0].as_str(), tasks[57].as_str()), (58, "mmlu_abstract_algebra", "piqa"));
        assert_eq!(groups, ["mmlu", "mmlu_stem", "mmlu_other", "mmlu_social_sciences", "mmlu_humanities"]);
        let (tasks, groups) = names(&["mmlu_anatomy", "piqa", "mmlu_stem", "piqa"]);
        assert_eq!((tasks.len(), &tasks[..2]), (20, &["mmlu_anatomy".to_owned(), "piqa".to_owned()][..]));
        assert_eq!(groups, ["mmlu_stem"]);
    }
    #[test]
    fn a_typo_is_answered_with_the_nearest_name() {
        for (typed, nearest) in [("piqua", "piqa"), ("mmlu-anatomi", "mmlu_anatomy"), ("MMLU_stems", "mmlu_stem")] {
            let Err(error) = select(&[typed]) else { panic!("{typed} is a task") };
            assert!(error.to_string().ends_with(&format!("perplexity; did you mean {nearest}?")), "{error}");
        }
        assert_eq!(nearest_name("boolq"), None);
    }
}
