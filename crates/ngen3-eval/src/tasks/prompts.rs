//! Records become questions with examples before them, and questions become tokens.

use ngen3_data::Tokenizer;
use ngen3_model::words;
use rayon::prelude::*;

use crate::tasks::python::{PythonRandom, rstrip};
use crate::tasks::task::{FewshotSampler, Question, RecordView, Task};
use crate::tasks::task_data::{TaskData, task_error};
use crate::{Error, Request};

/// A question as a model is asked it.
#[derive(Debug)]
pub(crate) struct FewshotQuestion {
    /// What stands before it: the task's description, and examples.
    pub fewshot_context: String,
    /// The question.
    pub question: Question,
}

impl FewshotQuestion {
    /// For each answer: the text that is given, and the text after it that is scored.
    pub fn pairs(&self) -> impl Iterator<Item = (String, String)> {
        self.question.pairs().into_iter().map(|(given, scored)| (format!("{}{given}", self.fewshot_context), scored))
    }
}

/// Examples for the questions of a task, as the harness draws them.
pub(crate) struct Examples {
    /// What they are drawn from; `None` if there are to be none.
    pub pool: Option<TaskData>,
    /// How many before each question.
    pub count: usize,
    /// Decides on the draws.
    pub seed: u32,
}

/// The questions of the first `limit` records.
///
/// # Errors
/// [`Error::TaskData`] naming the record that is not in the task's form; or that there are too few examples.
pub(crate) fn questions(
    task: &dyn Task,
    data: &TaskData,
    examples: &Examples,
    limit: Option<usize>,
) -> Result<Vec<FewshotQuestion>, Error> {
    let mut random = PythonRandom::new(examples.seed);
    let question = |data: &TaskData, record: usize| {
        let question = task.question(RecordView(&data.records[record]));
        question.map_err(|reason| task_error(task, format!("{}, row {}: {reason}", data.title, record + 1)))
    };
    let records = limit.unwrap_or(usize::MAX).min(data.records.len());
    let with_examples = |record: usize| {
        let mut fewshot_context = task.description();
        if let Some(pool) = &examples.pool {
            for example in draw_examples(task, pool, examples.count, &data.records[record], &mut random)? {
                fewshot_context += &question(pool, example)?.example();
            }
        }
        Ok(FewshotQuestion { fewshot_context, question: question(data, record)? })
    };
    (0..records).map(with_examples).collect()
}

/// Records of the pool for one question.
fn draw_examples(
    task: &dyn Task,
    pool: &TaskData,
    count: usize,
    asked: &ngen3_data::Record,
    random: &mut PythonRandom,
) -> Result<Vec<usize>, Error> {
    let available = pool.records.len();
    let too_few = |needed: usize| {
        let (records, examples) = (words::count(available, "row"), words::count(count, "example"));
        let take = if count == 1 { "takes" } else { "take" };
        task_error(task, format!("{} has {records}, and {examples} {take} {needed}", pool.title))
    };
    if let FewshotSampler::FirstN(_) = task.source().fewshot_sampler {
        return if count <= available { Ok((0..count).collect()) } else { Err(too_few(count)) };
    }
    // One more than needed, should the question itself be among them.
    if count + 1 > available {
        return Err(too_few(count + 1));
    }
    let is_other = |record: &usize| pool.records[*record] != *asked;
    let mut chosen = random.sample(available, count + 1);
    chosen.retain(is_other);
    if chosen.len() < count {
        let others: Vec<_> = (0..available).filter(is_other).collect();
        if others.len() < count {
            return Err(too_few(count));
        }
        chosen = random.sample(others.len(), count).into_iter().map(|at| others[at]).collect();
    }
    chosen.truncate(count);
    Ok(chosen)
}

/// The requests of all questions, an inner vector for each.
///
/// # Errors
/// [`Error::TaskData`] for an answer that cannot be scored.
pub(crate) fn encode(
    task: &dyn Task,
    questions: &[FewshotQuestion],
    tokenizer: &Tokenizer,
) -> Result<Vec<Vec<Request>>, Error> {
    let encode = |(number, question): (usize, &FewshotQuestion)| {
        let requests = question.pairs().map(|(given, scored)| request(tokenizer, &given, &scored));
        let requests: Result<_, _> = requests.collect();
        requests.map_err(|reason| task_error(task, format!("row {}: {reason}", number + 1)))
    };
    questions.par_iter().enumerate().map(encode).collect()
}

/// A text to be scored after one that is given, in tokens.
///
/// The two are encoded as one text, and what the given text takes by itself is cut off, so that words at the seam are
/// those of the whole. White space at the end of the given text goes with what follows, for a word's token begins with it.
/// After nothing, the token that ends a document is given.
fn request(tokenizer: &Tokenizer, given: &str, scored: &str) -> Result<Request, String> {
    let encode = |text: &str| tokenizer.encode(text).map_err(|error| error.to_string());
    let trimmed = rstrip(given);
    let mut tokens = encode(&format!("{given}{scored}"))?;
    let mut context = encode(trimmed)?.len();
    if context == 0 {
        let end = tokenizer.eot().ok_or("nothing comes before the answer, and the tokenizer has no <|endoftext|>")?;
        if tokens.first() != Some(&end) {
            tokens.insert(0, end);
        }
        context = 1;
    }
    if tokens.len() <= context {
        return Err(format!("the answer {scored:?} has no tokens of its own"));
    }
    Ok(Request { tokens, context })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(given: &str, scored: &str) -> (String, String) {
        let tokenizer = Tokenizer::gpt2();
        let Request { tokens, context } = request(&tokenizer, given, scored).unwrap();
        (tokenizer.decode(&tokens[..context]), tokenizer.decode(&tokens[context..]))
    }

    #[test]
    fn white_space_goes_with_the_word_after_it() {
        assert_eq!(split("Answer:", " yes"), ("Answer:".into(), " yes".into()));
        assert_eq!(split("The ", "cat"), ("The".into(), " cat".into()));
        assert_eq!(split("The \n", " cat"), ("The".into(), " \n cat".into()));
        assert_eq!(split("", "cat"), ("<|endoftext|>".into(), "cat".into()));
        assert_eq!(split("  ", "cat"), ("<|endoftext|>".into(), "  cat".into()));
        assert!(request(&Tokenizer::gpt2(), "The", "").unwrap_err().contains("no tokens"));
        assert!(request(&Tokenizer::gpt2(), "", "").is_err());
    }
}
