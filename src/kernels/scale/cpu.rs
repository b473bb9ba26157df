//! `scale` in f32.

use pulp::Arch;

use crate::kernels::simd::vectorized;
use crate::kernels::threads::Threads;

pub(crate) fn scale((threads, arch): (&Threads, Arch), x: &mut [f32], factor: f64) {
    let len = threads.rows_per_piece(x.len(), 1);
    threads.pieces(x, len, |_, x| {
        vectorized(
            arch,
            #[inline(always)]
            || {
                for value in x.iter_mut() {
                    *value *= factor as f32;
                }
            },
        );
    });
}
