//! A frozen matrix on the CPU: packed for the product while memory allows, else kept as it is stored.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use super::gemm::PANEL;
use super::gemm::cpu::{pack_columns, pack_rows};
use super::matrix::zeros;
use super::threads::{Threads, with_scratch};
use super::{Result, same};
use crate::quant::StoredMatrix;

/// Rows dequantised at a time on the way to `dx = dy·W`.
pub(super) const ROW_BLOCK: usize = 128;

/// How many bytes of packed weights a `Cpu` may still make.
#[derive(Debug)]
pub(super) struct Budget {
    limit: usize,
    used: AtomicUsize,
}

impl Budget {
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, used: AtomicUsize::new(0) }
    }

    fn take(&self, bytes: usize) -> bool {
        let take = |used: usize| used.checked_add(bytes).filter(|&used| used <= self.limit);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }

    fn give_back(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// A right-hand side (depth, cols) in panels of `PANEL` columns: `values[panel][k][column]`, padded with zeros.
#[derive(Debug)]
pub(super) struct Packed<V> {
    pub depth: usize,
    pub cols: usize,
    pub values: V,
}

impl<V: AsRef<[f32]>> Packed<V> {
    pub(super) fn panel(&self, panel: usize) -> &[f32] {
        &self.values.as_ref()[panel * self.depth * PANEL..(panel + 1) * self.depth * PANEL]
    }
}

/// The row-wise concatenation of stored matrices.
#[derive(Debug)]
pub struct Frozen {
    pub(super) rows: usize,
    pub(super) cols: usize,
    /// Each part and its first row.
    parts: Vec<(usize, StoredMatrix)>,
    /// Wᵀ in panels, for `x·Wᵀ`.
    transposed: OnceLock<Packed<Vec<f32>>>,
    /// W in panels, for `dy·W`.
    straight: OnceLock<Packed<Vec<f32>>>,
    budget: Arc<Budget>,
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.budget.give_back(self.packed_bytes());
    }
}

impl Frozen {
    pub(super) fn new(parts: Vec<StoredMatrix>, budget: Arc<Budget>) -> Result<Self> {
        let cols = parts.first().map_or(0, |part| part.cols);
        let mut rows = 0;
        let mut placed = Vec::with_capacity(parts.len());
        for part in parts {
            same("weight", "the columns of a part", part.cols, cols)?;
            let first = rows;
            rows += part.rows;
            placed.push((first, part));
        }
        Ok(Self { rows, cols, parts: placed, transposed: OnceLock::new(), straight: OnceLock::new(), budget })
    }

    pub(super) fn bytes(&self) -> usize {
        self.parts.iter().map(|(_, part)| part.bytes()).sum::<usize>() + self.packed_bytes()
    }

    fn packed_bytes(&self) -> usize {
        let packed = [&self.transposed, &self.straight];
        packed.iter().filter_map(|packed| packed.get()).map(|packed| size_of_val(packed.values.as_slice())).sum()
    }

    /// Writes the values of `rows` to `out`.
    pub(super) fn dequantize(&self, rows: Range<usize>, out: &mut [f32]) {
        for (first, part) in &self.parts {
            let start = rows.start.max(*first);
            let end = rows.end.min(first + part.rows);
            if start < end {
                let out = &mut out[(start - rows.start) * self.cols..(end - rows.start) * self.cols];
                part.dequantize_rows(start - first..end - first, out);
            }
        }
    }

    /// Writes panel `panel` of Wᵀ: the rows `panel * PANEL ..` side by side.
    pub(super) fn pack_transposed(&self, panel: usize, out: &mut [f32]) {
        let first = panel * PANEL;
        let count = PANEL.min(self.rows - first);
        if count < PANEL {
            out.fill(0.0);
        }
        with_scratch(count * self.cols, |rows| {
            self.dequantize(first..first + count, rows);
            pack_rows(rows, self.cols, count, 1.0, out, 0);
        });
    }

    /// Wᵀ in panels if it is or may be packed.
    pub(super) fn transposed(&self, threads: &Threads) -> Result<Option<&Packed<Vec<f32>>>> {
        self.packed(&self.transposed, self.cols, self.rows, |values| {
            threads.pieces(values, self.cols * PANEL, |panel, out| self.pack_transposed(panel, out));
        })
    }

    /// W in panels if it is or may be packed.
    pub(super) fn straight(&self) -> Result<Option<&Packed<Vec<f32>>>> {
        self.packed(&self.straight, self.rows, self.cols, |values| {
            for first in (0..self.rows).step_by(ROW_BLOCK) {
                let count = ROW_BLOCK.min(self.rows - first);
                with_scratch(count * self.cols, |rows| {
                    self.dequantize(first..first + count, rows);
                    for (panel, out) in values.chunks_exact_mut(self.rows * PANEL).enumerate() {
                        let cols = PANEL.min(self.cols - panel * PANEL);
                        let out = &mut out[first * PANEL..(first + count) * PANEL];
                        pack_columns(rows, self.cols, panel * PANEL, cols, out);
                    }
                });
            }
        })
    }

    /// Not `get_or_init`: a thread that packs with the pool's help could be handed work that waits for this very cell.
    fn packed<'a>(
        &self,
        cell: &'a OnceLock<Packed<Vec<f32>>>,
        depth: usize,
        cols: usize,
        pack: impl FnOnce(&mut [f32]),
    ) -> Result<Option<&'a Packed<Vec<f32>>>> {
        if let Some(packed) = cell.get() {
            return Ok(Some(packed));
        }
        let len = cols.div_ceil(PANEL) * PANEL * depth;
        let bytes = len * size_of::<f32>();
        if !self.budget.take(bytes) {
            return Ok(None);
        }
        let mut values = zeros("weight", len)?;
        pack(&mut values);
        if cell.set(Packed { depth, cols, values }).is_err() {
            self.budget.give_back(bytes);
        }
        Ok(cell.get())
    }
}
