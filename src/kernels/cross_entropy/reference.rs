//! The plain loops of `cross_entropy` and `log_probs`.

use crate::kernels::matrix::Matrix;

/// `ln Σ exp(z)`, safe for large `z`.
fn log_sum_exp(z: &[f64]) -> f64 {
    let highest = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    highest + z.iter().map(|v| (v - highest).exp()).sum::<f64>().ln()
}

pub(crate) fn loss_and_gradient(logits: &mut Matrix<f64>, targets: &[u32], weight: f64) -> f64 {
    let mut loss = 0.0;
    for (t, &target) in targets.iter().enumerate() {
        let row = logits.row_mut(t);
        let lse = log_sum_exp(row);
        loss += lse - row[target as usize];
        for (v, z) in row.iter_mut().enumerate() {
            let one_hot = if v == target as usize { 1.0 } else { 0.0 };
            *z = weight * ((*z - lse).exp() - one_hot);
        }
    }
    loss
}

pub(crate) fn log_probs(logits: &Matrix<f64>, targets: &[u32]) -> Vec<f64> {
    targets.iter().enumerate().map(|(t, &target)| logits.row(t)[target as usize] - log_sum_exp(logits.row(t))).collect()
}
