//! An evaluation from its beginning to its end: what is to be measured is read and checked first, then each model is asked.

use std::path::Path;

use ngen3_data::Tokenizer;
use ngen3_data::hub::ProgressFn;
use ngen3_model::Config;

use crate::metric::{pooled, proportion};
use crate::perplexity::{self, PerplexityText, WindowedText};
use crate::results::task_result::{ResultDetails, Sample};
use crate::tasks::prompts::{self, Examples, FewshotQuestion};
use crate::tasks::task_data::{self, TaskData};
use crate::tasks::{self, Selected, TaskGroup};
use crate::{Error, MetricValue, Report, Scorer, Scores, Task, TaskResult};

/// What is to be measured, and how.
#[derive(Clone, Copy, Debug)]
pub struct EvalConfig<'a> {
    /// Names of tasks and groups, `perplexity` among them.
    pub tasks: &'a [&'a str],
    /// The folder with the tasks' data; without it, it comes from the hub.
    pub data_dir: Option<&'a Path>,
    /// Examples before each question.
    pub num_fewshot: usize,
    /// Decides on the examples.
    pub fewshot_seed: u32,
    /// Questions of each task, the first ones, or windows of a text.
    pub limit: Option<usize>,
    /// Tokens from one window over a text to the next; without it, the model's block.
    pub stride: Option<usize>,
}

/// A task with its questions.
pub(crate) struct PreparedTask {
    pub task: Box<dyn Task>,
    pub task_data: TaskData,
    pub questions: Vec<FewshotQuestion>,
}

/// An evaluation that is ready to be run, for any number of models.
pub struct Evaluation<'a> {
    pub(crate) settings: EvalConfig<'a>,
    pub(crate) tasks: Vec<PreparedTask>,
    groups: Vec<TaskGroup>,
    text: Option<PerplexityText>,
}

/// A model that is asked.
pub struct EvalModel<'a> {
    /// What computes.
    pub engine: &'a mut dyn ngen3_engine::Model,
    /// What made its token ids; without it, only tokens can be measured.
    pub tokenizer: Option<&'a Tokenizer>,
}

/// How far an evaluation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress<'a> {
    /// The task that is being done.
    pub task: &'a str,
    /// Questions and windows that are done, of all tasks.
    pub done: usize,
    /// All there are.
    pub total: usize,
}

impl<'a> Evaluation<'a> {
    /// Reads all data and makes the questions, so that what is wrong is known before the first model is asked. `text` is
    /// what `perplexity` measures.
    ///
    /// # Errors
    /// [`Error::Input`] for a task that there is not, naming those there are, or `perplexity` without a text;
    /// [`Error::TaskData`] for data that is missing or not in a task's form.
    pub fn new(
        settings: EvalConfig<'a>,
        text: Option<PerplexityText>,
        progress: &mut ProgressFn,
    ) -> Result<Self, Error> {
        let names: Vec<_> = settings.tasks.iter().copied().filter(|name| *name != perplexity::NAME).collect();
        let Selected { tasks, groups } = tasks::select(&names)?;
        if settings.tasks.contains(&perplexity::NAME) && text.is_none() {
            return Err(Error::Input("perplexity needs a text to measure: name it with --text".into()));
        }
        if settings.limit == Some(0) {
            return Err(Error::Input("a limit of 0 leaves nothing to measure".into()));
        }
        let tasks = tasks.into_iter().map(|task| prepare(task, &settings, progress)).collect::<Result<_, _>>()?;
        Ok(Self { settings, tasks, groups, text })
    }

    /// Checks a model of this shape and tokenizer, before it is asked anything: that it can read all questions and the text.
    ///
    /// # Errors
    /// The error that [`Evaluation::run`] would fail with, whatever the model says: [`Error::Input`] for a model without a tokenizer or a
    /// stride that is longer than its block; [`Error::TaskData`] for an answer that has no tokens; [`Error::Data`] for tokens
    /// that are not the model's.
    pub fn check(&self, config: &Config, tokenizer: Option<&Tokenizer>) -> Result<(), Error> {
        for PreparedTask { task, questions, .. } in &self.tasks {
            prompts::encode(&**task, questions, require_tokenizer(tokenizer)?)?;
        }
        self.windowed(config, tokenizer)?;
        Ok(())
    }

    /// The text, if there is one, as this model reads it.
    fn windowed<'t>(
        &'t self,
        config: &Config,
        tokenizer: Option<&'t Tokenizer>,
    ) -> Result<Option<WindowedText<'t>>, Error> {
        let EvalConfig { stride, limit, .. } = self.settings;
        self.text.as_ref().map(|text| text.windowed(config, tokenizer, stride, limit)).transpose()
    }

    /// Asks a model everything. `progress` hears how it goes on, and says whether to.
    ///
    /// # Errors
    /// As [`Evaluation::check`], before anything is asked; [`Error::Input`] for a model that gives what is not a number;
    /// [`Error::Engine`]; [`Error::Interrupted`] when `progress` says to stop.
    pub fn run(&self, model: &mut EvalModel, progress: &mut dyn FnMut(Progress) -> bool) -> Result<Report, Error> {
        // Before hours of questions, so that nothing but the model itself can fail after them.
        let windowed = self.windowed(model.engine.config(), model.tokenizer)?;
        let questions: usize = self.tasks.iter().map(|task| task.questions.len()).sum();
        let total = questions + windowed.as_ref().map_or(0, WindowedText::windows);
        let mut done = 0;
        let mut measured = Vec::new();
        for prepared in &self.tasks {
            let name = prepared.task.name();
            let count = prepared.questions.len();
            let mut task_progress = |part: usize| progress(Progress { task: &name, done: done + part, total });
            measured.push(evaluate_task(prepared, model, self.settings.num_fewshot, &mut task_progress)?);
            done += count;
        }
        if let (Some(text), Some(windowed)) = (&self.text, &windowed) {
            let mut task_progress = |part| progress(Progress { task: perplexity::NAME, done: questions + part, total });
            let measure = perplexity::measure(windowed, &mut *model.engine, &mut task_progress)?;
            measured.push(TaskResult {
                name: perplexity::NAME.into(),
                alias: perplexity::NAME.into(),
                version: 1.0,
                depth: 0,
                num_fewshot: 0,
                original: measure.windows.0,
                effective: measure.windows.1,
                values: measure.values,
                truncated: 0,
                scored_in_parts: 0,
                details: ResultDetails::Text {
                    title: text.title.clone(),
                    stride: measure.stride,
                    tokens: measure.tokens,
                    bytes: measure.bytes,
                },
            });
        }
        Ok(Report { measured: self.with_groups(&measured) })
    }

    /// All that was measured with the groups among it, in the order that a user named them; parts stand below their group,
    /// unless they were named themselves.
    fn with_groups(&self, measured: &[TaskResult]) -> Vec<TaskResult> {
        let mut ordered = Vec::new();
        for name in self.settings.tasks {
            self.push_result(name, 0, measured, &mut ordered);
        }
        ordered
    }

    fn push_result(&self, name: &str, depth: usize, measured: &[TaskResult], ordered: &mut Vec<TaskResult>) {
        let named = depth > 0 && self.settings.tasks.contains(&name);
        if named || ordered.iter().any(|known| known.name == name) {
            return;
        }
        if let Some(one) = measured.iter().find(|one| one.name == name) {
            ordered.push(TaskResult { depth, ..one.clone() });
        } else if let Some(group) = self.groups.iter().find(|group| group.name == name) {
            ordered.push(group_result(group, depth, &self.members_of(name, measured)));
            for member in group.members {
                self.push_result(member, depth + 1, measured, ordered);
            }
        }
    }

    /// The tasks that a name stands for, wherever they are listed.
    fn members_of<'m>(&self, name: &str, measured: &'m [TaskResult]) -> Vec<&'m TaskResult> {
        match self.groups.iter().find(|group| group.name == name) {
            Some(group) => group.members.iter().flat_map(|member| self.members_of(member, measured)).collect(),
            None => measured.iter().filter(|one| one.name == name).collect(),
        }
    }
}

fn prepare(task: Box<dyn Task>, settings: &EvalConfig, progress: &mut ProgressFn) -> Result<PreparedTask, Error> {
    let source = task.source();
    let task_data = task_data::read(&*task, source.split, settings.data_dir, progress)?;
    let pool = match settings.num_fewshot {
        0 => None,
        _ => Some(task_data::read(&*task, source.fewshot_sampler.split(), settings.data_dir, progress)?),
    };
    let examples = Examples { pool, count: settings.num_fewshot, seed: settings.fewshot_seed };
    let questions = prompts::questions(&*task, &task_data, &examples, settings.limit)?;
    Ok(PreparedTask { task, task_data, questions })
}

/// The tokenizer that questions need.
fn require_tokenizer(tokenizer: Option<&Tokenizer>) -> Result<&Tokenizer, Error> {
    tokenizer.ok_or_else(|| {
        Error::Input("the model does not say which tokenizer made its token ids, so it cannot read questions".into())
    })
}

/// Asks a model the questions of a task. `progress` hears how many are done.
fn evaluate_task(
    prepared: &PreparedTask,
    model: &mut EvalModel,
    num_fewshot: usize,
    progress: &mut dyn FnMut(usize) -> bool,
) -> Result<TaskResult, Error> {
    let PreparedTask { task, task_data, questions } = prepared;
    let mut requests = prompts::encode(&**task, questions, require_tokenizer(model.tokenizer)?)?;
    let counts: Vec<_> = requests.iter().map(Vec::len).collect();
    let requests: Vec<_> = requests.drain(..).flatten().collect();
    let mut task_progress = |done: usize| progress(questions.len() * done / requests.len());
    let Scores { loglikelihoods, truncated, scored_in_parts } =
        Scorer::new(&mut *model.engine).score(&requests, &mut task_progress)?;

    let mut samples = Vec::new();
    let (mut num_truncated, mut num_in_parts, mut at) = (0, 0, 0);
    for count in counts {
        let range = at..at + count;
        num_truncated += usize::from(truncated[range.clone()].contains(&true));
        num_in_parts += usize::from(scored_in_parts[range.clone()].contains(&true));
        samples.push(Sample { loglikelihoods: loglikelihoods[range].to_vec() });
        at += count;
    }
    let values = task.metrics().iter().map(|&metric| {
        let right =
            questions.iter().zip(&samples).filter(|(question, sample)| sample.is_right(metric, &question.question));
        let (value, error) = proportion(right.count(), questions.len());
        MetricValue { metric, value, error }
    });
    Ok(TaskResult {
        name: task.name(),
        alias: task.alias(),
        version: task.version(),
        depth: 0,
        num_fewshot,
        original: task_data.records.len(),
        effective: questions.len(),
        values: values.collect(),
        truncated: num_truncated,
        scored_in_parts: num_in_parts,
        details: ResultDetails::Task { source: task.source(), samples },
    })
}

/// A group's own numbers: the mean over all questions of the tasks in it.
fn group_result(group: &TaskGroup, depth: usize, tasks: &[&TaskResult]) -> TaskResult {
    let metrics = tasks.first().map_or(&[][..], |task| &task.values);
    let values = metrics.iter().enumerate().map(|(at, &MetricValue { metric, .. })| {
        let parts = tasks.iter().map(|task| (task.values[at].value, task.values[at].error, task.effective));
        let (value, error) = pooled(&parts.collect::<Vec<_>>());
        MetricValue { metric, value, error }
    });
    let sum = |of: fn(&TaskResult) -> usize| tasks.iter().map(|task| of(task)).sum();
    TaskResult {
        name: group.name.into(),
        alias: group.alias.into(),
        version: group.version,
        depth,
        num_fewshot: tasks.first().map_or(0, |task| task.num_fewshot),
        original: sum(|task| task.original),
        effective: sum(|task| task.effective),
        values: values.collect(),
        truncated: sum(|task| task.truncated),
        scored_in_parts: sum(|task| task.scored_in_parts),
        details: ResultDetails::Group {
            members: group.members,
            dataset: tasks.first().and_then(|task| match &task.details {
                ResultDetails::Task { source, .. } => Some(source.dataset),
                _ => None,
            }),
        },
    }
}
