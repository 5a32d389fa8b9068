//! `ngen3`: from raw text to a language model, on the machine in front of you.
//!
//! Read `commands/mod.rs` first: it lists the commands, one small file each, which holds the command's flags and a straight
//! `run`. The files beside this one are what commands share: [`cli`] (the definition of all commands), [`argv`] (names with
//! `_` or `-`), [`device`] (the engine), [`model`] (opening the models that flags name), [`training`] (training runs),
//! [`streaming`] (text as it is generated), [`teacher_writing`] (texts for a student), [`line_editor`], [`sparkline`], [`threads`], [`progress`], [`interrupt`],
//! [`forecast`] (of many machines),
//! [`json_file`], [`error_line`], [`stdout`] and [`world`] (the ranks of a run on many machines).
//!
//! This file turns the result of a command into one line and an exit code: 0 success, 1 failure, 2 usage error,
//! 130 interrupted.

mod argv;
mod cli;
mod commands;
mod decoding;
mod device;
mod error_line;
mod forecast;
mod interrupt;
mod json_file;
mod line_editor;
mod model;
mod plan;
mod progress;
mod run_samples;
mod sparkline;
mod stdout;
mod streaming;
mod teacher_writing;
mod threads;
mod training;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::process::ExitCode;

fn main() -> ExitCode {
    match world::join() {
        Ok(joined) => joined.leave(run()),
        Err(error) => {
            progress::write_line(&format!("error: {}", error_line::one_line(&error)));
            ExitCode::FAILURE
        }
    }
}

fn run() -> ExitCode {
    let definition = cli::definition();
    let command = match cli::parse(&definition, std::env::args_os()) {
        Ok(command) => command,
        // Usage errors go to stderr with code 2; help and version to stdout with code 0.
        Err(error) => {
            if !world::is_quiet() {
                let _ = error.print();
            }
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    match check_environment().and_then(|()| caught(|| command.run(&definition))) {
        Ok(()) => ExitCode::SUCCESS,
        // The reader of stdout has seen enough (`ngen3 … | head`), which is no failure.
        Err(error) if error.is::<stdout::Closed>() => ExitCode::SUCCESS,
        Err(error) => {
            let line = format!("error: {}", error_line::one_line(&error));
            progress::write_line(&line);
            if error.is::<interrupt::Interrupted>() {
                return ExitCode::from(130);
            }
            world::fail(&line);
            ExitCode::FAILURE
        }
    }
}

/// Runs a command; returns the error with which the engine unwinds where it cannot return one, out of memory within a product.
fn caught(run: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<()> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|payload| match payload.downcast::<ngen3_engine::Error>() {
        Ok(error) => Err((*error).into()),
        Err(payload) => resume_unwind(payload),
    })
}

/// Rejects a value of `NGEN3_SIMD` that names no instruction set of this processor.
fn check_environment() -> anyhow::Result<()> {
    ngen3_simd::forced().map(drop).map_err(anyhow::Error::msg)
}
