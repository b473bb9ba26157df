//! The register-blocked product: 6 rows x 4 vectors of accumulators where there are 32 registers, 6 x 2 where 16.
//!
//! The inner loop loads the vectors of `b` once, broadcasts one value of `a` per row and keeps all sums in registers.

use pulp::{Arch, Simd, WithSimd};

use super::{PANEL, Product, Start};

/// Rows of accumulators: 6·4 sums, 4 vectors of b and one broadcast fill 29 of 32 registers.
const ROWS: usize = 6;

/// Computes `c = start + a·b`; a row of `c` starts every `c_row` values.
///
/// Columns beyond the last whole vector are loaded and stored under a mask.
pub(crate) fn product(arch: Arch, operands: Product<'_>, c: &mut [f32], c_row: usize) {
    if operands.rows == 0 || operands.cols == 0 {
        return;
    }
    arch.dispatch(Panel { operands, c, c_row });
}

struct Panel<'a> {
    operands: Product<'a>,
    c: &'a mut [f32],
    c_row: usize,
}

impl WithSimd for Panel<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { operands, c, c_row } = self;
        let widest = if S::REGISTER_COUNT >= 32 { 4 } else { 2 };
        let mut column = 0;
        while column < operands.cols {
            let left = operands.cols - column;
            let vectors = (left / S::F32_LANES).min(widest);
            let strip = Strip { operands, column, c: &mut *c, c_row };
            column += match vectors {
                0 => {
                    simd.vectorize(Ragged(strip, left));
                    left
                }
                1 => strip.full::<S, 1>(simd),
                2 => strip.full::<S, 2>(simd),
                3 => strip.full::<S, 3>(simd),
                _ => strip.full::<S, 4>(simd),
            };
        }
    }
}

/// All rows of some columns.
struct Strip<'a> {
    operands: Product<'a>,
    column: usize,
    c: &'a mut [f32],
    c_row: usize,
}

/// `V` whole vectors of columns.
struct Vectors<'a, const V: usize>(Strip<'a>);

/// Fewer columns than one vector.
struct Ragged<'a>(Strip<'a>, usize);

impl WithSimd for Ragged<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self(Strip { operands, column, c, c_row }, cols) = self;
        let mut row = 0;
        while row < operands.rows {
            let tile = Tile { operands: &operands, row, column };
            let c = &mut c[row * c_row + column..];
            row += match operands.rows - row {
                1 => tile.compute_ragged::<S, 1>(simd, c, c_row, cols),
                2 | 3 => tile.compute_ragged::<S, 2>(simd, c, c_row, cols),
                4 | 5 => tile.compute_ragged::<S, 4>(simd, c, c_row, cols),
                _ => tile.compute_ragged::<S, ROWS>(simd, c, c_row, cols),
            };
        }
    }
}

impl<const V: usize> WithSimd for Vectors<'_, V> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Strip { operands, column, c, c_row } = self.0;
        let mut row = 0;
        while row < operands.rows {
            let tile = Tile { operands: &operands, row, column };
            let c = &mut c[row * c_row + column..];
            row += match operands.rows - row {
                1 => tile.compute::<S, 1, V>(simd, c, c_row),
                2 => tile.compute::<S, 2, V>(simd, c, c_row),
                3 => tile.compute::<S, 3, V>(simd, c, c_row),
                4 => tile.compute::<S, 4, V>(simd, c, c_row),
                5 => tile.compute::<S, 5, V>(simd, c, c_row),
                _ => tile.compute::<S, ROWS, V>(simd, c, c_row),
            };
        }
    }
}

impl Strip<'_> {
    /// `V` whole vectors of columns; returns how many columns that was.
    #[inline(always)]
    fn full<S: Simd, const V: usize>(self, simd: S) -> usize {
        simd.vectorize(Vectors::<V>(self));
        V * S::F32_LANES
    }
}

/// A block of accumulators at `row`, `column`.
struct Tile<'a> {
    operands: &'a Product<'a>,
    row: usize,
    column: usize,
}

impl Tile<'_> {
    #[inline(always)]
    fn compute<S: Simd, const M: usize, const V: usize>(self, simd: S, c: &mut [f32], c_row: usize) -> usize {
        let Self { operands, row, column } = self;
        let width = V * S::F32_LANES;
        let zero = simd.splat_f32s(0.0);
        let mut sums = [[zero; V]; M];
        let start = match operands.start {
            Start::Zero => None,
            Start::Output => Some((&*c, c_row)),
            Start::Rows(rows, stride) => Some((&rows[row * stride + column..], stride)),
        };
        if let Some((start, stride)) = start {
            for (i, sums) in sums.iter_mut().enumerate() {
                let start = S::as_simd_f32s(&start[i * stride..i * stride + width]).0;
                for (sum, start) in sums.iter_mut().zip(start) {
                    *sum = *start;
                }
            }
        }
        let a = &operands.a[row * operands.a_row..];
        let b = &operands.b[column..];
        for k in 0..operands.depth {
            let b = S::as_simd_f32s(&b[k * operands.b_row..][..width]).0;
            let mut loaded = [zero; V];
            for (to, from) in loaded.iter_mut().zip(b) {
                *to = *from;
            }
            let a = &a[k * operands.a_col..];
            for (i, sums) in sums.iter_mut().enumerate() {
                let a = simd.splat_f32s(a[i * operands.a_row]);
                for (sum, b) in sums.iter_mut().zip(loaded) {
                    *sum = simd.mul_add_e_f32s(a, b, *sum);
                }
            }
        }
        for (i, sums) in sums.iter().enumerate() {
            let to = S::as_mut_simd_f32s(&mut c[i * c_row..i * c_row + width]).0;
            for (to, sum) in to.iter_mut().zip(sums) {
                *to = *sum;
            }
        }
        M
    }
}

impl Tile<'_> {
    /// `compute` for `cols` columns that do not fill one vector.
    #[inline(always)]
    fn compute_ragged<S: Simd, const M: usize>(self, simd: S, c: &mut [f32], c_row: usize, cols: usize) -> usize {
        let Self { operands, row, column } = self;
        let mut sums = [simd.splat_f32s(0.0); M];
        let start = match operands.start {
            Start::Zero => None,
            Start::Output => Some((&*c, c_row)),
            Start::Rows(rows, stride) => Some((&rows[row * stride + column..], stride)),
        };
        if let Some((start, stride)) = start {
            for (i, sum) in sums.iter_mut().enumerate() {
                *sum = simd.partial_load_f32s(&start[i * stride..i * stride + cols]);
            }
        }
        let a = &operands.a[row * operands.a_row..];
        let b = &operands.b[column..];
        for k in 0..operands.depth {
            let b = simd.partial_load_f32s(&b[k * operands.b_row..][..cols]);
            let a = &a[k * operands.a_col..];
            for (i, sum) in sums.iter_mut().enumerate() {
                *sum = simd.mul_add_e_f32s(simd.splat_f32s(a[i * operands.a_row]), b, *sum);
            }
        }
        for (i, sum) in sums.iter().enumerate() {
            simd.partial_store_f32s(&mut c[i * c_row..i * c_row + cols], *sum);
        }
        M
    }
}

/// Copies `cols` columns of row-major rows from `first` on into a panel, padded with zeros.
pub(crate) fn pack_columns(rows: &[f32], stride: usize, first: usize, cols: usize, panel: &mut [f32]) {
    for (to, from) in panel.chunks_exact_mut(PANEL).zip(rows.chunks_exact(stride)) {
        to[..cols].copy_from_slice(&from[first..first + cols]);
        to[cols..].fill(0.0);
    }
}

/// Puts `count` rows, `stride` apart, side by side as the columns `column..column + count` of a panel, times `factor`.
pub(crate) fn pack_rows(rows: &[f32], stride: usize, count: usize, factor: f32, panel: &mut [f32], column: usize) {
    for (k, to) in panel.chunks_exact_mut(PANEL).enumerate() {
        for (j, to) in to[column..column + count].iter_mut().enumerate() {
            *to = factor * rows[j * stride + k];
        }
    }
}
