//! Thread-local memory for packed operands and other intermediate results of a task.

use std::cell::RefCell;
use std::panic::resume_unwind;

use crate::base::memory::Buffer;

thread_local! {
    /// Memory that is not in use, the outermost user's last. Each grows to the largest size requested and is never freed, so that
    /// a step allocates nothing.
    static FREE: RefCell<Vec<Buffer>> = const { RefCell::new(Vec::new()) };
}

/// Calls `work` with this thread's workspace of `n` f32, whose contents are unspecified. Without the memory, the thread unwinds
/// with an [`ngen3_engine::Error`] as payload.
pub fn with_workspace(n: usize, work: impl FnOnce(&mut [f32])) {
    // Taken, not borrowed: `work` may need another workspace, and while this thread waits, rayon may run a task on it that does.
    let mut workspace = FREE.with_borrow_mut(|free| free.pop().unwrap_or_default());
    if workspace.len() < n {
        let larger = Buffer::zeros(n, "the packed operand of a product");
        // Too deep within a product to be returned. Not a panic, whose message would be for programmers: the program prints the error.
        workspace = larger.unwrap_or_else(|error| resume_unwind(Box::new(error)));
    }
    work(&mut workspace[..n]);
    FREE.with_borrow_mut(|free| free.push(workspace));
}

#[cfg(test)]
mod tests {
    use std::panic::catch_unwind;

    use super::*;

    #[test]
    fn without_memory_the_error_unwinds_and_memory_of_before_is_kept() {
        with_workspace(8, |workspace| workspace.fill(1.0));
        let payload = catch_unwind(|| with_workspace(usize::MAX / 4, |_| ())).unwrap_err();
        let error = payload.downcast::<ngen3_engine::Error>().expect("an error, not a panic's message");
        assert!(error.to_string().contains("the packed operand of a product"), "{error}");
        with_workspace(8, |workspace| assert_eq!(workspace.len(), 8));
    }
}
