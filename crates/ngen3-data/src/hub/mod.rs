//! The Hugging Face hub: models and datasets by name, kept in the cache folder that Python's `huggingface_hub` keeps.
//!
//! A [`Hub`] is a server and a cache, as the `HF_*` variables say (`env.rs`). [`Hub::open`] settles a name and a revision to
//! one commit with its list of files, a [`Snapshot`]; [`Snapshot::fetch`] gives the path of one of them, downloading it
//! unless the cache has it. [`Hub::fetch_model`] does both for all that a model needs; [`Hub::push`] is the way back.
//!
//! Names, addresses and the cache's layout come from the `hf-hub` crate. The requests are our own (`client.rs`,
//! `download.rs`), since that crate neither goes on with a broken download, nor checks what arrived, nor passes on what the
//! hub says when it refuses. `cache.rs` has the listing of a commit, which offline work needs, and the links.

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
