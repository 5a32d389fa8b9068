//! Runs an evaluation: reads and checks all task data first, then evaluates each model.

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

/// Settings of an evaluation.
#[derive(Clone, Copy, Debug)]
pub struct EvalConfig<'a> {
    /// Names of tasks and groups; may include `perplexity`.
    pub tasks: &'a [&'a str],
    /// Folder with the task data; `None` downloads it from the hub.
    pub data_dir: Option<&'a Path>,
    /// Few-shot examples before each question.
    pub num_fewshot: usize,
    /// Seed for drawing few-shot examples.
    pub fewshot_seed: u32,
    /// Limit on the questions of each task, and on the windows of the text; the first ones are used.
    pub limit: Option<usize>,
    /// Stride between windows over the text, in tokens; `None` is the model's block size.
    pub stride: Option<usize>,
}

/// A task with its questions.
pub(crate) struct PreparedTask {
    pub task: Box<dyn Task>,
    pub task_data: TaskData,
    pub questions: Vec<FewshotQuestion>,
}

/// A prepared evaluation, to run on any number of models.
pub struct Evaluation<'a> {
    pub(crate) settings: EvalConfig<'a>,
    pub(crate) tasks: Vec<PreparedTask>,
    groups: Vec<TaskGroup>,
    text: Option<PerplexityText>,
}

/// A model to evaluate.
pub struct EvalModel<'a> {
    /// The engine that holds the model.
    pub engine: &'a mut dyn ngen3_engine::Model,
    /// The model's tokenizer; without it, only the perplexity of a token file can be computed.
    pub tokenizer: Option<&'a Tokenizer>,
}

/// Progress of an evaluation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress<'a> {
    /// Current task.
    pub task: &'a str,
    /// Questions and windows done, in all tasks.
    pub done: usize,
    /// Questions and windows in total.
    pub total: usize,
}

impl<'a> Evaluation<'a> {
    /// Reads all data and builds the questions, so that errors in them appear before the first model is evaluated. `text` is
    /// the text for `perplexity`.
    ///
    /// # Errors
    /// [`Error::Input`] for an unknown task, a limit of 0, or `perplexity` without a text; [`Error::TaskData`] for data that is
    /// missing or not in a task's format; [`Error::Interrupted`] when `progress` returns false.
    pub fn new(
        settings: EvalConfig<'a>,
        text: Option<PerplexityText>,
        progress: &mut ProgressFn,
    ) -> Result<Self, Error> {
        let names: Vec<_> = settings.tasks.iter().copied().filter(|name| *name != perplexity::NAME).collect();
        let Selected { tasks, groups } = tasks::select(&names)?;
        if settings.tasks.contains(&perplexity::NAME) && text.is_none() {
            return Err(Error::Input("perplexity requires a text: pass --text".into()));
        }
        if settings.limit == Some(0) {
            return Err(Error::Input("limit: expected at least 1, got 0".into()));
        }
        let tasks = tasks.into_iter().map(|task| prepare(task, &settings, progress)).collect::<Result<_, _>>()?;
        Ok(Self { settings, tasks, groups, text })
    }

    /// Checks that a model of this shape and tokenizer can read all questions and the text, before it is evaluated.
    ///
    /// # Errors
    /// The error that [`Evaluation::run`] would return: [`Error::Input`] for a model without a tokenizer or a stride longer than
    /// its block; [`Error::TaskData`] for an answer without tokens; [`Error::Data`] for tokens outside its vocabulary.
    pub fn check(&self, config: &Config, tokenizer: Option<&Tokenizer>) -> Result<(), Error> {
        for PreparedTask { task, questions, .. } in &self.tasks {
            prompts::encode(&**task, questions, require_tokenizer(tokenizer)?)?;
        }
        self.windowed(config, tokenizer)?;
        Ok(())
    }

    /// Encodes the text for this model and cuts it into windows; `None` without a text.
    fn windowed<'t>(
        &'t self,
        config: &Config,
        tokenizer: Option<&'t Tokenizer>,
    ) -> Result<Option<WindowedText<'t>>, Error> {
        let EvalConfig { stride, limit, .. } = self.settings;
        self.text.as_ref().map(|text| text.windowed(config, tokenizer, stride, limit)).transpose()
    }

    /// Evaluates a model on everything. `progress` is called after each batch; it returns false to stop.
    ///
    /// # Errors
    /// As [`Evaluation::check`], before anything is computed; [`Error::Input`] if the model's losses are not finite;
    /// [`Error::Engine`]; [`Error::Interrupted`] when `progress` returns false.
    pub fn run(&self, model: &mut EvalModel, progress: &mut dyn FnMut(Progress) -> bool) -> Result<Report, Error> {
        // Before hours of questions, after which only the model itself can fail.
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
        let mut missing = self.missing(model.tokenizer)?;
        missing.extend(windowed.iter().flat_map(WindowedText::notes));
        Ok(Report { measured: self.with_groups(&measured), text_notes: missing })
    }

    /// Formats a note for each task whose questions have characters that the tokenizer's vocabulary lacks.
    fn missing(&self, tokenizer: Option<&Tokenizer>) -> Result<Vec<String>, Error> {
        let Some(tokenizer) = tokenizer.filter(|tokenizer| tokenizer.can_miss()) else { return Ok(Vec::new()) };
        let mut notes = Vec::new();
        for PreparedTask { task, questions, .. } in &self.tasks {
            let missing = prompts::missing(questions, tokenizer).map_err(ngen3_data::Error::from)?;
            notes.extend(tokenizer.missing_note(&missing).map(|note| format!("{}: {note}", task.name())));
        }
        Ok(notes)
    }

    /// Adds the groups to the results, in the order of the requested names. Members follow their group, unless they were
    /// requested by name.
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

    /// Results of the tasks that a name stands for, through all levels of groups.
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

/// Returns the tokenizer, which questions require.
fn require_tokenizer(tokenizer: Option<&Tokenizer>) -> Result<&Tokenizer, Error> {
    tokenizer.ok_or_else(|| Error::Input("the model has no recorded tokenizer, so it cannot read questions".into()))
}

/// Evaluates a model on a task's questions. `progress` gets the number done and returns false to stop.
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

/// Metrics of a group: means over all questions of its tasks.
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
