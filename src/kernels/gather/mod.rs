//! Moves chosen rows: `gather` takes `y = x[rows]`, `scatter` puts `y[rows] = x` and leaves the other rows of y.
//!
//! The head computes logits only for rows that have a target: it gathers them before and scatters their gradient after.

pub(super) mod cpu;
pub(super) mod cuda;
pub(super) mod reference;
#[cfg(test)]
mod tests;

use super::matrix::Matrix;
use super::{Error, Result, same};

/// Checks the row numbers and gives `y` its size.
pub(super) fn prepare_gather<F: Copy + Default>(x: &Matrix<F>, rows: &[u32], y: &mut Matrix<F>) -> Result<()> {
    check_rows("gather_rows", rows, x.rows)?;
    y.resize(rows.len(), x.cols)
}

/// Checks the row numbers and the shape of `x`.
pub(super) fn check_scatter<F>(x: &Matrix<F>, rows: &[u32], y: &Matrix<F>) -> Result<()> {
    same("scatter_rows", "rows of x", x.rows, rows.len())?;
    same("scatter_rows", "columns of x", x.cols, y.cols)?;
    check_rows("scatter_rows", rows, y.rows)
}

fn check_rows(op: &'static str, rows: &[u32], len: usize) -> Result<()> {
    match rows.iter().find(|&&row| row as usize >= len) {
        Some(&row) => Err(Error::Index { op, index: row as usize, len }),
        None => Ok(()),
    }
}
