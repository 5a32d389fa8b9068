//! Large arrays, timers, and threads that wait awake.

#[cfg(test)]
#[path = "../../tests/fixtures/mod.rs"]
pub mod fixtures;
pub mod memory;
pub mod profile;
pub mod team;
#[cfg(test)]
pub mod testing;
