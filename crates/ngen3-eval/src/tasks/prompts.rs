//! Builds questions with few-shot examples from records, and encodes them.

use ngen3_data::Tokenizer;
use ngen3_data::tokenizer::{self, MissingChars};
use ngen3_model::words;
use rayon::prelude::*;

use crate::tasks::python::{PythonRandom, rstrip};
use crate::tasks::task::{FewshotSampler, Question, RecordView, Task};
use crate::tasks::task_data::{TaskData, task_error};
use crate::{Error, Request};

/// A question with its few-shot examples.
#[derive(Debug)]
pub(crate) struct FewshotQuestion {
    /// Text before the question: the task's description and the examples.
    pub fewshot_context: String,
    /// The question.
    pub question: Question,
}

impl FewshotQuestion {
    /// Returns the context and the scored continuation of each answer.
    pub fn pairs(&self) -> impl Iterator<Item = (String, String)> {
        self.question.pairs().into_iter().map(|(given, scored)| (format!("{}{given}", self.fewshot_context), scored))
    }
}

/// Few-shot examples of a task, drawn as the harness draws them.
pub(crate) struct Examples {
    /// Records to draw from; `None` for zero-shot.
    pub pool: Option<TaskData>,
    /// Examples per question.
    pub count: usize,
    /// Seed of the draws.
    pub seed: u32,
}

/// Builds the questions of the first `limit` records.
///
/// # Errors
/// [`Error::TaskData`] for a record that is not in the task's format, or a pool with too few examples.
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

/// Draws the examples of one question; returns their indices in the pool.
fn draw_examples(
    task: &dyn Task,
    pool: &TaskData,
    count: usize,
    asked: &ngen3_data::Record,
    random: &mut PythonRandom,
) -> Result<Vec<usize>, Error> {
    let available = pool.records.len();
    let too_few = |needed: usize| {
        let (rows, examples) = (words::count(needed, "row"), words::count(count, "example"));
        task_error(task, format!("{}: expected at least {rows} for {examples}, got {available}", pool.title))
    };
    if let FewshotSampler::FirstN(_) = task.source().fewshot_sampler {
        return if count <= available { Ok((0..count).collect()) } else { Err(too_few(count)) };
    }
    // Draw one more than needed, in case the question itself is among them.
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

/// Encodes all questions: for each, one request per answer.
///
/// # Errors
/// [`Error::TaskData`] for an answer without tokens.
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

/// Counts the characters of all questions, each with each answer, that the vocabulary lacks.
///
/// # Errors
/// A text that the tokenizer cannot encode.
pub(crate) fn missing(questions: &[FewshotQuestion], tokenizer: &Tokenizer) -> Result<MissingChars, tokenizer::Error> {
    let mut missing = MissingChars::default();
    for (given, scored) in questions.iter().flat_map(FewshotQuestion::pairs) {
        tokenizer.encode_counting(&format!("{given}{scored}"), &mut Vec::new(), &mut missing)?;
    }
    Ok(missing)
}

/// Encodes a context (`given`) and the continuation to score (`scored`).
///
/// Both are encoded as one text, then split after as many tokens as the context has when encoded alone, so that tokens at the
/// boundary are those of the whole text. White space at the end of the context moves to the continuation, since a word's token
/// starts with it. An empty context becomes the end-of-text token.
fn request(tokenizer: &Tokenizer, given: &str, scored: &str) -> Result<Request, String> {
    let encode = |text: &str| tokenizer.encode(text).map_err(|error| error.to_string());
    let trimmed = rstrip(given);
    let mut tokens = encode(&format!("{given}{scored}"))?;
    let mut context = encode(trimmed)?.len();
    if context == 0 {
        let end = tokenizer.eot().ok_or("the context is empty, and the tokenizer has no end-of-text token")?;
        if tokens.first() != Some(&end) {
            tokens.insert(0, end);
        }
        context = 1;
    }
    if tokens.len() <= context {
        return Err(format!("the answer {scored:?} has no tokens"));
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
