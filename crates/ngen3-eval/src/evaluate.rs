//! An evaluation from its beginning to its end: what is to be measured is read and checked first, then each model is asked.

use std::path::Path;

use ngen3_data::Tokenizer;
use ngen3_data::hub::ProgressFn;
use ngen3_model::Config;

use crate::documents::{self, Documents};
use crate::metric::{pooled, proportion};
use crate::perplexity::{self, Cut, Text};
use crate::prompts::{self, Examples, Question};
use crate::results::{Of, Sample};
use crate::tasks::{self, Chosen, Group};
use crate::{Error, Measured, Report, Scorer, Scores, Task, Value};

/// What is to be measured, and how.
#[derive(Clone, Copy, Debug)]
pub struct Settings<'a> {
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
pub(crate) struct Prepared {
    pub task: Box<dyn Task>,
    pub documents: Documents,
    pub questions: Vec<Question>,
}

/// An evaluation that is ready to be run, for any number of models.
pub struct Plan<'a> {
    pub(crate) settings: Settings<'a>,
    pub(crate) tasks: Vec<Prepared>,
    groups: Vec<Group>,
    text: Option<Text>,
}

/// A model that is asked.
pub struct Model<'a> {
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

impl<'a> Plan<'a> {
    /// Reads all data and makes the questions, so that what is wrong is known before the first model is asked. `text` is
    /// what `perplexity` measures.
    ///
    /// # Errors
    /// [`Error::Input`] for a task that there is not, naming those there are, or `perplexity` without a text;
    /// [`Error::Documents`] for data that is missing or not in a task's form.
    pub fn new(settings: Settings<'a>, text: Option<Text>, progress: &mut ProgressFn) -> Result<Self, Error> {
        let names: Vec<_> = settings.tasks.iter().copied().filter(|name| *name != perplexity::NAME).collect();
        let Chosen { tasks, groups } = tasks::named(&names)?;
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
    /// What [`Plan::run`] would fail with, whatever the model says: [`Error::Input`] for a model without a tokenizer or a stride
    /// that is longer than its block; [`Error::Documents`] for an answer that has no tokens; [`Error::Data`] for tokens that are
    /// not the model's.
    pub fn check(&self, config: &Config, tokenizer: Option<&Tokenizer>) -> Result<(), Error> {
        for Prepared { task, questions, .. } in &self.tasks {
            prompts::encode(&**task, questions, reader(tokenizer)?)?;
        }
        self.cut(config, tokenizer)?;
        Ok(())
    }

    /// The text, if there is one, as this model reads it.
    fn cut<'t>(&'t self, config: &Config, tokenizer: Option<&'t Tokenizer>) -> Result<Option<Cut<'t>>, Error> {
        let Settings { stride, limit, .. } = self.settings;
        self.text.as_ref().map(|text| text.cut(config, tokenizer, stride, limit)).transpose()
    }

    /// Asks a model everything. `progress` hears how it goes on, and says whether to.
    ///
    /// # Errors
    /// As [`Plan::check`], before anything is asked; [`Error::Input`] for a model that gives what is not a number;
    /// [`Error::Engine`]; [`Error::Interrupted`] when `progress` says to stop.
    pub fn run(&self, model: &mut Model, progress: &mut dyn FnMut(Progress) -> bool) -> Result<Report, Error> {
        // Before hours of questions, so that nothing but the model itself can fail after them.
        let cut = self.cut(model.engine.config(), model.tokenizer)?;
        let questions: usize = self.tasks.iter().map(|task| task.questions.len()).sum();
        let total = questions + cut.as_ref().map_or(0, Cut::windows);
        let mut done = 0;
        let mut measured = Vec::new();
        for prepared in &self.tasks {
            let name = prepared.task.name();
            let count = prepared.questions.len();
            let mut tell_of = |part: usize| progress(Progress { task: &name, done: done + part, total });
            measured.push(ask(prepared, model, self.settings.num_fewshot, &mut tell_of)?);
            done += count;
        }
        if let (Some(text), Some(cut)) = (&self.text, &cut) {
            let mut tell_of = |part| progress(Progress { task: perplexity::NAME, done: questions + part, total });
            let measure = perplexity::measure(cut, &mut *model.engine, &mut tell_of)?;
            measured.push(Measured {
                name: perplexity::NAME.into(),
                alias: perplexity::NAME.into(),
                version: 1.0,
                depth: 0,
                num_fewshot: 0,
                original: measure.windows.0,
                effective: measure.windows.1,
                values: measure.values,
                cut: 0,
                parted: 0,
                of: Of::Text {
                    title: text.title.clone(),
                    stride: measure.stride,
                    tokens: measure.tokens,
                    bytes: measure.bytes,
                },
            });
        }
        Ok(Report { measured: self.grouped(&measured) })
    }

    /// All that was measured with the groups among it, in the order that a user named them; parts stand below their group,
    /// unless they were named themselves.
    fn grouped(&self, measured: &[Measured]) -> Vec<Measured> {
        let mut ordered = Vec::new();
        for name in self.settings.tasks {
            self.add(name, 0, measured, &mut ordered);
        }
        ordered
    }

    fn add(&self, name: &str, depth: usize, measured: &[Measured], ordered: &mut Vec<Measured>) {
        let named = depth > 0 && self.settings.tasks.contains(&name);
        if named || ordered.iter().any(|known| known.name == name) {
            return;
        }
        if let Some(one) = measured.iter().find(|one| one.name == name) {
            ordered.push(Measured { depth, ..one.clone() });
        } else if let Some(group) = self.groups.iter().find(|group| group.name == name) {
            ordered.push(sum_up(group, depth, &self.within(name, measured)));
            for member in group.members {
                self.add(member, depth + 1, measured, ordered);
            }
        }
    }

    /// The tasks that a name stands for, wherever they are listed.
    fn within<'m>(&self, name: &str, measured: &'m [Measured]) -> Vec<&'m Measured> {
        match self.groups.iter().find(|group| group.name == name) {
            Some(group) => group.members.iter().flat_map(|member| self.within(member, measured)).collect(),
            None => measured.iter().filter(|one| one.name == name).collect(),
        }
    }
}

fn prepare(task: Box<dyn Task>, settings: &Settings, progress: &mut ProgressFn) -> Result<Prepared, Error> {
    let source = task.source();
    let documents = documents::read(&*task, source.split, settings.data_dir, progress)?;
    let pool = match settings.num_fewshot {
        0 => None,
        _ => Some(documents::read(&*task, source.shots.split(), settings.data_dir, progress)?),
    };
    let examples = Examples { pool, count: settings.num_fewshot, seed: settings.fewshot_seed };
    let questions = prompts::questions(&*task, &documents, &examples, settings.limit)?;
    Ok(Prepared { task, documents, questions })
}

/// The tokenizer that questions need.
fn reader(tokenizer: Option<&Tokenizer>) -> Result<&Tokenizer, Error> {
    tokenizer.ok_or_else(|| {
        Error::Input("the model does not say which tokenizer made its token ids, so it cannot read questions".into())
    })
}

/// Asks a model the questions of a task. `progress` hears how many are done.
fn ask(
    prepared: &Prepared,
    model: &mut Model,
    num_fewshot: usize,
    progress: &mut dyn FnMut(usize) -> bool,
) -> Result<Measured, Error> {
    let Prepared { task, documents, questions } = prepared;
    let mut requests = prompts::encode(&**task, questions, reader(model.tokenizer)?)?;
    let counts: Vec<_> = requests.iter().map(Vec::len).collect();
    let requests: Vec<_> = requests.drain(..).flatten().collect();
    let mut tell_of = |done: usize| progress(questions.len() * done / requests.len());
    let Scores { loglikelihoods, cut, parted } = Scorer::new(&mut *model.engine).score(&requests, &mut tell_of)?;

    let mut samples = Vec::new();
    let (mut cuts, mut partings, mut at) = (0, 0, 0);
    for count in counts {
        let range = at..at + count;
        cuts += usize::from(cut[range.clone()].contains(&true));
        partings += usize::from(parted[range.clone()].contains(&true));
        samples.push(Sample { loglikelihoods: loglikelihoods[range].to_vec() });
        at += count;
    }
    let values = task.metrics().iter().map(|&metric| {
        let right = questions.iter().zip(&samples).filter(|(question, sample)| sample.is_right(metric, &question.item));
        let (value, error) = proportion(right.count(), questions.len());
        Value { metric, value, error }
    });
    Ok(Measured {
        name: task.name(),
        alias: task.alias(),
        version: task.version(),
        depth: 0,
        num_fewshot,
        original: documents.rows.len(),
        effective: questions.len(),
        values: values.collect(),
        cut: cuts,
        parted: partings,
        of: Of::Task { source: task.source(), samples },
    })
}

/// A group's own numbers: the mean over all questions of the tasks in it.
fn sum_up(group: &Group, depth: usize, tasks: &[&Measured]) -> Measured {
    let metrics = tasks.first().map_or(&[][..], |task| &task.values);
    let values = metrics.iter().enumerate().map(|(at, &Value { metric, .. })| {
        let parts = tasks.iter().map(|task| (task.values[at].value, task.values[at].error, task.effective));
        let (value, error) = pooled(&parts.collect::<Vec<_>>());
        Value { metric, value, error }
    });
    let sum = |of: fn(&Measured) -> usize| tasks.iter().map(|task| of(task)).sum();
    Measured {
        name: group.name.into(),
        alias: group.alias.into(),
        version: group.version,
        depth,
        num_fewshot: tasks.first().map_or(0, |task| task.num_fewshot),
        original: sum(|task| task.original),
        effective: sum(|task| task.effective),
        values: values.collect(),
        cut: sum(|task| task.cut),
        parted: sum(|task| task.parted),
        of: Of::Group {
            members: group.members,
            dataset: tasks.first().and_then(|task| match &task.of {
                Of::Task { source, .. } => Some(source.dataset),
                _ => None,
            }),
        },
    }
}
