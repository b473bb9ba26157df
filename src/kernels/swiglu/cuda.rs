//! `swiglu` on the GPU: a thread per 16-byte pack of columns.
#![expect(unsafe_code, reason = "starts kernels")]

use crate::kernels::Result;
use crate::kernels::cuda::{Act, Device};

pub(crate) fn forward(device: &Device, gate_up: &Act, h: &mut Act) -> Result<()> {
    let args = [gate_up.arg(), h.rows.into(), h.cols.into(), h.arg()];
    let grid = device.over(h.len().div_ceil(16 / h.dtype.bytes()));
    // SAFETY: gate_up has as many rows as h and twice its columns: `prepare` in mod.rs.
    unsafe { device.launch("swiglu_forward", h.dtype, grid, &args) }
}

pub(crate) fn backward(device: &Device, dh: &mut Act, gate_up: &mut Act) -> Result<()> {
    let args = [dh.arg(), gate_up.arg(), dh.rows.into(), dh.cols.into()];
    let grid = device.over(dh.len().div_ceil(16 / dh.dtype.bytes()));
    // SAFETY: gate_up has as many rows as dh and twice its columns: `check_backward` in mod.rs.
    unsafe { device.launch("swiglu_backward", dh.dtype, grid, &args) }
}
