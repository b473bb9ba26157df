//! Rows `ids` of the embedding table: `x[t] = table[ids[t]]`; table (V, D), x (T, D).

pub(super) mod cpu;
pub(super) mod cuda;
pub(super) mod reference;
#[cfg(test)]
mod tests;

use super::matrix::Matrix;
use super::{Error, Result};

/// Checks every id against the table's rows and gives `x` its size.
pub(super) fn prepare<F: Copy + Default>(
    (vocabulary, width): (usize, usize),
    ids: &[u32],
    x: &mut Matrix<F>,
) -> Result<()> {
    if let Some(&id) = ids.iter().find(|&&id| id as usize >= vocabulary) {
        return Err(Error::Index { op: "embed", index: id as usize, len: vocabulary });
    }
    x.resize(ids.len(), width)
}
