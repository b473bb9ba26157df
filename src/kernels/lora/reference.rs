//! The plain loops of the adapters.

use crate::kernels::LoraGroup;
use crate::kernels::gemm::reference::dot;
use crate::kernels::matrix::Matrix;

pub(crate) fn down(x: &Matrix<f64>, group: &LoraGroup, params: &[f64], s: &mut Matrix<f64>) {
    s.values.fill(0.0);
    for t in 0..x.rows {
        for part in &group.parts {
            for i in 0..part.rank {
                let a = &params[part.a + i * group.in_features..][..group.in_features];
                s.row_mut(t)[part.s_start + i] = dot(x.row(t), a);
            }
        }
    }
}

pub(crate) fn up_backward(dy: &Matrix<f64>, group: &LoraGroup, params: &[f64], ds: &mut Matrix<f64>) {
    ds.values.fill(0.0);
    for t in 0..dy.rows {
        for part in &group.parts {
            for n in 0..part.out_len {
                for i in 0..part.rank {
                    let b = params[part.b + n * part.rank + i];
                    ds.row_mut(t)[part.s_start + i] += part.scale * dy.row(t)[part.out_start + n] * b;
                }
            }
        }
    }
}

pub(crate) fn gradients(
    x: &Matrix<f64>,
    s: &Matrix<f64>,
    dy: &Matrix<f64>,
    ds: &Matrix<f64>,
    group: &LoraGroup,
    gradients: &mut [f64],
) {
    for part in &group.parts {
        for t in 0..x.rows {
            for i in 0..part.rank {
                for k in 0..x.cols {
                    gradients[part.a + i * x.cols + k] += ds.row(t)[part.s_start + i] * x.row(t)[k];
                }
                for n in 0..part.out_len {
                    gradients[part.b + n * part.rank + i] +=
                        part.scale * dy.row(t)[part.out_start + n] * s.row(t)[part.s_start + i];
                }
            }
        }
    }
}
