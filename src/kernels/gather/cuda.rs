//! `gather_rows` and `scatter_rows` on the GPU.
#![expect(unsafe_code, reason = "starts kernels")]

use crate::kernels::Result;
use crate::kernels::cuda::{Act, Device, Index};

pub(crate) fn gather(device: &Device, x: &Act, rows: &Index, y: &mut Act) -> Result<()> {
    let args = [x.arg(), rows.arg(), rows.len().into(), y.cols.into(), y.arg()];
    // SAFETY: every row number is below x.rows, y has a row per number and x's columns: `prepare_gather` in mod.rs.
    unsafe { device.launch("gather_rows", y.dtype, device.over(y.len()), &args) }
}

pub(crate) fn scatter(device: &Device, x: &Act, rows: &Index, y: &mut Act) -> Result<()> {
    let args = [x.arg(), rows.arg(), rows.len().into(), x.cols.into(), y.arg()];
    // SAFETY: every row number is below y.rows, x has a row per number and y's columns: `check_scatter` in mod.rs.
    unsafe { device.launch("scatter_rows", x.dtype, device.over(x.len()), &args) }
}
