//! Hostile files, hubs and requests, end to end: the real command on each, with what it printed, its time and its memory.
//!
//! Each file of this folder has the inputs of one kind, which the test makes itself, and prints a table with `--nocapture`:
//! `scripts/hostile` prints all of them, docs/reliability.md keeps them. `case.rs` has the rules that every case obeys.
#![cfg(unix)]

#[path = "../common/mod.rs"]
mod common;

mod archives;
mod case;
mod checkpoints;
mod datasets;
mod folders;
mod gguf;
mod hub;
mod server;
mod templates;
mod tokenizers;
