//! `cross_entropy` on the GPU: a block per row; the rows' losses are added in order on the host.
#![expect(unsafe_code, reason = "starts kernels")]

use crate::kernels::Result;
use crate::kernels::cuda::{Act, Device, Grid, Index};

const THREADS: u32 = 512;

pub(crate) fn loss_and_gradient(device: &Device, logits: &mut Act, targets: &Index, weight: f64) -> Result<f64> {
    let mut losses = vec![0.0_f64; logits.rows];
    let buffer = device.alloc("cross_entropy", size_of_val(losses.as_slice()))?;
    let args = [logits.arg(), targets.arg(), logits.cols.into(), (weight as f32).into(), buffer.pointer().into()];
    // SAFETY: there is a target below logits.cols for every row: `check` in mod.rs; `buffer` has an f64 for every row.
    unsafe { device.launch("cross_entropy_forward", logits.dtype, Grid::new(logits.rows, THREADS), &args)? };
    device.read("cross_entropy", &buffer, 0, &mut losses)?;
    Ok(losses.iter().sum())
}

pub(crate) fn log_probs(device: &Device, logits: &Act, targets: &Index) -> Result<Vec<f64>> {
    let mut log_probs = vec![0.0_f64; logits.rows];
    let buffer = device.alloc("log_probs", size_of_val(log_probs.as_slice()))?;
    let args = [logits.arg(), targets.arg(), logits.cols.into(), buffer.pointer().into()];
    // SAFETY: there is a target below logits.cols for every row: `check` in mod.rs; `buffer` has an f64 for every row.
    unsafe { device.launch("cross_entropy_log_probs", logits.dtype, Grid::new(logits.rows, THREADS), &args)? };
    device.read("log_probs", &buffer, 0, &mut log_probs)?;
    Ok(log_probs)
}
