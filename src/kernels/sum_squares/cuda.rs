//! `sum_squares` on the GPU: f64 sums of runs of fixed length, added in order on the host.
#![expect(unsafe_code, reason = "starts kernels")]

use crate::kernels::Result;
use crate::kernels::cuda::{Device, Dtype, Full, Grid};

/// Values a block sums; `RUN` in kernel.cu.
const RUN: usize = 64 * 1024;

pub(crate) fn sum_squares(device: &Device, x: &Full) -> Result<f64> {
    let mut sums = vec![0.0_f64; x.len().div_ceil(RUN)];
    let buffer = device.alloc("sum_squares", size_of_val(sums.as_slice()))?;
    let args = [x.arg(), x.len().into(), buffer.pointer().into()];
    // SAFETY: x has `len` values and `buffer` one f64 for each block.
    unsafe { device.launch("sum_squares", Dtype::F32, Grid::new(sums.len(), 256), &args)? };
    device.read("sum_squares", &buffer, 0, &mut sums)?;
    Ok(sums.iter().sum())
}
