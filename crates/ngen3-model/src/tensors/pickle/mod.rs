//! The subset of Python's pickle format (protocol 2) that checkpoints use. Opcodes are those of CPython's `pickle.py`.

mod read;
mod write;

pub(crate) use read::{Id, Node, Pickle};
pub(crate) use write::Writer;
