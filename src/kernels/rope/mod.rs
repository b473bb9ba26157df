//! Rotates pairs of query and key columns by an angle that grows with the position.
//!
//! For each head, `j < head_dim/2`, `angle = sign·position·inverse_frequencies[j]`:
//! `q'[j] = q[j]·cos − q[j + d/2]·sin`, `q'[j + d/2] = q[j + d/2]·cos + q[j]·sin` (half-split pairs, as in Mistral).
//! In place on the q and k columns of `qkv` (T, (heads + 2·kv_heads)·head_dim); v is untouched. The transpose of the
//! rotation, which the backward pass needs, is the rotation with `sign = −1`. Angles are computed in f64.
//! Source: Su et al. 2021, arXiv:2104.09864, eq. 34.

pub(super) mod cpu;
pub(super) mod cuda;
pub(super) mod reference;
#[cfg(test)]
mod tests;

use super::matrix::{Matrix, Texts};
use super::{Attention, Result, same};

/// Checks the shape of `qkv` and the number of frequencies.
pub(super) fn check<F>(qkv: &Matrix<F>, texts: &Texts, attention: &Attention, inverse_frequencies: &[F]) -> Result<()> {
    super::attention::check_qkv("rope", qkv, attention)?;
    same("rope", "rows of qkv", qkv.rows, texts.tokens())?;
    same("rope", "head_dim modulo 2", attention.head_dim % 2, 0)?;
    same("rope", "the length of inverse_frequencies", inverse_frequencies.len(), attention.head_dim / 2)
}
