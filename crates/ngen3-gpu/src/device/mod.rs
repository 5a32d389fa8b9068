//! The adapter and what is done with it, without a word about models. Bottom-up: `template.rs` (constants and repeated lines
//! of WGSL), `buffer.rs` (named buffers and views of them), `adapter.rs` (the adapters of this machine), `context.rs` (an open
//! device, its pipelines, transfers), `recorder.rs` (kernels in order).

mod adapter;
mod buffer;
mod context;
mod recorder;
mod template;

pub use adapter::{Adapter, adapters, may_have_gpu};
pub use buffer::{Buffer, View};
pub use context::Context;
pub use recorder::{Binding, Kernel, Recorder, read, write};
