//! Multiplies every value by one factor, in place: `x *= factor`.

pub(super) mod cpu;
pub(super) mod cuda;
pub(super) mod reference;
#[cfg(test)]
mod tests;
