//! Ranks: processes that train one model together.
//!
//! A [`World`] is this process's view of all ranks. [`Single`] is a world of one; [`Threads`] makes ranks of threads, for tests;
//! [`Slow`] has ranks wait as a slow network would;
//! with the feature `mpi`, [`mpi::start`] joins the ranks that `mpirun` or `srun` started. A world can do two things: exchange
//! bytes between two ranks, and give every rank the bytes of all. The reductions in [`sums`] are built on these, and add up in
//! an order that the numbers of the ranks fix, so that a result never depends on which message arrives first. A [`wire::Wire`] says
//! whether numbers travel as they are or rounded.
//!
//! Every rank calls the same functions in the same order; one that calls another waits forever.

#[cfg(feature = "mpi")]
pub mod mpi;
mod single;
mod slow;
pub mod sums;
mod threads;
pub mod wire;
mod world;

pub use single::Single;
pub use slow::{Link, Slow};
pub use threads::Threads;
pub use world::World;
