//! The plain loops of `linear`.
#![expect(clippy::needless_range_loop, reason = "written as the formulas are: one index for several arrays")]

use super::Adapters;
use crate::kernels::gemm::reference::dot;
use crate::kernels::matrix::Matrix;

pub(crate) fn forward(
    x: &Matrix<f64>,
    w: &Matrix<f64>,
    adapters: Adapters<'_, f64>,
    residual: Option<&Matrix<f64>>,
    y: &mut Matrix<f64>,
) {
    for t in 0..x.rows {
        for n in 0..w.rows {
            y.row_mut(t)[n] = dot(x.row(t), w.row(n)) + residual.map_or(0.0, |residual| residual.row(t)[n]);
        }
        let Some((group, params, s)) = adapters else { continue };
        for part in &group.parts {
            let s = &s.row(t)[part.s_start..part.s_start + part.rank];
            for n in 0..part.out_len {
                let b = &params[part.b + n * part.rank..][..part.rank];
                y.row_mut(t)[part.out_start + n] += part.scale * dot(s, b);
            }
        }
    }
}

pub(crate) fn backward(dy: &Matrix<f64>, w: &Matrix<f64>, adapters: Adapters<'_, f64>, dx: &mut Matrix<f64>) {
    for t in 0..dy.rows {
        dx.row_mut(t).fill(0.0);
        for n in 0..w.rows {
            for k in 0..w.cols {
                dx.row_mut(t)[k] += dy.row(t)[n] * w.row(n)[k];
            }
        }
        let Some((group, params, ds)) = adapters else { continue };
        for part in &group.parts {
            for i in 0..part.rank {
                let a = &params[part.a + i * group.in_features..][..group.in_features];
                for k in 0..w.cols {
                    dx.row_mut(t)[k] += ds.row(t)[part.s_start + i] * a[k];
                }
            }
        }
    }
}
