//! [`World`]: all ranks, as one of them sees them.

use std::fmt;

/// All ranks, as one of them sees them.
pub trait World: Send + Sync {
    /// Returns the number of this rank, from 0. Rank 0 alone prints and writes files.
    fn rank(&self) -> usize;

    /// Returns the number of ranks.
    fn size(&self) -> usize;

    /// Sends bytes to a rank and receives bytes from one, at the same time; `None` to do only the other. The receiver expects as
    /// many as are sent.
    fn exchange(&self, send: Option<(usize, &[u8])>, receive: Option<(usize, &mut [u8])>);

    /// Returns the bytes of every rank, in the order of the ranks.
    fn gather(&self, own: &[u8]) -> Vec<Vec<u8>>;

    /// Ends all ranks at once with this exit code.
    fn abort(&self, code: i32) -> !;

    /// Returns `true` on the rank that prints and writes files.
    fn is_root(&self) -> bool {
        self.rank() == 0
    }
}

impl fmt::Debug for dyn World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {} of {}", self.rank(), self.size())
    }
}
