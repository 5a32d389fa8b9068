//! The ground floor: large arrays, and clocks.

pub mod memory;
pub mod profile;
#[cfg(test)]
pub mod testing;
