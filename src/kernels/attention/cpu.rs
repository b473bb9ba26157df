//! `attention` in f32 by tiles of 64 queries x 64 keys with a running softmax; no T x T matrix.
//!
//! A task is one key head over one text, so keys and values are packed once for their group of query heads. Its output
//! is a block of its own, copied into the rows at the end: heads of one row lie side by side and cannot be lent apart.

use pulp::Arch;

use super::tiles::{Block, TILE, Text, backward_text, forward_text};
use crate::kernels::matrix::{Matrix, Texts};
use crate::kernels::simd::{exp, sum2, vectorized};
use crate::kernels::threads::{Threads, try_scratch, with_scratch};
use crate::kernels::{Attention, Result};

type Device<'a> = (&'a Threads, Arch);

pub(crate) fn forward(
    (threads, arch): Device<'_>,
    qkv: &Matrix<f32>,
    texts: &Texts,
    attention: &Attention,
    o: &mut Matrix<f32>,
    lse: &mut [f32],
) -> Result<()> {
    let (rows, group, width) = (qkv.rows, attention.group(), attention.group() * attention.head_dim);
    try_scratch("attention", attention.kv_heads * rows * (width + group), |scratch| {
        let (out, statistics) = scratch.split_at_mut(attention.kv_heads * rows * width);
        let mut tasks = Vec::new();
        let (mut out_rest, mut statistics_rest) = (&mut *out, &mut *statistics);
        for kv_head in 0..attention.kv_heads {
            for text in texts.rows().filter(|text| !text.is_empty()) {
                for queries in blocks(text.len(), attention.kv_heads, rows) {
                    let (out, after) = out_rest.split_at_mut(queries.len() * width);
                    out_rest = after;
                    let (statistics, after) = statistics_rest.split_at_mut(queries.len() * group);
                    statistics_rest = after;
                    let text = Text { qkv, first: text.start, len: text.len(), attention, kv_head };
                    tasks.push((text, queries, out, statistics));
                }
            }
        }
        threads.each(tasks, |(text, queries, out, lse)| forward_text(arch, &text, queries, out, lse));
        let (out, statistics) = (&*out, &*statistics);
        let per_piece = threads.rows_per_piece(rows, o.cols);
        let o_width = o.cols;
        threads.pieces(&mut o.values, per_piece * o_width, |piece, o| {
            for (t, o) in o.chunks_exact_mut(o_width).enumerate() {
                for (kv_head, o) in o.chunks_exact_mut(width).enumerate() {
                    o.copy_from_slice(&out[(kv_head * rows + piece * per_piece + t) * width..][..width]);
                }
            }
        });
        for (head, lse) in lse.chunks_exact_mut(rows.max(1)).enumerate() {
            let from = statistics[head / group * rows * group..].iter().skip(head % group).step_by(group);
            for (lse, from) in lse.iter_mut().zip(from) {
                *lse = *from;
            }
        }
    })
}

/// Splits a text's queries where few key heads and a long text would leave threads idle; by shapes alone.
fn blocks(len: usize, kv_heads: usize, rows: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    let size = if rows * kv_heads >= 64 * TILE { 8 * TILE } else { len }.max(1);
    (0..len).step_by(size).map(move |first| first..len.min(first + size))
}

#[allow(clippy::too_many_arguments)]
pub(crate) fn backward(
    (threads, arch): Device<'_>,
    do_: &Matrix<f32>,
    qkv: &Matrix<f32>,
    o: &Matrix<f32>,
    lse: &[f32],
    texts: &Texts,
    attention: &Attention,
    dqkv: &mut Matrix<f32>,
) -> Result<()> {
    let (rows, dim, group) = (qkv.rows, attention.head_dim, attention.group());
    let width = (group + 2) * dim;
    try_scratch("attention_backward", attention.kv_heads * rows * width, |out| {
        let mut tasks = Vec::new();
        let mut rest = &mut *out;
        for kv_head in 0..attention.kv_heads {
            for text in texts.rows().filter(|text| !text.is_empty()) {
                let (out, after) = rest.split_at_mut(text.len() * width);
                rest = after;
                tasks.push((Text { qkv, first: text.start, len: text.len(), attention, kv_head }, out));
            }
        }
        threads.each(tasks, |(text, out)| backward_text(arch, &text, do_, o, lse, out));
        let out = &*out;
        let per_piece = threads.rows_per_piece(rows, dqkv.cols);
        let row_width = dqkv.cols;
        threads.pieces(&mut dqkv.values, per_piece * row_width, |piece, dqkv| {
            for (t, row) in dqkv.chunks_exact_mut(row_width).enumerate() {
                for kv_head in 0..attention.kv_heads {
                    let from = &out[(kv_head * rows + piece * per_piece + t) * width..][..width];
                    let q = attention.q_column(kv_head * group);
                    let (k, v) = (attention.k_column(kv_head), attention.v_column(kv_head));
                    row[q..q + group * dim].copy_from_slice(&from[..group * dim]);
                    row[k..k + dim].copy_from_slice(&from[group * dim..(group + 1) * dim]);
                    row[v..v + dim].copy_from_slice(&from[(group + 1) * dim..]);
                }
            }
        });
    })
}

/// `keys` and `values` already hold the new rows.
pub(crate) fn cached(
    (threads, arch): Device<'_>,
    qkv: &Matrix<f32>,
    (keys, values): (&Matrix<f32>, &Matrix<f32>),
    cached: usize,
    attention: &Attention,
    o: &mut Matrix<f32>,
) -> Result<()> {
    if cached == 0 && qkv.rows > 1 {
        let texts = Texts::new(&[0, qkv.rows as u32], 0)?;
        let all = |lse: &mut [f32]| forward((threads, arch), qkv, &texts, attention, o, lse);
        return try_scratch("attention_cached", attention.heads * qkv.rows, all)?;
    }
    let (group, dim) = (attention.group(), attention.head_dim);
    let scale = 1.0 / (dim as f32).sqrt();
    threads.pieces(&mut o.values, group * dim, |piece, o| {
        let (row, kv_head) = (piece / attention.kv_heads, piece % attention.kv_heads);
        let visible = attention.visible(cached + row);
        let column = kv_head * dim;
        with_scratch(visible.len(), |scores| {
            for (head, o) in o.chunks_exact_mut(dim).enumerate() {
                let q = &qkv.row(row)[attention.q_column(kv_head * group + head)..][..dim];
                vectorized(
                    arch,
                    #[inline(always)]
                    || {
                        let mut highest = f32::NEG_INFINITY;
                        for (score, j) in scores.iter_mut().zip(visible.clone()) {
                            *score = scale * sum2(q, &keys.row(j)[column..column + dim], |q, k| q * k);
                            highest = highest.max(*score);
                        }
                        o.fill(0.0);
                        let mut total = 0.0;
                        for (score, j) in scores.iter().zip(visible.clone()) {
                            let p = exp(score - highest);
                            total += p;
                            for (o, v) in o.iter_mut().zip(&values.row(j)[column..column + dim]) {
                                *o += p * v;
                            }
                        }
                        for o in o.iter_mut() {
                            *o /= total;
                        }
                    },
                );
            }
        });
    });
    Ok(())
}

impl<'a> Text<'a> {
    /// The keys' or values' tiles of `TILE` rows turned to panels: `out[tile][d][key]`, times `factor`.
    pub(super) fn pack(&self, column: usize, factor: f32, out: &mut [f32]) {
        let dim = self.attention.head_dim;
        for (tile, out) in out.chunks_exact_mut(dim * TILE).enumerate() {
            let block = Block::new(tile, self.len);
            if block.len < TILE {
                out.fill(0.0);
            }
            let rows = &self.qkv.values[(self.first + block.first) * self.qkv.cols + column..];
            crate::kernels::gemm::cpu::pack_rows(rows, self.qkv.cols, block.len, factor, out, 0);
        }
    }
}
