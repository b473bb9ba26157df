//! `rope` in f32 with a table of sines and cosines, computed in f64 once for every position.

use std::sync::RwLock;

use pulp::Arch;

use crate::kernels::Attention;
use crate::kernels::matrix::{Matrix, Texts};
use crate::kernels::simd::vectorized;
use crate::kernels::threads::Threads;

/// The rotations of the positions seen so far, for one set of frequencies.
#[derive(Debug, Default)]
pub(crate) struct Table {
    rotations: RwLock<Rotations>,
}

#[derive(Debug, Default)]
struct Rotations {
    inverse_frequencies: Vec<f32>,
    /// For each position: `head_dim/2` cosines, then as many sines.
    values: Vec<f32>,
}

impl Rotations {
    fn covers(&self, inverse_frequencies: &[f32], positions: usize) -> bool {
        self.inverse_frequencies == inverse_frequencies
            && self.values.len() >= positions * 2 * inverse_frequencies.len()
    }

    fn extend(&mut self, inverse_frequencies: &[f32], positions: usize) {
        if self.inverse_frequencies != inverse_frequencies {
            self.inverse_frequencies = inverse_frequencies.to_vec();
            self.values.clear();
        }
        let width = 2 * inverse_frequencies.len();
        // A longer text often follows a shorter one: grow by doubling.
        let positions = positions.next_power_of_two().max(64);
        for position in self.values.len() / width.max(1)..positions {
            let angles = inverse_frequencies.iter().map(|&frequency| position as f64 * f64::from(frequency));
            self.values.extend(angles.clone().map(|angle| angle.cos() as f32));
            self.values.extend(angles.map(|angle| angle.sin() as f32));
        }
    }
}

pub(crate) fn rotate(
    (threads, arch): (&Threads, Arch),
    table: &Table,
    qkv: &mut Matrix<f32>,
    texts: &Texts,
    attention: &Attention,
    inverse_frequencies: &[f32],
    sign: f64,
) {
    let needed = texts.position_end();
    let covered = table.rotations.read().is_ok_and(|table| table.covers(inverse_frequencies, needed));
    if !covered && let Ok(mut table) = table.rotations.write() {
        table.extend(inverse_frequencies, needed);
    }
    let Ok(rotations) = table.rotations.read() else {
        unreachable!("no code panics while it holds the table");
    };
    let half = attention.head_dim / 2;
    let width = qkv.cols;
    let rotated = (attention.heads + attention.kv_heads) * attention.head_dim;
    let positions: Vec<usize> = texts.positions().collect();
    let rows = threads.rows_per_piece(qkv.rows, rotated);
    threads.pieces(&mut qkv.values, rows * width, |piece, qkv| {
        vectorized(
            arch,
            #[inline(always)]
            || {
                for (row, &position) in qkv.chunks_exact_mut(width).zip(&positions[piece * rows..]) {
                    let (cos, sin) = rotations.values[position * 2 * half..(position + 1) * 2 * half].split_at(half);
                    for head in row[..rotated].chunks_exact_mut(attention.head_dim) {
                        let (first, second) = head.split_at_mut(half);
                        rotate_head(first, second, cos, sin, sign as f32);
                    }
                }
            },
        );
    });
}

#[inline(always)]
fn rotate_head(first: &mut [f32], second: &mut [f32], cos: &[f32], sin: &[f32], sign: f32) {
    for (((first, second), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
        let (a, b, sin) = (*first, *second, sign * sin);
        *first = a * cos - b * sin;
        *second = b * cos + a * sin;
    }
}
