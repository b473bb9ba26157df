//! The plain loops of `rms_norm`.
#![expect(clippy::needless_range_loop, reason = "written as the formulas are: one index for several arrays")]

use crate::kernels::matrix::Matrix;

pub(crate) fn forward(x: &Matrix<f64>, weight: &[f64], eps: f64, y: &mut Matrix<f64>, rstd: &mut [f64]) {
    for t in 0..x.rows {
        let mean = x.row(t).iter().map(|v| v * v).sum::<f64>() / x.cols as f64;
        rstd[t] = 1.0 / (mean + eps).sqrt();
        for d in 0..x.cols {
            y.row_mut(t)[d] = x.row(t)[d] * rstd[t] * weight[d];
        }
    }
}

pub(crate) fn backward_add(dy: &Matrix<f64>, x: &Matrix<f64>, weight: &[f64], rstd: &[f64], dx: &mut Matrix<f64>) {
    for t in 0..x.rows {
        let mut mean = 0.0;
        for d in 0..x.cols {
            mean += dy.row(t)[d] * weight[d] * x.row(t)[d] * rstd[t] / x.cols as f64;
        }
        for d in 0..x.cols {
            let normalised = x.row(t)[d] * rstd[t];
            dx.row_mut(t)[d] += rstd[t] * (dy.row(t)[d] * weight[d] - normalised * mean);
        }
    }
}
