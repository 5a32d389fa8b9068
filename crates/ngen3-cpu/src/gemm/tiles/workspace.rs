//! Thread-local memory for packed operands and other intermediate results of a task.

use std::cell::RefCell;

use crate::base::memory::Buffer;

thread_local! {
    /// Memory that is not in use, the outermost user's last. Each grows to the largest size requested and is never freed, so that
    /// a step allocates nothing.
    static FREE: RefCell<Vec<Buffer>> = const { RefCell::new(Vec::new()) };
}

/// Calls `work` with this thread's workspace of `n` f32, whose contents are unspecified.
pub fn with_workspace(n: usize, work: impl FnOnce(&mut [f32])) {
    // Taken, not borrowed: `work` may need another workspace, and while this thread waits, rayon may run a task on it that does.
    let mut workspace = FREE.with_borrow_mut(|free| free.pop().unwrap_or_default());
    if workspace.len() < n {
        let larger = Buffer::zeros(n, "the packed operand of a product");
        workspace = larger.expect("memory for the packed operands of a product");
    }
    work(&mut workspace[..n]);
    FREE.with_borrow_mut(|free| free.push(workspace));
}
