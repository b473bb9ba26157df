//! The plain loops of `embed`.

use crate::kernels::matrix::Matrix;

pub(crate) fn rows(table: &Matrix<f64>, ids: &[u32], x: &mut Matrix<f64>) {
    for (t, &id) in ids.iter().enumerate() {
        x.row_mut(t).copy_from_slice(table.row(id as usize));
    }
}
