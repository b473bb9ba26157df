//! The tiles of one key head over one text.

use std::ops::Range;

use pulp::Arch;

use crate::kernels::Attention;
use crate::kernels::gemm::cpu::product;
use crate::kernels::gemm::{PANEL, Product, Start};
use crate::kernels::matrix::Matrix;
use crate::kernels::simd::{exp, sum2, vectorized};
use crate::kernels::threads::with_scratch;

/// Queries and keys of a tile: one packed panel of keys.
pub(super) const TILE: usize = PANEL;

/// Rows that share one limit of columns in a tile on the diagonal: one vector of keys.
const STEP: usize = 16;

/// One key head of one text.
#[derive(Clone, Copy)]
pub(super) struct Text<'a> {
    pub qkv: &'a Matrix<f32>,
    /// The text's first row in `qkv`.
    pub first: usize,
    pub len: usize,
    pub attention: &'a Attention,
    pub kv_head: usize,
}

/// A tile's rows in its text.
#[derive(Clone, Copy)]
pub(super) struct Block {
    pub first: usize,
    pub len: usize,
}

impl Block {
    pub(super) fn new(tile: usize, text_len: usize) -> Self {
        Self { first: tile * TILE, len: TILE.min(text_len - tile * TILE) }
    }
}

impl<'a> Text<'a> {
    fn values(&self, row: usize, column: usize) -> &'a [f32] {
        &self.qkv.values[(self.first + row) * self.qkv.cols + column..]
    }

    /// The tiles of keys that the queries of a block see.
    fn key_tiles(&self, queries: Block) -> Range<usize> {
        let first = self.attention.visible(queries.first).start;
        first / TILE..(queries.first + queries.len).div_ceil(TILE)
    }

    fn score_scale(&self) -> f32 {
        1.0 / (self.attention.head_dim as f32).sqrt()
    }
}

/// Runs of rows of a tile with the number of keys any of them sees: all rows at once, or on the diagonal by steps.
fn runs(queries: Block, keys: Block) -> impl Iterator<Item = (Range<usize>, usize)> {
    let is_diagonal = keys.first + keys.len > queries.first + 1;
    let step = if is_diagonal { STEP } else { TILE };
    (0..queries.len).step_by(step).filter_map(move |first| {
        let end = queries.len.min(first + step);
        let seen = (queries.first + end).saturating_sub(keys.first).min(keys.len);
        (seen > 0).then_some((first..end, seen))
    })
}

/// The keys of a tile that one query sees, as columns of the tile.
fn columns(attention: &Attention, query: usize, keys: Block) -> Range<usize> {
    let visible = attention.visible(query);
    let start = visible.start.saturating_sub(keys.first).min(keys.len);
    let end = visible.end.saturating_sub(keys.first).min(keys.len);
    start..end.max(start)
}

/// `tile = a·packed` for the columns the rows see, rounded up to whole vectors (the panel is padded with zeros).
fn scores(
    arch: Arch,
    a: &[f32],
    a_row: usize,
    depth: usize,
    panel: &[f32],
    (queries, keys): (Block, Block),
    tile: &mut [f32],
) {
    for (rows, seen) in runs(queries, keys) {
        let operands = Product {
            rows: rows.len(),
            cols: seen.next_multiple_of(STEP),
            depth,
            a: &a[rows.start * a_row..],
            a_row,
            a_col: 1,
            b: panel,
            b_row: PANEL,
            start: Start::Zero,
        };
        product(arch, operands, &mut tile[rows.start * TILE..], TILE);
    }
}

/// `out (c_row apart) = start + tile·b`
fn times_rows(
    arch: Arch,
    tile: &[f32],
    (b, b_row): (&[f32], usize),
    cols: usize,
    (queries, keys): (Block, Block),
    start: Start<'_>,
    (c, c_row): (&mut [f32], usize),
) {
    for (rows, seen) in runs(queries, keys) {
        let a = &tile[rows.start * TILE..];
        let operands = Product { rows: rows.len(), cols, depth: seen, a, a_row: TILE, a_col: 1, b, b_row, start };
        product(arch, operands, &mut c[rows.start * c_row..], c_row);
    }
}

/// `out (c_row apart) += tileᵀ·b`, where `b` has a row for every query.
fn transposed_times_rows(
    arch: Arch,
    tile: &[f32],
    (b, b_row): (&[f32], usize),
    cols: usize,
    (queries, keys): (Block, Block),
    (c, c_row): (&mut [f32], usize),
) {
    let step = if keys.first + keys.len > queries.first + 1 { STEP } else { TILE };
    for key in (0..keys.len).step_by(step) {
        // Queries before the first key of the step see none of it.
        let first = (keys.first + key).saturating_sub(queries.first) / STEP * STEP;
        if first >= queries.len {
            break;
        }
        let operands = Product {
            rows: step.min(keys.len - key),
            cols,
            depth: queries.len - first,
            a: &tile[first * TILE + key..],
            a_row: 1,
            a_col: TILE,
            b: &b[first * b_row..],
            b_row,
            start: Start::Output,
        };
        product(arch, operands, &mut c[key * c_row..], c_row);
    }
}

/// Attention of some queries of a text; `out` (queries, group·head_dim), `lse` (queries, group).
pub(super) fn forward_text(arch: Arch, text: &Text<'_>, queries: Range<usize>, out: &mut [f32], lse: &mut [f32]) {
    let (dim, group) = (text.attention.head_dim, text.attention.group());
    let width = group * dim;
    let packed_len = text.len.div_ceil(TILE) * TILE * dim;
    with_scratch(packed_len + TILE * TILE, |scratch| {
        let (packed, tile) = scratch.split_at_mut(packed_len);
        text.pack(text.attention.k_column(text.kv_head), text.score_scale(), packed);
        for first in queries.clone().step_by(TILE) {
            let block = Block { first, len: TILE.min(queries.end - first) };
            let row = first - queries.start;
            for head in 0..group {
                let mut running = Running { highest: [f32::NEG_INFINITY; TILE], total: [0.0; TILE] };
                let out = &mut out[row * width + head * dim..];
                for key_tile in text.key_tiles(block) {
                    let is_first = key_tile == text.key_tiles(block).start;
                    let keys = Block::new(key_tile, text.len);
                    let q = text.values(first, text.attention.q_column(text.kv_head * group + head));
                    let panel = &packed[key_tile * TILE * dim..][..TILE * dim];
                    scores(arch, q, text.qkv.cols, dim, panel, (block, keys), tile);
                    vectorized(
                        arch,
                        #[inline(always)]
                        || running.update(text.attention, (block, keys), tile, (&mut *out, width), is_first),
                    );
                    let v = text.values(keys.first, text.attention.v_column(text.kv_head));
                    let start = if is_first { Start::Zero } else { Start::Output };
                    times_rows(arch, tile, (v, text.qkv.cols), dim, (block, keys), start, (&mut *out, width));
                }
                for i in 0..block.len {
                    let factor = 1.0 / running.total[i];
                    for value in &mut out[i * width..i * width + dim] {
                        *value *= factor;
                    }
                    lse[(row + i) * group + head] = running.highest[i] + running.total[i].ln();
                }
            }
        }
    });
}

/// The softmax of a block of queries so far: the greatest score and the sum of `exp(score − highest)`.
struct Running {
    highest: [f32; TILE],
    total: [f32; TILE],
}

impl Running {
    /// Turns a tile of scores into `exp(score − highest)` and rescales the earlier sums where the maximum grew.
    #[inline(always)]
    fn update(
        &mut self,
        attention: &Attention,
        (queries, keys): (Block, Block),
        tile: &mut [f32],
        (out, width): (&mut [f32], usize),
        is_first: bool,
    ) {
        for (rows, seen) in runs(queries, keys) {
            let padded = seen.next_multiple_of(STEP);
            for i in rows {
                let row = &mut tile[i * TILE..i * TILE + padded];
                let visible = columns(attention, queries.first + i, keys);
                row[..visible.start].fill(f32::NEG_INFINITY);
                row[visible.end..].fill(f32::NEG_INFINITY);
                let highest = row_max(row).max(self.highest[i]);
                if visible.is_empty() {
                    row.fill(0.0);
                    continue;
                }
                let total = exponentials(row, highest);
                if is_first {
                    self.total[i] = total;
                } else {
                    let correction = exp(self.highest[i] - highest);
                    self.total[i] = self.total[i] * correction + total;
                    if correction < 1.0 {
                        for value in &mut out[i * width..i * width + attention.head_dim] {
                            *value *= correction;
                        }
                    }
                }
                self.highest[i] = highest;
            }
        }
    }
}

/// The greatest of a row of whole steps.
#[inline(always)]
fn row_max(row: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; STEP];
    for row in row.as_chunks::<STEP>().0 {
        for lane in 0..STEP {
            lanes[lane] = if row[lane] > lanes[lane] { row[lane] } else { lanes[lane] };
        }
    }
    fold(lanes, |a, b| if a > b { a } else { b })
}

/// Replaces a row of whole steps by `exp(row − highest)` and returns the sum.
#[inline(always)]
fn exponentials(row: &mut [f32], highest: f32) -> f32 {
    let mut lanes = [0.0; STEP];
    for row in row.as_chunks_mut::<STEP>().0 {
        for lane in 0..STEP {
            row[lane] = exp(row[lane] - highest);
            lanes[lane] += row[lane];
        }
    }
    fold(lanes, |a, b| a + b)
}

#[inline(always)]
fn fold(mut lanes: [f32; STEP], combine: impl Fn(f32, f32) -> f32) -> f32 {
    let mut width = STEP / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] = combine(lanes[lane], lanes[lane + width]);
        }
        width /= 2;
    }
    lanes[0]
}

/// The gradients of one key head over one text; `out` (len, (group + 2)·head_dim) = `[dq of the group | dk | dv]`.
pub(super) fn backward_text(
    arch: Arch,
    text: &Text<'_>,
    do_: &Matrix<f32>,
    o: &Matrix<f32>,
    lse: &[f32],
    out: &mut [f32],
) {
    let (attention, dim, group) = (text.attention, text.attention.head_dim, text.attention.group());
    let width = (group + 2) * dim;
    let (k_column, v_column) = (attention.k_column(text.kv_head), attention.v_column(text.kv_head));
    let packed_len = text.len.div_ceil(TILE) * TILE * dim;
    out.fill(0.0);
    with_scratch(2 * packed_len + 2 * TILE * TILE, |scratch| {
        let (keys_packed, rest) = scratch.split_at_mut(packed_len);
        let (values_packed, tiles) = rest.split_at_mut(packed_len);
        let (p, ds) = tiles.split_at_mut(TILE * TILE);
        text.pack(k_column, text.score_scale(), keys_packed);
        text.pack(v_column, 1.0, values_packed);
        for head in 0..group {
            let q_column = attention.q_column(text.kv_head * group + head);
            for tile in 0..text.len.div_ceil(TILE) {
                let queries = Block::new(tile, text.len);
                let row = text.first + queries.first;
                let q = text.values(queries.first, q_column);
                let gradient = &do_.values[row * do_.cols + q_column..];
                let lse = &lse[(text.kv_head * group + head) * text.qkv.rows + row..][..queries.len];
                let mut means = [0.0; TILE];
                vectorized(
                    arch,
                    #[inline(always)]
                    || {
                        for (i, mean) in means[..queries.len].iter_mut().enumerate() {
                            let o = &o.values[(row + i) * o.cols + q_column..][..dim];
                            *mean = sum2(&gradient[i * do_.cols..][..dim], o, |a, b| a * b);
                        }
                    },
                );
                for key_tile in text.key_tiles(queries) {
                    let keys = Block::new(key_tile, text.len);
                    let panel = key_tile * TILE * dim..(key_tile + 1) * TILE * dim;
                    let tiles = (queries, keys);
                    scores(arch, q, text.qkv.cols, dim, &keys_packed[panel.clone()], tiles, p);
                    scores(arch, gradient, do_.cols, dim, &values_packed[panel], tiles, ds);
                    vectorized(
                        arch,
                        #[inline(always)]
                        || gradient_tile(attention, tiles, lse, &means, text.score_scale(), p, ds),
                    );
                    let keys_out = &mut out[keys.first * width..];
                    let (dk, dv) = (group * dim, (group + 1) * dim);
                    let c = (&mut keys_out[dv..], width);
                    transposed_times_rows(arch, p, (gradient, do_.cols), dim, tiles, c);
                    let c = (&mut keys_out[dk..], width);
                    transposed_times_rows(arch, ds, (q, text.qkv.cols), dim, tiles, c);
                    let c = (&mut out[queries.first * width + head * dim..], width);
                    let k = (text.values(keys.first, k_column), text.qkv.cols);
                    times_rows(arch, ds, k, dim, tiles, Start::Output, c);
                }
            }
        }
    });
}

/// Scores become `p = exp(score − lse)`; `do·v` becomes `scale·p·(do·v − mean)`; both zero where a key is not visible.
#[inline(always)]
fn gradient_tile(
    attention: &Attention,
    (queries, keys): (Block, Block),
    lse: &[f32],
    means: &[f32; TILE],
    scale: f32,
    p: &mut [f32],
    ds: &mut [f32],
) {
    for (rows, seen) in runs(queries, keys) {
        let padded = seen.next_multiple_of(STEP);
        for i in rows {
            let (p, ds) = (&mut p[i * TILE..i * TILE + padded], &mut ds[i * TILE..i * TILE + padded]);
            let visible = columns(attention, queries.first + i, keys);
            p[..visible.start].fill(f32::NEG_INFINITY);
            p[visible.end..].fill(f32::NEG_INFINITY);
            let (p, ds) = (p.as_chunks_mut::<STEP>().0, ds.as_chunks_mut::<STEP>().0);
            for (p, ds) in p.iter_mut().zip(ds) {
                for lane in 0..STEP {
                    p[lane] = exp(p[lane] - lse[i]);
                    ds[lane] = scale * p[lane] * (ds[lane] - means[i]);
                }
            }
        }
    }
}
