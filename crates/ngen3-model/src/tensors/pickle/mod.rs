//! The subset of Python's pickle format (protocols 2 to 5) that checkpoints and nanoGPT's `meta.pkl` use. Opcodes are those
//! of CPython's `pickle.py`.

mod read;
mod write;

pub(crate) use read::{Id, Node, Pickle};
pub(crate) use write::Writer;
