//! The ground floor: large arrays, and clocks.

#[cfg(test)]
#[path = "../../tests/fixtures/mod.rs"]
pub mod fixtures;
pub mod memory;
pub mod profile;
#[cfg(test)]
pub mod testing;
