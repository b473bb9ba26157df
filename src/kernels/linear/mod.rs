//! The product with a frozen weight, with its adapters and the residual added in the same pass.
//!
//! Forward: `y = x·Wᵀ [+ s·blockdiag(scale·B)ᵀ] [+ residual]`; x (T, K), W (N, K), s (T, R), residual and y (T, N).
//! Backward: `dx = dy·W [+ ds·A]`; dy (T, N), ds (T, R) which already carries the scale, dx (T, K). W gets no gradient.

pub(super) mod cpu;
pub(super) mod cuda;
pub(super) mod reference;
pub(super) mod rows;
#[cfg(test)]
mod tests;

pub(super) use rows::MOST_ROWS;

use super::matrix::Matrix;
use super::{LoraGroup, Result, lora, same};

/// The adapters of a product: their layout, the flat parameters and the rows `s` (forward) or `ds` (backward).
pub(super) type Adapters<'a, F> = Option<(&'a LoraGroup, &'a [F], &'a Matrix<F>)>;

/// Checks the sizes of the forward product and gives `y` its size.
pub(super) fn prepare<F: Copy + Default>(
    x: &Matrix<F>,
    (rows, cols): (usize, usize),
    adapters: Adapters<'_, F>,
    residual: Option<&Matrix<F>>,
    y: &mut Matrix<F>,
) -> Result<()> {
    let op = "linear";
    same(op, "columns of x", x.cols, cols)?;
    if let Some((group, params, s)) = adapters {
        lora::check_group(op, group, params.len(), cols, rows)?;
        lora::check_rows(op, "s", s, x.rows, group)?;
    }
    if let Some(residual) = residual {
        same(op, "rows of residual", residual.rows, x.rows)?;
        same(op, "columns of residual", residual.cols, rows)?;
    }
    y.resize(x.rows, rows)
}

/// Checks the sizes of gate|up and gives `h` its size.
pub(super) fn prepare_swiglu<F: Copy + Default>(
    x: &Matrix<F>,
    (rows, cols): (usize, usize),
    adapters: Adapters<'_, F>,
    h: &mut Matrix<F>,
) -> Result<()> {
    same("linear_swiglu", "rows of gate|up modulo 2", rows % 2, 0)?;
    prepare(x, (rows, cols), adapters, None, h)?;
    h.resize(x.rows, rows / 2)
}

/// Checks the sizes of the backward product and gives `dx` its size.
pub(super) fn prepare_backward<F: Copy + Default>(
    dy: &Matrix<F>,
    (rows, cols): (usize, usize),
    adapters: Adapters<'_, F>,
    dx: &mut Matrix<F>,
) -> Result<()> {
    let op = "linear_backward";
    same(op, "columns of dy", dy.cols, rows)?;
    if let Some((group, params, ds)) = adapters {
        lora::check_group(op, group, params.len(), cols, rows)?;
        lora::check_rows(op, "ds", ds, dy.rows, group)?;
    }
    dx.resize(dy.rows, cols)
}
