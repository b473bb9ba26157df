//! Normalises each row of `x` by its root mean square, then scales it by `weight`.
//!
//! `rstd[t] = 1/sqrt(mean_d(x[t]²) + eps)`, `y[t, d] = x[t, d]·rstd[t]·weight[d]`; x, y (T, D), weight (D), rstd (T).
//! Backward, with `n = x·rstd`: `dx += rstd·(dy·weight − n·mean_d(dy·weight·n))`. The weight is frozen.
//! Source: Zhang & Sennrich 2019, arXiv:1910.07467, eq. 4.

pub(super) mod cpu;
pub(super) mod cuda;
pub(super) mod reference;
#[cfg(test)]
mod tests;

use super::matrix::{Matrix, resize};
use super::{Result, same};

/// Checks the sizes of the forward pass and gives `y` and `rstd` theirs.
pub(super) fn prepare<F: Copy + Default>(
    x: &Matrix<F>,
    weight: &[F],
    y: &mut Matrix<F>,
    rstd: &mut Vec<F>,
) -> Result<()> {
    same("rms_norm", "the length of weight", weight.len(), x.cols)?;
    y.resize(x.rows, x.cols)?;
    resize("rms_norm", rstd, x.rows)
}

/// Checks the sizes of the backward pass.
pub(super) fn check_backward<F>(dy: &Matrix<F>, x: &Matrix<F>, weight: &[F], rstd: &[F], dx: &Matrix<F>) -> Result<()> {
    let op = "rms_norm_backward_add";
    same(op, "the length of weight", weight.len(), x.cols)?;
    same(op, "the length of rstd", rstd.len(), x.rows)?;
    same(op, "rows of dy", dy.rows, x.rows)?;
    same(op, "columns of dy", dy.cols, x.cols)?;
    same(op, "rows of dx", dx.rows, x.rows)?;
    same(op, "columns of dx", dx.cols, x.cols)
}
