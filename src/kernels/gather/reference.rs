//! The plain loops of `gather_rows` and `scatter_rows`.

use crate::kernels::matrix::Matrix;

pub(crate) fn gather(x: &Matrix<f64>, rows: &[u32], y: &mut Matrix<f64>) {
    for (t, &row) in rows.iter().enumerate() {
        y.row_mut(t).copy_from_slice(x.row(row as usize));
    }
}

pub(crate) fn scatter(x: &Matrix<f64>, rows: &[u32], y: &mut Matrix<f64>) {
    for (t, &row) in rows.iter().enumerate() {
        y.row_mut(row as usize).copy_from_slice(x.row(t));
    }
}
