//! `scale` in f32.

use pulp::Arch;

use crate::kernels::threads::Threads;

pub(crate) fn scale((threads, arch): (&Threads, Arch), x: &mut [f32], factor: f64) {
    let len = threads.rows_per_piece(x.len(), 1);
    threads.pieces(x, len, |_, x| {
        arch.dispatch(|| {
            for value in x {
                *value *= factor as f32;
            }
        });
    });
}
