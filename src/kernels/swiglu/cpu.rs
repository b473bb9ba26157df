//! `swiglu` in f32: one pass, the exponential by a polynomial.

use pulp::Arch;

use crate::kernels::matrix::Matrix;
use crate::kernels::simd::{sigmoid, vectorized};
use crate::kernels::threads::Threads;

pub(crate) fn forward((threads, arch): (&Threads, Arch), gate_up: &Matrix<f32>, h: &mut Matrix<f32>) {
    let width = h.cols.max(1);
    // An exponential costs about as much as moving four values.
    let rows = threads.rows_per_piece(h.rows, 4 * width);
    threads.pieces(&mut h.values, rows * width, |piece, h| {
        vectorized(
            arch,
            #[inline(always)]
            || {
                let gate_up = &gate_up.values[piece * rows * 2 * width..];
                for (h, gate_up) in h.chunks_exact_mut(width).zip(gate_up.chunks_exact(2 * width)) {
                    let (gate, up) = gate_up.split_at(width);
                    for ((h, gate), up) in h.iter_mut().zip(gate).zip(up) {
                        *h = gate * sigmoid(*gate) * up;
                    }
                }
            },
        );
    });
}

pub(crate) fn backward((threads, arch): (&Threads, Arch), dh: &mut Matrix<f32>, gate_up: &mut Matrix<f32>) {
    let width = dh.cols.max(1);
    let rows = threads.rows_per_piece(dh.rows, 6 * width);
    let pieces = dh.values.chunks_mut(rows * width).zip(gate_up.values.chunks_mut(rows * 2 * width));
    threads.each(pieces.collect(), |(dh, gate_up)| {
        vectorized(
            arch,
            #[inline(always)]
            || {
                for (dh, gate_up) in dh.chunks_exact_mut(width).zip(gate_up.chunks_exact_mut(2 * width)) {
                    let (gate, up) = gate_up.split_at_mut(width);
                    for ((dh, gate), up) in dh.iter_mut().zip(gate).zip(up) {
                        let (gradient, g, u) = (*dh, *gate, *up);
                        let p = sigmoid(g);
                        let silu = g * p;
                        *dh = silu * u;
                        *up = gradient * silu;
                        *gate = gradient * u * (p + silu * (1.0 - p));
                    }
                }
            },
        );
    });
}
