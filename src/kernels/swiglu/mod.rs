//! The gated unit of the feed-forward layer: `h = silu(gate)·up`, where a row of `gate_up` is `[gate | up]`.
//!
//! `silu(g) = g·sigmoid(g)`; gate_up (T, 2F), h (T, F).
//! Backward, with `p = sigmoid(g)`: `dup = dh·g·p`, `dgate = dh·u·p·(1 + g·(1 − p))`; in place: `dh` becomes h again and
//! `gate_up` becomes `[dgate | dup]`, so the layer needs no third buffer of this width.
//! Source: Shazeer 2020, arXiv:2002.05202, eq. 6.

pub(super) mod cpu;
pub(super) mod cuda;
pub(super) mod reference;
#[cfg(test)]
mod tests;

use super::matrix::Matrix;
use super::{Result, same};

/// Checks that `gate_up` has two halves and gives `h` its size.
pub(super) fn prepare<F: Copy + Default>(gate_up: &Matrix<F>, h: &mut Matrix<F>) -> Result<()> {
    same("swiglu", "the columns of gate_up modulo 2", gate_up.cols % 2, 0)?;
    h.resize(gate_up.rows, gate_up.cols / 2)
}

/// Checks that `dh` is half as wide as `gate_up`.
pub(super) fn check_backward<F>(dh: &Matrix<F>, gate_up: &Matrix<F>) -> Result<()> {
    same("swiglu_backward", "rows of dh", dh.rows, gate_up.rows)?;
    same("swiglu_backward", "columns of gate_up", gate_up.cols, 2 * dh.cols)
}
