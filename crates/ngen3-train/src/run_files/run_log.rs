//! `X_model.run/`: the log of a run.
//!
//! `metrics.jsonl` has one [`MetricsLine`] of JSON per logged step, written at once. TensorBoard's event file and `loss.svg`
//! are generated from it. `samples.jsonl` has texts of the model. A resumed run drops the lines after the step that it continues
//! from, so the log always reads like that of an uninterrupted run.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use ngen3_model::files::{create_folders, write_atomic};

use crate::Error;
use crate::run_files::metrics::MetricsLine;
use crate::run_files::plot;
use crate::run_files::samples::{self, Sample};
use crate::run_files::tensorboard;

/// Prefix by which TensorBoard finds event files.
const EVENTS_PREFIX: &str = "events.out.tfevents.";

/// Log of a run, on the rank that writes files; on others nothing.
#[derive(Debug)]
pub struct RunLog(Option<Open>);

/// Open files of a log.
#[derive(Debug)]
struct Open {
    folder: PathBuf,
    metrics: File,
    events: File,
    lines: Vec<MetricsLine>,
}

impl RunLog {
    /// A log that is written by another rank.
    pub fn elsewhere() -> Self {
        Self(None)
    }

    /// Opens or creates the log in `folder` and drops existing lines from step `from` on.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Model`] if a file cannot be read or written; [`Error::File`] if a line of `metrics.jsonl` is
    /// invalid.
    pub fn open(folder: &Path, from: u64) -> Result<Self, Error> {
        create_folders(folder).map_err(Error::io("create the folder", folder))?;
        let path = folder.join("metrics.jsonl");
        let lines = match from.checked_sub(1) {
            None => Vec::new(),
            Some(last) => read_lines(&path, last)?,
        };
        write_atomic(&path, |file| lines.iter().try_for_each(|line| file.write_all(&json(line))))?;
        let metrics = OpenOptions::new().append(true).open(&path).map_err(Error::io("open", &path))?;
        samples::cut(folder, from)?;
        let events = new_event_file(folder, &lines)?;
        Ok(Self(Some(Open { folder: folder.into(), metrics, events, lines })))
    }

    /// Appends a line.
    ///
    /// # Errors
    /// [`Error::Io`] if a file cannot be written.
    pub fn write(&mut self, line: MetricsLine) -> Result<(), Error> {
        let Some(Open { folder, metrics, events, lines }) = &mut self.0 else { return Ok(()) };
        metrics.write_all(&json(&line)).map_err(Error::io("write", &folder.join("metrics.jsonl")))?;
        write_event(events, &line, now()).map_err(Error::io("write TensorBoard events in", folder))?;
        lines.push(line);
        Ok(())
    }

    /// Appends a text that the model generated after `step` updates.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be written.
    pub fn sample(&mut self, step: u64, text: String) -> Result<(), Error> {
        self.0.as_ref().map_or(Ok(()), |open| samples::append(&open.folder, &Sample { step, text }))
    }

    /// Syncs the files to disk and redraws `loss.svg`; called at every save.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Model`] if a file cannot be written.
    pub fn sync(&mut self) -> Result<(), Error> {
        let Some(Open { folder, metrics, events, lines }) = &self.0 else { return Ok(()) };
        for file in [metrics, events] {
            file.sync_data().map_err(Error::io("write in", folder))?;
        }
        let title = folder.file_stem().unwrap_or_default().to_string_lossy();
        let svg = plot::loss_svg(&title, lines);
        write_atomic(&folder.join("loss.svg"), |file| file.write_all(svg.as_bytes()))?;
        Ok(())
    }
}

/// Reads the metrics in the folder `run` up to `step`; empty if there are none.
///
/// # Errors
/// [`Error::Io`] if `metrics.jsonl` cannot be read; [`Error::File`] if a line is invalid.
pub fn read_metrics(run: &Path, step: u64) -> Result<Vec<MetricsLine>, Error> {
    read_lines(&run.join("metrics.jsonl"), step)
}

/// Reads the lines of `metrics.jsonl` up to `step`; none if the file does not exist.
fn read_lines(path: &Path, step: u64) -> Result<Vec<MetricsLine>, Error> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io("read", path)(error)),
    };
    parse_lines(&text, step).map_err(|what| Error::file(path, what))
}

/// Parses the lines up to `step`. An incomplete last line, left by a killed run, is dropped, and so is everything from a line on that
/// a power failure left as zeros.
fn parse_lines(text: &str, step: u64) -> Result<Vec<MetricsLine>, String> {
    let whole = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
    let mut lines: Vec<MetricsLine> = Vec::new();
    for (index, text) in whole.lines().enumerate() {
        // After a power failure, a line that was not synced may be zeros. All lines before the saved state were synced.
        if text.contains('\0') {
            break;
        }
        let line: MetricsLine = serde_json::from_str(text).map_err(|error| {
            format!("line {}: expected metrics of a training run ({error}); move the file away", index + 1)
        })?;
        if line.step > step {
            break;
        }
        lines.push(line);
    }
    Ok(lines)
}

fn json(line: &MetricsLine) -> Vec<u8> {
    let mut text = serde_json::to_vec(line).expect("numbers serialise");
    text.push(b'\n');
    text
}

/// Replaces the folder's event files with a new one that holds `lines`.
fn new_event_file(folder: &Path, lines: &[MetricsLine]) -> Result<File, Error> {
    for entry in fs::read_dir(folder).map_err(Error::io("read", folder))? {
        let path = entry.map_err(Error::io("read", folder))?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(EVENTS_PREFIX)) {
            fs::remove_file(&path).map_err(Error::io("remove", &path))?;
        }
    }
    let now = now();
    let path = folder.join(format!("{EVENTS_PREFIX}{:010}.ngen3", now as u64));
    let write = || {
        let mut file = File::create(&path)?;
        tensorboard::write_record(&mut file, &tensorboard::version_event(now))?;
        // Times as if the run had never paused and ended now.
        let end = lines.last().map_or(0.0, |line| line.elapsed_s);
        for line in lines {
            write_event(&mut file, line, now - (end - line.elapsed_s))?;
        }
        Ok(file)
    };
    write().map_err(Error::io("write", &path))
}

fn write_event(file: &mut File, line: &MetricsLine, wall_time: f64) -> std::io::Result<()> {
    let names: Vec<String>;
    let mut scalars = Vec::new();
    if let Some(train) = &line.train {
        scalars.extend([
            ("loss/train", train.train_loss),
            ("lr", train.lr),
            ("grad_norm", train.grad_norm),
            ("tokens_per_s", train.tokens_per_s as f32),
        ]);
        names = train.parts.keys().map(|name| format!("loss/{name}")).collect();
        scalars.extend(names.iter().map(String::as_str).zip(train.parts.values().copied()));
    }
    scalars.extend(line.val_loss.map(|loss| ("loss/val", loss)));
    scalars.extend(line.val_bpb.map(|bits| ("bits_per_byte/val", bits)));
    tensorboard::write_record(file, &tensorboard::scalar_event(wall_time, line.step, &scalars))
}

/// Returns the Unix time in seconds.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::run_files::metrics::StepMetrics;

    fn line(step: u64) -> MetricsLine {
        let (parts, grad_norm, ms_per_step) = (BTreeMap::new(), 0.5, 10.0);
        let train = StepMetrics { train_loss: 1.5, parts, lr: 3e-4, grad_norm, ms_per_step, tokens_per_s: 100.0 };
        MetricsLine {
            step,
            train: (step > 0).then_some(train),
            elapsed_s: 0.1,
            val_loss: step.is_multiple_of(2).then_some(2.5),
            val_bpb: step.is_multiple_of(2).then_some(1.25),
            memory_gib: None,
        }
    }

    fn steps(path: &Path) -> Vec<u64> {
        read_lines(path, u64::MAX).unwrap().iter().map(|line| line.step).collect()
    }

    #[test]
    fn a_line_has_the_fields_that_were_promised() {
        let expected = "{\"step\":2,\"train_loss\":1.5,\"lr\":0.0003,\"grad_norm\":0.5,\"ms_per_step\":10.0,\
            \"tokens_per_s\":100.0,\"elapsed_s\":0.1,\"val_loss\":2.5,\"val_bpb\":1.25}\n";
        assert_eq!(String::from_utf8(json(&line(2))).unwrap(), expected);
        let unknown = MetricsLine { val_bpb: None, ..line(0) };
        let expected = "{\"step\":0,\"elapsed_s\":0.1,\"val_loss\":2.5}\n";
        assert_eq!(String::from_utf8(json(&unknown)).unwrap(), expected);
    }

    #[test]
    fn a_resumed_run_goes_on_where_it_stood() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("x.run");
        let path = folder.join("metrics.jsonl");
        let mut log = RunLog::open(&folder, 0).unwrap();
        (0..=4).for_each(|step| log.write(line(step)).unwrap());
        log.sync().unwrap();
        assert!(fs::read_to_string(folder.join("loss.svg")).unwrap().ends_with("</svg>\n"));
        drop(log);
        // A killed run can leave an incomplete line.
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"step\":5,\"trai").unwrap();

        assert_eq!(steps(&path), [0, 1, 2, 3, 4]);
        // A power failure can lose a line before others.
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"\0\0\0\0\n{\"step\":6}\n").unwrap();
        assert_eq!(steps(&path), [0, 1, 2, 3, 4]);

        let mut log = RunLog::open(&folder, 3).unwrap();
        assert_eq!(steps(&path), [0, 1, 2], "lines from step 3 on are removed at once");
        log.write(line(3)).unwrap();
        assert_eq!(steps(&path), [0, 1, 2, 3]);
        assert_eq!(log.0.unwrap().lines, [line(0), line(1), line(2), line(3)]);
        let events = fs::read_dir(&folder)
            .unwrap()
            .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with(EVENTS_PREFIX));
        assert_eq!(events.count(), 1, "TensorBoard sees one run, not two");

        RunLog::open(&folder, 0).unwrap();
        assert!(steps(&path).is_empty(), "a run at step 0 starts a new log");
    }

    #[test]
    fn a_foreign_line_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("metrics.jsonl"), "{\"step\":0,\"elapsed_s\":0}\nhello\n").unwrap();
        let error = RunLog::open(dir.path(), 5).unwrap_err().to_string();
        assert!(error.contains("metrics.jsonl: line 2: expected metrics"), "{error}");
    }

    proptest! {
        #[test]
        fn lines_come_back_as_they_were_written(
            step in any::<u64>(), loss in 0f32..1e4, lr in 0f32..1.0, val in proptest::option::of(0f32..1e4), bits in proptest::option::of(0f32..1e4),
            trained in any::<bool>(), parts in proptest::collection::btree_map("part_[a-z]{1,5}", 0f32..1e4, 0..3),
        ) {
            let (grad_norm, ms_per_step) = (loss, 1.25);
            let train = StepMetrics { train_loss: loss, parts, lr, grad_norm, ms_per_step, tokens_per_s: 0.5 };
            let line = MetricsLine { step, train: trained.then_some(train), elapsed_s: 3.5, val_loss: val, val_bpb: bits, memory_gib: bits };
            let text = String::from_utf8(json(&line)).unwrap();
            prop_assert_eq!(parse_lines(&text, u64::MAX), Ok(vec![line]));
        }

        #[test]
        fn any_text_is_read_or_refused(text in "([\\PC\n]{0,20}|\\{\"step\":[0-9]{1,3},\"elapsed_s\":1\\}\n){0,4}") {
            if let Ok(lines) = parse_lines(&text, 50) {
                prop_assert!(lines.iter().all(|line| line.step <= 50));
            }
        }
    }
}
