//! Memory that each thread keeps for the operands that it lays out.

use std::cell::RefCell;

use crate::base::memory::Buffer;

thread_local! {
    /// Operands that a task lays out for itself. Grows to the largest seen, then stays: a step allocates nothing.
    static WORKSPACE: RefCell<Buffer> = RefCell::new(Buffer::default());
}

/// Gives `work` this thread's room for `n` numbers, which hold anything.
pub fn with_workspace(n: usize, work: impl FnOnce(&mut [f32])) {
    // Taken, not borrowed: while this thread waits for others it may be given work that multiplies too.
    let mut workspace = WORKSPACE.take();
    if workspace.len() < n {
        let larger = Buffer::zeros(n, "the operands of a product");
        workspace = larger.expect("memory for the operands of one product");
    }
    work(&mut workspace[..n]);
    WORKSPACE.set(workspace);
}
