//! The adapters' skinny products on the GPU. Parameters are cast to the compute dtype once after each change; gradients
//! are summed in f32, straight into the flat buffer.
#![expect(unsafe_code, reason = "starts products")]

use super::rows;
use crate::kernels::cuda::{Act, Dtype, Full, Operand, Product, Products};
use crate::kernels::{LoraGroup, Result};

/// Parts whose A lie one after the other in the buffer and in `s`: one product serves them all.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Run {
    pub a: usize,
    pub s_start: usize,
    pub rank: usize,
}

pub(crate) fn stacked(group: &LoraGroup) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for part in &group.parts {
        match runs.last_mut() {
            Some(run) if part.a == run.a + run.rank * group.in_features && part.s_start == run.s_start + run.rank => {
                run.rank += part.rank;
            }
            _ => runs.push(Run { a: part.a, s_start: part.s_start, rank: part.rank }),
        }
    }
    runs
}

/// Columns of `s` that no part writes must be zero: only a group that was not made by the engine has any.
fn clear_uncovered(products: Products<'_>, group: &LoraGroup, s: &mut Act) -> Result<()> {
    if group.parts.iter().map(|part| part.rank).sum::<usize>() == group.rank {
        return Ok(());
    }
    s.clear(products.device)
}

pub(crate) fn down(products: Products<'_>, x: &Act, group: &LoraGroup, params: &Full, s: &mut Act) -> Result<()> {
    let Products { device, blas, .. } = products;
    if rows::fits(x, Some(group)) {
        return rows::down(device, x, None, Some((group, params, s)));
    }
    let dtype = x.dtype;
    clear_uncovered(products, group, s)?;
    let params = params.narrow(device, dtype)?;
    for run in stacked(group) {
        let product = Product {
            rows: x.rows,
            cols: run.rank,
            depth: x.cols,
            dtype,
            left: Operand::new(x.pointer(), x.cols),
            right: Operand::transposed(params.plus(run.a * dtype.bytes()), x.cols),
            alpha: 1.0,
            start: None,
            out: (s.column(run.s_start), s.cols),
            out_dtype: dtype,
        };
        // SAFETY: the A of the run lie in the parameters, its columns in s: `check_group` by `prepare_down` in mod.rs.
        unsafe { blas.product(device, "lora_down", &product)? };
    }
    Ok(())
}

pub(crate) fn up_backward(
    products: Products<'_>,
    dy: &Act,
    group: &LoraGroup,
    params: &Full,
    ds: &mut Act,
) -> Result<()> {
    let Products { device, blas, .. } = products;
    let dtype = dy.dtype;
    clear_uncovered(products, group, ds)?;
    let params = params.narrow(device, dtype)?;
    for part in &group.parts {
        let product = Product {
            rows: dy.rows,
            cols: part.rank,
            depth: part.out_len,
            dtype,
            left: Operand::new(dy.column(part.out_start), dy.cols),
            right: Operand::new(params.plus(part.b * dtype.bytes()), part.rank),
            alpha: part.scale as f32,
            start: None,
            out: (ds.column(part.s_start), ds.cols),
            out_dtype: dtype,
        };
        // SAFETY: the part's B lies in the parameters, its columns in dy and ds: `check_group` by
        // `prepare_up_backward` in mod.rs.
        unsafe { blas.product(device, "lora_up_backward", &product)? };
    }
    Ok(())
}

pub(crate) fn gradients(
    products: Products<'_>,
    x: &Act,
    s: &Act,
    dy: &Act,
    ds: &Act,
    group: &LoraGroup,
    gradients: &mut Full,
) -> Result<()> {
    let Products { device, blas, .. } = products;
    let (dtype, out_dtype) = (x.dtype, Dtype::F32);
    for run in stacked(group) {
        let out = (gradients.pointer().plus(run.a * out_dtype.bytes()), x.cols);
        let product = Product {
            rows: run.rank,
            cols: x.cols,
            depth: x.rows,
            dtype,
            left: Operand::transposed(ds.column(run.s_start), ds.cols),
            right: Operand::new(x.pointer(), x.cols),
            alpha: 1.0,
            start: Some(out),
            out,
            out_dtype,
        };
        // SAFETY: the A of the run lie in the gradients, its columns in ds: `check_gradients` in mod.rs.
        unsafe { blas.product(device, "lora_gradients_a", &product)? };
    }
    for part in &group.parts {
        let out = (gradients.pointer().plus(part.b * out_dtype.bytes()), part.rank);
        let product = Product {
            rows: part.out_len,
            cols: part.rank,
            depth: x.rows,
            dtype,
            left: Operand::transposed(dy.column(part.out_start), dy.cols),
            right: Operand::new(s.column(part.s_start), s.cols),
            alpha: part.scale as f32,
            start: Some(out),
            out,
            out_dtype,
        };
        // SAFETY: the part's B lies in the gradients, its columns in dy and s: `check_gradients` in mod.rs.
        unsafe { blas.product(device, "lora_gradients_b", &product)? };
    }
    Ok(())
}
