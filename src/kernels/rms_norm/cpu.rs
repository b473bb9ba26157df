//! `rms_norm` in f32: two passes over a row that stays in the first cache, rows over threads.

use pulp::Arch;

use crate::kernels::matrix::Matrix;
use crate::kernels::simd::{sum, sum2, vectorized};
use crate::kernels::threads::Threads;

pub(crate) fn forward(
    (threads, arch): (&Threads, Arch),
    x: &Matrix<f32>,
    weight: &[f32],
    eps: f64,
    y: &mut Matrix<f32>,
    rstd: &mut [f32],
) {
    let width = x.cols.max(1);
    for_rows_with(threads, x.rows, width, &mut y.values, rstd, |first, y, rstd| {
        vectorized(
            arch,
            #[inline(always)]
            || {
                for ((y, rstd), x) in
                    y.chunks_exact_mut(width).zip(rstd.iter_mut()).zip(x.values[first * width..].chunks_exact(width))
                {
                    let mean = sum(x, |x| x * x) / width as f32;
                    *rstd = 1.0 / (mean + eps as f32).sqrt();
                    for ((y, x), weight) in y.iter_mut().zip(x).zip(weight) {
                        *y = x * *rstd * weight;
                    }
                }
            },
        );
    });
}

pub(crate) fn backward_add(
    (threads, arch): (&Threads, Arch),
    dy: &Matrix<f32>,
    x: &Matrix<f32>,
    weight: &[f32],
    rstd: &[f32],
    dx: &mut Matrix<f32>,
) {
    let width = x.cols.max(1);
    let rows = threads.rows_per_piece(x.rows, 2 * width);
    threads.pieces(&mut dx.values, rows * width, |piece, dx| {
        vectorized(
            arch,
            #[inline(always)]
            || {
                let first = piece * rows;
                for (t, dx) in dx.chunks_exact_mut(width).enumerate() {
                    let (x, dy, rstd) = (x.row(first + t), dy.row(first + t), rstd[first + t]);
                    let dot = weighted_dot(x, dy, weight);
                    let along = rstd * rstd * rstd * dot / width as f32;
                    for (((dx, x), dy), weight) in dx.iter_mut().zip(x).zip(dy).zip(weight) {
                        *dx += rstd * (dy * weight) - x * along;
                    }
                }
            },
        );
    });
}

/// `Σ x·dy·weight`
#[inline(always)]
fn weighted_dot(x: &[f32], dy: &[f32], weight: &[f32]) -> f32 {
    const LANES: usize = 64;
    let mut total = 0.0;
    let mut terms = [0.0; LANES];
    let mut sums = [0.0; LANES];
    for ((x, dy), weight) in x.chunks(LANES).zip(dy.chunks(LANES)).zip(weight.chunks(LANES)) {
        if let (Some(x), Some(dy), Some(weight)) =
            (x.first_chunk::<LANES>(), dy.first_chunk::<LANES>(), weight.first_chunk::<LANES>())
        {
            for lane in 0..LANES {
                sums[lane] += x[lane] * dy[lane] * weight[lane];
            }
        } else {
            for (term, ((x, dy), weight)) in terms.iter_mut().zip(x.iter().zip(dy).zip(weight)) {
                *term = x * dy * weight;
            }
            total = sum2(&terms[..x.len()], &terms[..x.len()], |term, _| term);
        }
    }
    total + sum(&sums, |sum| sum)
}

/// Splits the rows of `y` and one value a row of `rstd` the same way.
fn for_rows_with(
    threads: &Threads,
    rows: usize,
    width: usize,
    y: &mut [f32],
    rstd: &mut [f32],
    work: impl Fn(usize, &mut [f32], &mut [f32]) + Sync + Send,
) {
    let per_piece = threads.rows_per_piece(rows, width);
    let pieces = y.chunks_mut(per_piece * width).zip(rstd.chunks_mut(per_piece)).enumerate();
    threads.each(pieces.collect(), |(piece, (y, rstd))| work(piece * per_piece, y, rstd));
}
