//! The low-rank halves of the adapters of one fused linear, and their gradients.
//!
//! `s = x·Aᵀ` for every part side by side; `ds = dy·blockdiag(scale·B)`;
//! `dA += dsᵀ·x` and `dB += scale·dyᵀ·s`, added into the flat gradient buffer.
//! x (T, K), s and ds (T, R), dy (T, N), A (r, K), B (n, r) with R = Σ r.
//! Source: Hu et al. 2021, arXiv:2106.09685, eq. 3.

pub(super) mod cpu;
pub(super) mod cuda;
pub(super) mod reference;
pub(super) mod rows;
#[cfg(test)]
mod tests;

use super::matrix::Matrix;
use super::{Error, LoraGroup, Result, same};

/// Checks that the group fits a weight of `out` x `in_features` and a flat buffer of `params` values.
pub(super) fn check_group(
    op: &'static str,
    group: &LoraGroup,
    params: usize,
    in_features: usize,
    out: usize,
) -> Result<()> {
    same(op, "in_features of the adapters", group.in_features, in_features)?;
    for part in &group.parts {
        let ends = [
            (part.a + part.rank * group.in_features, params),
            (part.b + part.rank * part.out_len, params),
            (part.s_start + part.rank, group.rank),
            (part.out_start + part.out_len, out),
        ];
        if let Some(&(end, len)) = ends.iter().find(|(end, len)| end > len) {
            return Err(Error::Index { op, index: end, len });
        }
    }
    Ok(())
}

/// Checks the shape of `s` or `ds`.
pub(super) fn check_rows<F>(
    op: &'static str,
    name: &'static str,
    s: &Matrix<F>,
    rows: usize,
    group: &LoraGroup,
) -> Result<()> {
    let (row_what, column_what) =
        if name == "s" { ("rows of s", "columns of s") } else { ("rows of ds", "columns of ds") };
    same(op, row_what, s.rows, rows)?;
    same(op, column_what, s.cols, group.rank)
}

/// Columns of the fused output that the parts reach.
fn out_end(group: &LoraGroup) -> usize {
    group.parts.iter().map(|part| part.out_start + part.out_len).max().unwrap_or(0)
}

pub(super) fn prepare_down<F: Copy + Default>(
    x: &Matrix<F>,
    group: &LoraGroup,
    params: &[F],
    s: &mut Matrix<F>,
) -> Result<()> {
    check_group("lora_down", group, params.len(), x.cols, out_end(group))?;
    s.resize(x.rows, group.rank)
}

pub(super) fn prepare_up_backward<F: Copy + Default>(
    dy: &Matrix<F>,
    group: &LoraGroup,
    params: &[F],
    ds: &mut Matrix<F>,
) -> Result<()> {
    check_group("lora_up_backward", group, params.len(), group.in_features, dy.cols)?;
    ds.resize(dy.rows, group.rank)
}

pub(super) fn check_gradients<F>(
    x: &Matrix<F>,
    s: &Matrix<F>,
    dy: &Matrix<F>,
    ds: &Matrix<F>,
    group: &LoraGroup,
    gradients: &[F],
) -> Result<()> {
    let op = "lora_gradients";
    check_group(op, group, gradients.len(), x.cols, dy.cols)?;
    same(op, "rows of dy", dy.rows, x.rows)?;
    check_rows(op, "s", s, x.rows, group)?;
    check_rows(op, "ds", ds, x.rows, group)
}
