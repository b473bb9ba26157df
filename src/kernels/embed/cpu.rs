//! `embed` in f32: the rows are dequantised straight from the stored table.

use crate::kernels::frozen::Frozen;
use crate::kernels::matrix::Matrix;
use crate::kernels::threads::Threads;

pub(crate) fn rows(threads: &Threads, table: &Frozen, ids: &[u32], x: &mut Matrix<f32>) {
    let width = x.cols.max(1);
    let rows = threads.rows_per_piece(x.rows, 2 * width);
    threads.pieces(&mut x.values, rows * width, |piece, x| {
        for (x, &id) in x.chunks_exact_mut(width).zip(&ids[piece * rows..]) {
            table.dequantize(id as usize..id as usize + 1, x);
        }
    });
}
