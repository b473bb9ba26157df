//! `linear` in f32: panels of the weight against blocks of rows, the adapters added to the same sums.

use pulp::Arch;

use super::Adapters;
use crate::kernels::Result;
use crate::kernels::frozen::{Frozen, Packed, Panels, ROW_BLOCK};
use crate::kernels::gemm::cpu::{pack_columns, pack_rows, product};
use crate::kernels::gemm::{PANEL, Product, Start};
use crate::kernels::matrix::Matrix;
use crate::kernels::threads::{Threads, try_scratch, with_scratch};

/// Depth of a panel that is multiplied at a time: 256 KiB of it stay in the second cache while the rows pass by.
const DEPTH: usize = 1024;

/// Rows a thread takes at a time, at most: longer batches are shared out more evenly. Every share reads all panels
/// again, from main memory where the model is larger than the caches, so shares are not small.
const MOST_ROWS: usize = 384;

/// Multiply-adds below which a product stays on the calling thread.
const SMALL: usize = 1 << 20;

type Device<'a> = (&'a Threads, Arch);

pub(crate) fn forward(
    device: Device<'_>,
    x: &Matrix<f32>,
    w: &Frozen,
    adapters: Adapters<'_, f32>,
    residual: Option<&Matrix<f32>>,
    y: &mut Matrix<f32>,
) -> Result<()> {
    let added = Added { adapters, residual, is_forward: true };
    match w.transposed(device.0)? {
        Some(packed) => multiply(device, x, packed, &added, y),
        None => by_panels(device, x, w.cols, &added, y, &|panel, out| w.pack_transposed(panel, out)),
    }
}

pub(crate) fn backward(
    device: Device<'_>,
    dy: &Matrix<f32>,
    w: &Frozen,
    adapters: Adapters<'_, f32>,
    dx: &mut Matrix<f32>,
) -> Result<()> {
    let added = Added { adapters, residual: None, is_forward: false };
    match w.straight()? {
        Some(packed) => multiply(device, dy, packed, &added, dx),
        None => backward_stored(device, dy, w, &added, dx),
    }
}

/// What is added to the product of a panel.
pub(crate) struct Added<'a> {
    adapters: Adapters<'a, f32>,
    residual: Option<&'a Matrix<f32>>,
    is_forward: bool,
}

impl Added<'_> {
    pub(crate) const NOTHING: Added<'static> = Added { adapters: None, residual: None, is_forward: true };

    fn start(&self, row: usize, column: usize) -> Start<'_> {
        match self.residual {
            Some(residual) => Start::Rows(&residual.values[row * residual.cols + column..], residual.cols),
            None => Start::Zero,
        }
    }

    /// Adds the adapters' part of the columns `column .. column + cols` to the rows of `c` from `row` on.
    fn add_adapters(
        &self,
        arch: Arch,
        (row, rows): (usize, usize),
        (column, cols): (usize, usize),
        c: &mut [f32],
        c_row: usize,
    ) {
        let Some((group, params, s)) = self.adapters else { return };
        for part in &group.parts {
            let a = &s.values[row * s.cols + part.s_start..];
            let common = Product {
                rows,
                cols,
                depth: part.rank,
                a,
                a_row: s.cols,
                a_col: 1,
                b: &[],
                b_row: PANEL,
                start: Start::Output,
            };
            if !self.is_forward {
                let b = &params[part.a + column..part.a + part.rank * group.in_features];
                product(arch, Product { b, b_row: group.in_features, ..common }, c, c_row);
                continue;
            }
            let first = column.max(part.out_start);
            let end = (column + cols).min(part.out_start + part.out_len);
            if first < end {
                with_scratch(part.rank * PANEL, |panel| {
                    if end - first < cols {
                        panel.fill(0.0);
                    }
                    let b = &params[part.b + (first - part.out_start) * part.rank..];
                    pack_rows(b, part.rank, end - first, part.scale as f32, panel, first - column);
                    product(arch, Product { b: panel, ..common }, c, c_row);
                });
            }
        }
    }
}

/// `y = x·packed + added`: every thread takes rows; with few rows, panels.
pub(crate) fn multiply(
    device: Device<'_>,
    x: &Matrix<f32>,
    packed: &impl Panels,
    added: &Added<'_>,
    y: &mut Matrix<f32>,
) -> Result<()> {
    let (threads, arch) = device;
    let is_small = x.rows * packed.cols() * packed.depth() < SMALL;
    let few_rows = x.rows < 12 * threads.count();
    if few_rows && !is_small && threads.count() > 1 {
        return by_packed_panels(device, x, packed, added, y);
    }
    let pieces = if is_small { 1 } else { threads.count() * x.rows.div_ceil(threads.count() * MOST_ROWS).max(1) };
    let rows = x.rows.div_ceil(pieces).next_multiple_of(6);
    let width = y.cols;
    threads.pieces(&mut y.values, rows * width, |piece, y| {
        let first = piece * rows;
        let rows = y.len() / width;
        for panel in 0..width.div_ceil(PANEL) {
            let column = panel * PANEL;
            let cols = PANEL.min(width - column);
            let c = &mut y[column..];
            panel_product(arch, (x, first, rows), (packed, panel), (column, cols), added, c, width);
        }
    });
    Ok(())
}

/// The product of some rows with one packed panel and everything that is added to it.
fn panel_product(
    arch: Arch,
    (x, row, rows): (&Matrix<f32>, usize, usize),
    (packed, panel): (&impl Panels, usize),
    (column, cols): (usize, usize),
    added: &Added<'_>,
    c: &mut [f32],
    c_row: usize,
) {
    let mut start = added.start(row, column);
    for first in (0..x.cols).step_by(DEPTH) {
        let depth = DEPTH.min(x.cols - first);
        let a = &x.values[row * x.cols + first..];
        packed.with(panel, first, depth, |b| {
            product(arch, Product { rows, cols, depth, a, a_row: x.cols, a_col: 1, b, b_row: PANEL, start }, c, c_row);
        });
        start = Start::Output;
    }
    added.add_adapters(arch, (row, rows), (column, cols), c, c_row);
}

fn by_packed_panels(
    device: Device<'_>,
    x: &Matrix<f32>,
    packed: &impl Panels,
    added: &Added<'_>,
    y: &mut Matrix<f32>,
) -> Result<()> {
    let (threads, arch) = device;
    let width = y.cols;
    in_panels(threads, y, |panel, c| {
        let column = panel * PANEL;
        let cols = PANEL.min(width - column);
        panel_product(arch, (x, 0, x.rows), (packed, panel), (column, cols), added, c, PANEL);
    })
}

/// `y = x·packed + added` where `pack` makes each panel (depth, PANEL) when it is needed.
fn by_panels(
    device: Device<'_>,
    x: &Matrix<f32>,
    depth: usize,
    added: &Added<'_>,
    y: &mut Matrix<f32>,
    pack: &(dyn Fn(usize, &mut [f32]) + Sync),
) -> Result<()> {
    let (threads, arch) = device;
    let width = y.cols;
    in_panels(threads, y, |panel, c| {
        let column = panel * PANEL;
        let cols = PANEL.min(width - column);
        with_scratch(depth * PANEL, |values| {
            pack(panel, values);
            let one = Packed { depth, cols: PANEL, values: &*values };
            panel_product(arch, (x, 0, x.rows), (&one, 0), (column, cols), added, c, PANEL);
        });
    })
}

/// Lets `work` fill each panel of `y` as a (rows, PANEL) block of its own, then puts the blocks into the rows.
fn in_panels(threads: &Threads, y: &mut Matrix<f32>, work: impl Fn(usize, &mut [f32]) + Sync + Send) -> Result<()> {
    let (rows, width) = (y.rows, y.cols);
    if rows == 1 {
        threads.pieces(&mut y.values, PANEL, work);
        return Ok(());
    }
    try_scratch("linear", rows * width.next_multiple_of(PANEL), |blocks| {
        threads.pieces(blocks, rows * PANEL, work);
        let blocks = &*blocks;
        let per_piece = threads.rows_per_piece(rows, width);
        threads.pieces(&mut y.values, per_piece * width, |piece, y| {
            for (t, y) in y.chunks_exact_mut(width).enumerate() {
                let row = (piece * per_piece + t) * PANEL;
                for (panel, y) in y.chunks_mut(PANEL).enumerate() {
                    y.copy_from_slice(&blocks[panel * rows * PANEL + row..][..y.len()]);
                }
            }
        });
    })
}

/// `dx = dy·W + added` with W dequantised by blocks of rows: the sums over the blocks continue in `dx`.
fn backward_stored(
    device: Device<'_>,
    dy: &Matrix<f32>,
    w: &Frozen,
    added: &Added<'_>,
    dx: &mut Matrix<f32>,
) -> Result<()> {
    let (threads, arch) = device;
    let width = dx.cols;
    let panels = width.div_ceil(PANEL);
    let rows_per_piece = dy.rows.div_ceil(threads.count()).next_multiple_of(6);
    for first in (0..w.rows).step_by(ROW_BLOCK) {
        let depth = ROW_BLOCK.min(w.rows - first);
        try_scratch("linear_backward", depth * panels * PANEL, |block| {
            // (depth, panels * PANEL): row-major, so that the threads can fill rows of it.
            let stride = panels * PANEL;
            threads.pieces(block, stride * depth.div_ceil(threads.count() * 2), |piece, out| {
                let row = first + piece * depth.div_ceil(threads.count() * 2);
                for (n, out) in out.chunks_exact_mut(stride).enumerate() {
                    w.dequantize(row + n..row + n + 1, &mut out[..width]);
                    out[width..].fill(0.0);
                }
            });
            let block = &*block;
            threads.pieces(&mut dx.values, rows_per_piece * width, |piece, dx| {
                let row = piece * rows_per_piece;
                let rows = dx.len() / width;
                for panel in 0..panels {
                    let column = panel * PANEL;
                    let cols = PANEL.min(width - column);
                    let start = if first == 0 { Start::Zero } else { Start::Output };
                    let a = &dy.values[row * dy.cols + first..];
                    with_scratch(depth * PANEL, |packed| {
                        pack_columns(block, stride, column, PANEL, packed);
                        let b = &*packed;
                        let operands =
                            Product { rows, cols, depth, a, a_row: dy.cols, a_col: 1, b, b_row: PANEL, start };
                        product(arch, operands, &mut dx[column..], width);
                    });
                    if first + depth == w.rows {
                        added.add_adapters(arch, (row, rows), (column, cols), &mut dx[column..], width);
                    }
                }
            });
        })?;
    }
    Ok(())
}
