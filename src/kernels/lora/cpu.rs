//! The adapters' skinny products in f32.

use pulp::Arch;

use crate::kernels::frozen::Packed;
use crate::kernels::gemm::cpu::{pack_rows, product};
use crate::kernels::gemm::{PANEL, Product, Start};
use crate::kernels::linear::cpu::{Added, multiply};
use crate::kernels::matrix::Matrix;
use crate::kernels::threads::{Threads, try_scratch};
use crate::kernels::{LoraGroup, Result};

/// Multiply-adds below which the gradients stay on the calling thread.
const SMALL: usize = 1 << 20;

/// Rows of a gradient one task computes: those that one pass over the other operand serves.
const TASK_ROWS: usize = 6;

type Device<'a> = (&'a Threads, Arch);

pub(crate) fn down(
    device: Device<'_>,
    x: &Matrix<f32>,
    group: &LoraGroup,
    params: &[f32],
    s: &mut Matrix<f32>,
) -> Result<()> {
    let depth = x.cols;
    try_scratch("lora_down", group.rank.next_multiple_of(PANEL) * depth, |values| {
        values.fill(0.0);
        for part in &group.parts {
            let a = &params[part.a..part.a + part.rank * depth];
            for (i, row) in a.chunks_exact(depth).enumerate() {
                let (panel, column) = ((part.s_start + i) / PANEL, (part.s_start + i) % PANEL);
                pack_rows(row, depth, 1, 1.0, &mut values[panel * depth * PANEL..][..depth * PANEL], column);
            }
        }
        multiply(device, x, &Packed { depth, cols: group.rank, values: &*values }, &Added::NOTHING, s)
    })?
}

pub(crate) fn up_backward(
    (threads, arch): Device<'_>,
    dy: &Matrix<f32>,
    group: &LoraGroup,
    params: &[f32],
    ds: &mut Matrix<f32>,
) {
    let width = ds.cols.max(1);
    let depth: usize = group.parts.iter().map(|part| part.out_len).sum();
    let pieces = if dy.rows * depth * width < SMALL { 1 } else { threads.count() };
    let rows = dy.rows.div_ceil(pieces).next_multiple_of(6);
    threads.pieces(&mut ds.values, rows * width, |piece, ds| {
        ds.fill(0.0);
        let first = piece * rows;
        for part in &group.parts {
            let b = &params[part.b..part.b + part.out_len * part.rank];
            let operands = Product {
                rows: ds.len() / width,
                cols: part.rank,
                depth: part.out_len,
                a: &dy.values[first * dy.cols + part.out_start..],
                a_row: dy.cols,
                a_col: 1,
                b,
                b_row: part.rank,
                start: Start::Zero,
            };
            product(arch, operands, &mut ds[part.s_start..], width);
            for ds in ds.chunks_exact_mut(width) {
                for ds in &mut ds[part.s_start..part.s_start + part.rank] {
                    *ds *= part.scale as f32;
                }
            }
        }
    });
}

/// One contiguous piece of a gradient, and what is summed into it over the rows of the batch.
struct Task<'a> {
    gradient: &'a mut [f32],
    width: usize,
    /// `a[t, i]` is `a[t * a_stride + i]`.
    a: &'a [f32],
    a_stride: usize,
    b: &'a [f32],
    b_stride: usize,
}

pub(crate) fn gradients(
    (threads, arch): Device<'_>,
    x: &Matrix<f32>,
    s: &Matrix<f32>,
    dy: &Matrix<f32>,
    ds: &Matrix<f32>,
    group: &LoraGroup,
    gradients: &mut [f32],
) -> Result<()> {
    try_scratch("lora_gradients", s.values.len(), |scaled| {
        for (to, from) in scaled.chunks_exact_mut(s.cols.max(1)).zip(s.values.chunks_exact(s.cols.max(1))) {
            for part in &group.parts {
                let columns = part.s_start..part.s_start + part.rank;
                for (to, from) in to[columns.clone()].iter_mut().zip(&from[columns]) {
                    *to = part.scale as f32 * from;
                }
            }
        }
        let mut tasks = Vec::new();
        let mut places: Vec<_> =
            group.parts.iter().flat_map(|part| [(part.a, part, true), (part.b, part, false)]).collect();
        places.sort_by_key(|place| place.0);
        let (mut rest, mut passed) = (gradients, 0);
        for (offset, part, is_a) in places {
            let (rows, width) = if is_a { (part.rank, x.cols) } else { (part.out_len, part.rank) };
            let (piece, after) = rest[offset - passed..].split_at_mut(rows * width);
            (rest, passed) = (after, offset + rows * width);
            let task_rows = if is_a { TASK_ROWS } else { TASK_ROWS * (x.cols / part.rank.max(1)).max(8) };
            for (i, gradient) in piece.chunks_mut(task_rows * width.max(1)).enumerate() {
                let first = i * task_rows;
                tasks.push(if is_a {
                    let a = ds.values.get(part.s_start + first..).unwrap_or_default();
                    Task { gradient, width, a, a_stride: ds.cols, b: &x.values, b_stride: x.cols }
                } else {
                    let a = dy.values.get(part.out_start + first..).unwrap_or_default();
                    let b = scaled.get(part.s_start..).unwrap_or_default();
                    Task { gradient, width, a, a_stride: dy.cols, b, b_stride: s.cols }
                });
            }
        }
        let work = |task: Task<'_>| {
            let rows = task.gradient.len() / task.width;
            // Columns by panels, so that a panel of the wide operand stays in the first cache while the rows pass by.
            for column in (0..task.width).step_by(PANEL) {
                let operands = Product {
                    rows,
                    cols: PANEL.min(task.width - column),
                    depth: x.rows,
                    a: task.a,
                    a_row: 1,
                    a_col: task.a_stride,
                    b: task.b.get(column..).unwrap_or_default(),
                    b_row: task.b_stride,
                    start: Start::Output,
                };
                product(arch, operands, &mut task.gradient[column..], task.width);
            }
        };
        if x.rows * group.rank * (x.cols + dy.cols) < SMALL {
            tasks.into_iter().for_each(work);
        } else {
            threads.each(tasks, work);
        }
    })
}
