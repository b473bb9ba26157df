//! The matrix product that all larger operations are made of: `c = start + a·b` on one panel of columns.
//!
//! `c[i, j] = start[i, j] + Σ_k a[i, k]·b[k, j]`, where start is zero, c itself or another matrix. Every element is one
//! chain of multiply-adds over ascending k, whatever the tiling, the number of rows and the number of threads: so the
//! same row gives the same bits alone, in a batch, on one thread or on many, with k in one piece or in several.
//! That, and weights packed once instead of on every call, is why this is not the `gemm` crate.

pub(super) mod cpu;
pub(super) mod cuda;
pub(super) mod reference;
#[cfg(test)]
mod tests;

/// Columns of a packed panel: four 512-bit vectors, and a divisor of the widths models have.
pub(super) const PANEL: usize = 64;

/// What the product is added to.
#[derive(Clone, Copy, Debug)]
pub(super) enum Start<'a> {
    Zero,
    /// The output's own values: `c += a·b`.
    Output,
    /// Rows of another matrix, and the distance between them.
    Rows(&'a [f32], usize),
}

/// The operands of one product. `a[i, k] = a[i * a_row + k * a_col]`, `b[k, j] = b[k * b_row + j]`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Product<'a> {
    pub rows: usize,
    pub cols: usize,
    pub depth: usize,
    pub a: &'a [f32],
    pub a_row: usize,
    pub a_col: usize,
    pub b: &'a [f32],
    pub b_row: usize,
    pub start: Start<'a>,
}
