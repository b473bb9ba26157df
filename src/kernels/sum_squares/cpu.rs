//! `sum_squares` of f32 values: f64 sums of fixed blocks, then the blocks in order.

use pulp::Arch;

use crate::kernels::simd::vectorized;
use crate::kernels::threads::Threads;

/// Values a block sums: fixed, so that the order of additions is.
const BLOCK: usize = 64 * 1024;

/// Partial sums of a block, which hide the latency of an addition.
const LANES: usize = 32;

pub(crate) fn sum_squares((threads, arch): (&Threads, Arch), x: &[f32]) -> f64 {
    let mut blocks = vec![0.0; x.len().div_ceil(BLOCK)];
    let pieces = blocks.iter_mut().zip(x.chunks(BLOCK));
    threads.each(pieces.collect(), |(sum, x)| {
        *sum = vectorized(
            arch,
            #[inline(always)]
            || block(x),
        )
    });
    blocks.iter().sum()
}

#[inline(always)]
fn block(x: &[f32]) -> f64 {
    let mut sums = [0.0; LANES];
    let (x, rest) = x.as_chunks::<LANES>();
    for x in x {
        for lane in 0..LANES {
            sums[lane] += f64::from(x[lane]) * f64::from(x[lane]);
        }
    }
    for (sum, x) in sums.iter_mut().zip(rest) {
        *sum += f64::from(*x) * f64::from(*x);
    }
    sums.iter().sum()
}
