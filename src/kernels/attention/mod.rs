//! Causal grouped-query attention inside every text of a packed batch.
//!
//! For query `i` and head `h` with key head `h / (heads/kv_heads)`: `s[j] = q·k[j]/sqrt(head_dim)` over the visible keys
//! `i − window < j <= i` of the same text, `p = softmax(s)`, `o = Σ_j p[j]·v[j]`, `lse = ln Σ_j exp(s[j])`.
//! Backward: `D = Σ_d do·o`, `dv[j] += p[j]·do`, `ds[j] = p[j]·(do·v[j] − D)`, `dq = Σ_j ds[j]·k[j]/sqrt(head_dim)`,
//! `dk[j] += ds[j]·q/sqrt(head_dim)`; the query heads of a group are added in ascending order.
//! qkv and dqkv (T, (heads + 2·kv_heads)·head_dim), o and do (T, heads·head_dim), lse (heads·T) head-major,
//! but as it likes where cuDNN computes both directions.
//! Source: Dao et al. 2022, arXiv:2205.14135, algorithms 1 and 4.

pub(super) mod cpu;
pub(super) mod cuda;
pub(super) mod cudnn;
mod graphs;
pub(super) mod reference;
pub(super) mod step;
#[cfg(test)]
mod tests;
mod tiles;

use std::ops::Range;

use super::matrix::{Matrix, Texts, resize};
use super::{Attention, Error, Result, same};

impl Attention {
    /// Query heads that share one key head.
    pub(crate) fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Columns of a row of `qkv`.
    pub(crate) fn width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    pub(crate) fn q_column(&self, head: usize) -> usize {
        head * self.head_dim
    }

    pub(crate) fn k_column(&self, kv_head: usize) -> usize {
        (self.heads + kv_head) * self.head_dim
    }

    pub(crate) fn v_column(&self, kv_head: usize) -> usize {
        (self.heads + self.kv_heads + kv_head) * self.head_dim
    }

    /// The keys that the query at index `i` of its text sees.
    pub(crate) fn visible(&self, i: usize) -> Range<usize> {
        self.window.map_or(0, |window| (i + 1).saturating_sub(window))..i + 1
    }
}

/// Checks the geometry and the width of `qkv`.
pub(super) fn check_qkv<F>(op: &'static str, qkv: &Matrix<F>, attention: &Attention) -> Result<()> {
    if attention.kv_heads == 0 || attention.head_dim == 0 || attention.window == Some(0) {
        return Err(Error::Size { op, what: "kv_heads, head_dim or window", got: 0, wanted: 1 });
    }
    same(op, "heads modulo kv_heads", attention.heads % attention.kv_heads, 0)?;
    same(op, "columns of qkv", qkv.cols, attention.width())
}

pub(super) fn prepare<F: Copy + Default>(
    qkv: &Matrix<F>,
    texts: &Texts,
    attention: &Attention,
    o: &mut Matrix<F>,
    lse: &mut Vec<F>,
) -> Result<()> {
    check_qkv("attention", qkv, attention)?;
    same("attention", "rows of qkv", qkv.rows, texts.tokens())?;
    o.resize(qkv.rows, attention.heads * attention.head_dim)?;
    resize("attention", lse, attention.heads * qkv.rows)
}

#[allow(clippy::too_many_arguments)]
pub(super) fn prepare_backward<F: Copy + Default>(
    do_: &Matrix<F>,
    qkv: &Matrix<F>,
    o: &Matrix<F>,
    lse: &[F],
    texts: &Texts,
    attention: &Attention,
    dqkv: &mut Matrix<F>,
) -> Result<()> {
    let op = "attention_backward";
    check_qkv(op, qkv, attention)?;
    same(op, "rows of qkv", qkv.rows, texts.tokens())?;
    for (rows_of, columns_of, matrix) in [("rows of do", "columns of do", do_), ("rows of o", "columns of o", o)] {
        same(op, rows_of, matrix.rows, qkv.rows)?;
        same(op, columns_of, matrix.cols, attention.heads * attention.head_dim)?;
    }
    same(op, "the length of lse", lse.len(), attention.heads * qkv.rows)?;
    dqkv.resize(qkv.rows, qkv.cols)
}

/// Checks the caches and appends the new rows' keys and values to them.
pub(super) fn prepare_cached<F: Copy + Default>(
    qkv: &Matrix<F>,
    keys: &mut Matrix<F>,
    values: &mut Matrix<F>,
    cached: usize,
    attention: &Attention,
    o: &mut Matrix<F>,
) -> Result<()> {
    append("attention_cached", qkv, keys, values, cached, attention)?;
    o.resize(qkv.rows, attention.heads * attention.head_dim)
}

/// Checks the caches and writes the new rows' keys and values behind the `cached` ones.
pub(super) fn append<F: Copy + Default>(
    op: &'static str,
    qkv: &Matrix<F>,
    keys: &mut Matrix<F>,
    values: &mut Matrix<F>,
    cached: usize,
    attention: &Attention,
) -> Result<()> {
    check_qkv(op, qkv, attention)?;
    let width = attention.kv_heads * attention.head_dim;
    let first_columns = [attention.k_column(0), attention.v_column(0)];
    for (cache, first_column) in [keys, values].into_iter().zip(first_columns) {
        if cached > 0 {
            same(op, "columns of the cache", cache.cols, width)?;
        }
        if cache.rows < cached {
            return Err(Error::Size { op, what: "rows of the cache", got: cache.rows, wanted: cached });
        }
        cache.resize(cached + qkv.rows, width)?;
        for row in 0..qkv.rows {
            cache.row_mut(cached + row).copy_from_slice(&qkv.row(row)[first_column..first_column + width]);
        }
    }
    Ok(())
}
