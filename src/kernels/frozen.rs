//! A frozen matrix on the CPU: packed for the product while memory allows, else kept as it is stored.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use half::bf16;

use super::gemm::PANEL;
use super::gemm::cpu::{pack_columns, pack_rows};
use super::matrix::zeros;
use super::threads::{Threads, with_scratch};
use super::{Result, same};
use crate::quant::{StoredMatrix, StoredValues, widen_bf16};

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

/// A right-hand side that gives its panels in f32, some rows at a time.
pub(super) trait Panels: Sync {
    fn depth(&self) -> usize;
    fn cols(&self) -> usize;
    /// Calls `work` with the rows `first .. first + rows` of panel `panel`.
    fn with(&self, panel: usize, first: usize, rows: usize, work: impl FnOnce(&[f32]));
}

impl<V: AsRef<[f32]> + Sync> Panels for Packed<V> {
    fn depth(&self) -> usize {
        self.depth
    }

    fn cols(&self) -> usize {
        self.cols
    }

    fn with(&self, panel: usize, first: usize, rows: usize, work: impl FnOnce(&[f32])) {
        work(&self.values.as_ref()[(panel * self.depth + first) * PANEL..][..rows * PANEL]);
    }
}

/// A frozen matrix in panels. Values that are bf16 stay so: half the memory, and to widen a panel that lies in the
/// second cache costs a hundredth of the product of a hundred rows with it.
#[derive(Debug)]
pub(super) enum Dense {
    F32(Packed<Vec<f32>>),
    Bf16(Packed<Vec<bf16>>),
}

impl Dense {
    fn bytes(&self) -> usize {
        match self {
            Self::F32(packed) => size_of_val(packed.values.as_slice()),
            Self::Bf16(packed) => size_of_val(packed.values.as_slice()),
        }
    }
}

impl Panels for Dense {
    fn depth(&self) -> usize {
        match self {
            Self::F32(packed) => packed.depth,
            Self::Bf16(packed) => packed.depth,
        }
    }

    fn cols(&self) -> usize {
        match self {
            Self::F32(packed) => packed.cols,
            Self::Bf16(packed) => packed.cols,
        }
    }

    fn with(&self, panel: usize, first: usize, rows: usize, work: impl FnOnce(&[f32])) {
        match self {
            Self::F32(packed) => packed.with(panel, first, rows, work),
            Self::Bf16(packed) => with_scratch(rows * PANEL, |wide| {
                widen_bf16(&packed.values[(panel * packed.depth + first) * PANEL..][..rows * PANEL], wide);
                work(wide);
            }),
        }
    }
}

/// The row-wise concatenation of stored matrices.
#[derive(Debug)]
pub struct Frozen {
    pub(super) rows: usize,
    pub(super) cols: usize,
    store: Store,
    /// Wᵀ in panels, for `x·Wᵀ`.
    transposed: OnceLock<Dense>,
    /// W in panels, for `dy·W`, unless it is stored so.
    straight: OnceLock<Dense>,
    budget: Arc<Budget>,
}

/// Where the values are.
#[derive(Debug)]
enum Store {
    /// Each part and its first row.
    Parts(Vec<(usize, StoredMatrix)>),
    /// A matrix of bf16 values, in W's panels: nothing is kept beside them.
    Panels(Dense),
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
        let store = match bf16_panels(&placed, rows, cols)? {
            Some(panels) => Store::Panels(Dense::Bf16(panels)),
            None => Store::Parts(placed),
        };
        Ok(Self { rows, cols, store, transposed: OnceLock::new(), straight: OnceLock::new(), budget })
    }

    pub(super) fn bytes(&self) -> usize {
        let stored = match &self.store {
            Store::Parts(parts) => parts.iter().map(|(_, part)| part.bytes()).sum(),
            Store::Panels(panels) => panels.bytes(),
        };
        stored + self.packed_bytes()
    }

    fn packed_bytes(&self) -> usize {
        let packed = [&self.transposed, &self.straight];
        packed.iter().filter_map(|packed| packed.get()).map(Dense::bytes).sum()
    }

    /// Writes the values of `rows` to `out`.
    pub(super) fn dequantize(&self, rows: Range<usize>, out: &mut [f32]) {
        match &self.store {
            Store::Parts(parts) => {
                for (first, part) in parts {
                    let start = rows.start.max(*first);
                    let end = rows.end.min(first + part.rows);
                    if start < end {
                        let out = &mut out[(start - rows.start) * self.cols..(end - rows.start) * self.cols];
                        part.dequantize_rows(start - first..end - first, out);
                    }
                }
            }
            Store::Panels(panels) => {
                for panel in 0..self.cols.div_ceil(PANEL) {
                    panels.with(panel, rows.start, rows.len(), |values| {
                        for (out, values) in out.chunks_exact_mut(self.cols).zip(values.chunks_exact(PANEL)) {
                            let out = &mut out[panel * PANEL..];
                            let cols = out.len().min(PANEL);
                            out[..cols].copy_from_slice(&values[..cols]);
                        }
                    });
                }
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
    pub(super) fn transposed(&self, threads: &Threads) -> Result<Option<&Dense>> {
        match &self.store {
            Store::Panels(Dense::Bf16(stored)) => self.packed(&self.transposed, self.cols, self.rows, |values| {
                threads.pieces(values, self.cols * PANEL, |panel, out| transpose(stored, panel, self.cols, out));
                Dense::Bf16
            }),
            _ => self.packed(&self.transposed, self.cols, self.rows, |values| {
                threads.pieces(values, self.cols * PANEL, |panel, out| self.pack_transposed(panel, out));
                Dense::F32
            }),
        }
    }

    /// W in panels if it is or may be packed.
    pub(super) fn straight(&self) -> Result<Option<&Dense>> {
        if let Store::Panels(panels) = &self.store {
            return Ok(Some(panels));
        }
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
            Dense::F32
        })
    }

    /// Fills the empty cell with what `pack` makes, if the budget allows it.
    ///
    /// Not `get_or_init`: a thread that packs with the pool's help could be handed work that waits for this very cell.
    fn packed<'a, T: Copy + Default>(
        &self,
        cell: &'a OnceLock<Dense>,
        depth: usize,
        cols: usize,
        pack: impl FnOnce(&mut [T]) -> fn(Packed<Vec<T>>) -> Dense,
    ) -> Result<Option<&'a Dense>> {
        if let Some(packed) = cell.get() {
            return Ok(Some(packed));
        }
        let len = cols.div_ceil(PANEL) * PANEL * depth;
        let bytes = len * size_of::<T>();
        if !self.budget.take(bytes) {
            return Ok(None);
        }
        let mut values = zeros("weight", len)?;
        let kind = pack(&mut values);
        if cell.set(kind(Packed { depth, cols, values })).is_err() {
            self.budget.give_back(bytes);
        }
        Ok(cell.get())
    }
}

/// The panels of W where every part holds bf16 values.
fn bf16_panels(parts: &[(usize, StoredMatrix)], rows: usize, cols: usize) -> Result<Option<Packed<Vec<bf16>>>> {
    let all: Option<Vec<(usize, &[bf16])>> = parts
        .iter()
        .map(|(first, part)| match &part.values {
            StoredValues::Bf16(values) => Some((*first, values.as_slice())),
            _ => None,
        })
        .collect();
    let Some(all) = all.filter(|all| !all.is_empty() && cols > 0) else { return Ok(None) };
    let mut values = zeros("weight", cols.div_ceil(PANEL) * PANEL * rows)?;
    for (panel, out) in values.chunks_exact_mut(rows * PANEL).enumerate() {
        let width = PANEL.min(cols - panel * PANEL);
        for (first, part) in &all {
            for (out, row) in out[first * PANEL..].chunks_exact_mut(PANEL).zip(part.chunks_exact(cols)) {
                out[..width].copy_from_slice(&row[panel * PANEL..][..width]);
            }
        }
    }
    Ok(Some(Packed { depth: rows, cols, values }))
}

/// Writes panel `panel` of the transpose of `stored`, whose rows have `cols` values.
fn transpose(stored: &Packed<Vec<bf16>>, panel: usize, cols: usize, out: &mut [bf16]) {
    let first = panel * PANEL;
    let count = PANEL.min(stored.depth - first);
    for (block, out) in out.chunks_mut(PANEL * PANEL).enumerate() {
        let from = &stored.values[(block * stored.depth + first) * PANEL..][..count * PANEL];
        let width = PANEL.min(cols - block * PANEL);
        for (j, row) in from.chunks_exact(PANEL).enumerate() {
            for (k, value) in row[..width].iter().enumerate() {
                out[k * PANEL + j] = *value;
            }
        }
    }
}
