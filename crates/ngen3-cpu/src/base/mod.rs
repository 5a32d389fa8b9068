//! Large arrays and timers.

#[cfg(test)]
#[path = "../../tests/fixtures/mod.rs"]
pub mod fixtures;
pub mod memory;
pub mod profile;
#[cfg(test)]
pub mod testing;
