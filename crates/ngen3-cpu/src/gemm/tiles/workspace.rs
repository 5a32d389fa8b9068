//! Thread-local memory for packed operands.

use std::cell::RefCell;

use crate::base::memory::Buffer;

thread_local! {
    /// Packed operands of the current task. Grows to the largest size requested and is never freed, so that a step allocates
    /// nothing.
    static WORKSPACE: RefCell<Buffer> = RefCell::new(Buffer::default());
}

/// Calls `work` with this thread's workspace of `n` f32, whose contents are unspecified.
pub fn with_workspace(n: usize, work: impl FnOnce(&mut [f32])) {
    // Taken, not borrowed: while this thread waits, rayon may run another task on it that needs a workspace.
    let mut workspace = WORKSPACE.take();
    if workspace.len() < n {
        let larger = Buffer::zeros(n, "the packed operand of a product");
        workspace = larger.expect("memory for the packed operands of a product");
    }
    work(&mut workspace[..n]);
    WORKSPACE.set(workspace);
}
