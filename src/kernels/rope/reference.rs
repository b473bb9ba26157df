//! The plain loops of `rope`.
#![expect(clippy::needless_range_loop, reason = "written as the formulas are: one index for several arrays")]

use crate::kernels::Attention;
use crate::kernels::matrix::{Matrix, Texts};

pub(crate) fn rotate(
    qkv: &mut Matrix<f64>,
    texts: &Texts,
    attention: &Attention,
    inverse_frequencies: &[f64],
    sign: f64,
) {
    let half = attention.head_dim / 2;
    for (t, position) in texts.positions().enumerate() {
        for head in 0..attention.heads + attention.kv_heads {
            for j in 0..half {
                let (sin, cos) = (sign * position as f64 * inverse_frequencies[j]).sin_cos();
                let first = head * attention.head_dim + j;
                let (a, b) = (qkv.row(t)[first], qkv.row(t)[first + half]);
                qkv.row_mut(t)[first] = a * cos - b * sin;
                qkv.row_mut(t)[first + half] = b * cos + a * sin;
            }
        }
    }
}
