//! Models over HTTP: the OpenAI API, and a page to talk to them, to compare them and to watch training runs.
//!
//! Read `server.rs` first (connections), then `routes.rs` (paths) and `guard.rs` (who may send requests). `engine.rs` is the thread that
//! owns a model and batches its requests; `api/` the handlers of the OpenAI API; `runs.rs` reads training runs; `page/` is the page.

mod api;
mod body;
mod config;
mod engine;
#[cfg(feature = "fuzz")]
pub mod fuzz;
mod guard;
mod json;
mod metrics;
mod page;
mod routes;
mod runs;
mod served;
mod server;
mod state;

pub use config::ServeConfig;
pub use engine::OpenModel;
pub use served::ModelSpec;
pub use server::{Error, Server};
