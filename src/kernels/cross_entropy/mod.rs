//! Cross entropy of each row of logits against its target, and the gradient in place.
//!
//! `loss = Σ_t lse[t] − z[t, target]` with `lse[t] = ln Σ_v exp(z[t, v])`; then `z[t, v] = weight·(softmax(z[t])[v] −
//! [v = target])`. `log_probs` gives `z[t, target] − lse[t]` for every row and leaves the logits alone.
//! logits (T, V), targets (T). The row's maximum is subtracted first, so logits of ±1e4 are safe.

pub(super) mod cpu;
pub(super) mod cuda;
pub(super) mod reference;
#[cfg(test)]
mod tests;

use super::matrix::Matrix;
use super::{Error, Result, same};

/// Checks that there is one target inside the vocabulary for every row.
pub(super) fn check<F>(op: &'static str, logits: &Matrix<F>, targets: &[u32]) -> Result<()> {
    same(op, "the number of targets", targets.len(), logits.rows)?;
    match targets.iter().find(|&&target| target as usize >= logits.cols) {
        Some(&target) => Err(Error::Index { op, index: target as usize, len: logits.cols }),
        None => Ok(()),
    }
}
