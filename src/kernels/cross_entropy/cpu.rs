//! `cross_entropy` in f32: a row is read for its maximum, read for its sum and written once.

use pulp::Arch;

use crate::kernels::matrix::Matrix;
use crate::kernels::simd::{exp, max, sum, vectorized};
use crate::kernels::threads::Threads;

pub(crate) fn loss_and_gradient(
    (threads, arch): (&Threads, Arch),
    logits: &mut Matrix<f32>,
    targets: &[u32],
    weight: f64,
) -> f64 {
    let width = logits.cols.max(1);
    let mut losses = vec![0.0; logits.rows];
    let rows = threads.rows_per_piece(logits.rows, 4 * width);
    let pieces = logits.values.chunks_mut(rows * width).zip(losses.chunks_mut(rows)).zip(targets.chunks(rows));
    threads.each(pieces.collect(), |((logits, losses), targets)| {
        for ((row, loss), &target) in logits.chunks_exact_mut(width).zip(losses).zip(targets) {
            *loss = vectorized(
                arch,
                #[inline(always)]
                || gradient_row(row, target as usize, weight as f32),
            );
        }
    });
    losses.iter().sum()
}

pub(crate) fn log_probs((threads, arch): (&Threads, Arch), logits: &Matrix<f32>, targets: &[u32]) -> Vec<f64> {
    let width = logits.cols.max(1);
    let mut log_probs = vec![0.0; logits.rows];
    let rows = threads.rows_per_piece(logits.rows, 4 * width);
    threads.pieces(&mut log_probs, rows, |piece, log_probs| {
        for (t, log_prob) in log_probs.iter_mut().enumerate() {
            let t = piece * rows + t;
            let row = logits.row(t);
            let (highest, total) = vectorized(
                arch,
                #[inline(always)]
                || highest_and_sum(row),
            );
            *log_prob = f64::from(row[targets[t] as usize] - highest) - f64::from(total).ln();
        }
    });
    log_probs
}

#[inline(always)]
fn highest_and_sum(row: &[f32]) -> (f32, f32) {
    let highest = max(row);
    (highest, sum(row, |z| exp(z - highest)))
}

/// The loss of a row, whose logits become `weight·(softmax − one_hot)`.
#[inline(always)]
fn gradient_row(row: &mut [f32], target: usize, weight: f32) -> f64 {
    let highest = max(row);
    let target_logit = row[target];
    for z in row.iter_mut() {
        *z = exp(*z - highest);
    }
    let total = sum(row, |p| p);
    let factor = weight / total;
    for p in row.iter_mut() {
        *p *= factor;
    }
    row[target] -= weight;
    f64::from(total).ln() + f64::from(highest) - f64::from(target_logit)
}
