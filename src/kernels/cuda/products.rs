//! What products with the weights need beside their operands.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use super::device::Buffer;
use super::weight::Weight;
use super::{Blas, Cuda, Device, Scratch};
use crate::kernels::Result;
use crate::quant::StoredMatrix;

/// What a product needs: the device, cuBLASLt, and the scratch for dequantised weights.
#[derive(Clone, Copy)]
pub(crate) struct Products<'a> {
    pub device: &'a Device,
    pub blas: &'a Blas,
    pub scratch: &'a Scratch,
}

impl Cuda {
    pub(super) fn products(&self) -> Products<'_> {
        Products { device: &self.device, blas: &self.blas, scratch: &self.scratch }
    }

    pub(super) fn weight_in(&self, parts: Vec<StoredMatrix>, is_pinned: bool) -> Result<Weight> {
        let weight = Weight::new(&self.device, self.dtype, parts, is_pinned)?;
        if !is_pinned {
            self.note_scratch(&weight);
        }
        Ok(weight)
    }

    /// Remembers how much scratch the weight needs.
    pub(super) fn note_scratch(&self, weight: &Weight) {
        let bytes = weight.scratch_bytes(self.dtype, self.scratch.is_split);
        self.scratch.widest.fetch_max(bytes, Ordering::Relaxed);
    }

    /// `Backend::settle_memory`.
    pub(super) fn settle(&self) -> Result<()> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner).clear();
        let mut scratch = self.scratch.buffer.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = self.scratch.widest.load(Ordering::Relaxed);
        if scratch.len() < bytes {
            *scratch = Buffer::default();
            *scratch = self.device.alloc("weight", bytes)?;
        }
        self.device.trim()
    }
}
