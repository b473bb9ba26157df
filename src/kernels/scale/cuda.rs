//! `scale` on the GPU.
#![expect(unsafe_code, reason = "starts kernels")]

use crate::kernels::Result;
use crate::kernels::cuda::{Device, Dtype, Pointer};

/// Multiplies `len` values of the caller's buffer, which he borrows mutably.
pub(crate) fn scale(device: &Device, (x, dtype): (Pointer, Dtype), len: usize, factor: f64) -> Result<()> {
    // SAFETY: both callers, in cuda/backend.rs, give a buffer's own pointer, dtype and length.
    unsafe { device.launch("scale", dtype, device.over(len), &[x.into(), len.into(), (factor as f32).into()]) }
}
