//! The Hugging Face hub: models and datasets by name, in the cache folder shared with Python's `huggingface_hub`.
//!
//! A [`Hub`] is a server and a cache, configured by the `HF_*` variables (`env.rs`). [`Hub::open`] resolves a name and a revision
//! to one commit with its list of files, a [`Snapshot`]; [`Snapshot::fetch`] returns the path of one of them, downloading it
//! unless the cache has it. [`Hub::fetch_model`] does both for all files of a model; [`Hub::push`] uploads a model.
//!
//! Names, URLs and the cache layout come from the `hf-hub` crate. The requests are our own (`client.rs`, `download.rs`), since
//! that crate neither resumes a broken download, nor verifies it, nor passes on the hub's error messages. `cache.rs` has the
//! list of a commit's files, which offline use needs, and the links.

mod cache;
mod client;
mod download;
mod env;
mod hash;
mod model;
mod repo;
mod snapshot;
mod upload;

pub use env::Env;
pub use repo::{RepoFile, RepoKind, is_local};
pub use snapshot::{Hub, Snapshot};
pub use upload::CommitInfo;

pub use crate::progress::ProgressFn;
