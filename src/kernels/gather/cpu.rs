//! `gather_rows` and `scatter_rows` in f32: copies of whole rows.

use crate::kernels::matrix::Matrix;
use crate::kernels::threads::Threads;

pub(crate) fn gather(threads: &Threads, x: &Matrix<f32>, rows: &[u32], y: &mut Matrix<f32>) {
    let width = y.cols.max(1);
    let per_piece = threads.rows_per_piece(y.rows, width);
    threads.pieces(&mut y.values, per_piece * width, |piece, y| {
        for (y, &row) in y.chunks_exact_mut(width).zip(&rows[piece * per_piece..]) {
            y.copy_from_slice(x.row(row as usize));
        }
    });
}

pub(crate) fn scatter(x: &Matrix<f32>, rows: &[u32], y: &mut Matrix<f32>) {
    for (t, &row) in rows.iter().enumerate() {
        y.row_mut(row as usize).copy_from_slice(x.row(t));
    }
}
