//! `rms_norm` on the GPU: a block per row.
#![expect(unsafe_code, reason = "starts kernels")]

use crate::kernels::Result;
use crate::kernels::cuda::{Act, Device, Full, Grid};

const THREADS: u32 = 256;

pub(crate) fn forward(device: &Device, x: &Act, weight: &Full, eps: f64, y: &mut Act, rstd: &mut Full) -> Result<()> {
    let args = [x.arg(), weight.arg(), x.cols.into(), (eps as f32).into(), y.arg(), rstd.arg()];
    // SAFETY: weight has x.cols values, y the shape of x, rstd x.rows values: `prepare` in mod.rs.
    unsafe { device.launch("rms_norm_forward", x.dtype, Grid::new(x.rows, THREADS), &args) }
}

pub(crate) fn backward_add(device: &Device, dy: &Act, x: &Act, weight: &Full, rstd: &Full, dx: &mut Act) -> Result<()> {
    let args = [dy.arg(), x.arg(), weight.arg(), rstd.arg(), x.cols.into(), dx.arg()];
    // SAFETY: dy and dx have the shape of x, weight x.cols and rstd x.rows values: `check_backward` in mod.rs.
    unsafe { device.launch("rms_norm_backward_add", x.dtype, Grid::new(x.rows, THREADS), &args) }
}
