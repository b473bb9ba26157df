//! `linear` on the GPU: the weight is dequantised into a scratch if it must be, cuBLASLt multiplies and adds the residual,
//! then each adapter adds its skinny product in place.
#![expect(unsafe_code, reason = "starts kernels and products")]

use crate::kernels::cuda::{Act, Device, Dtype, Full, Operand, Part, Pointer, Product, Products, Storage, Weight};
use crate::kernels::{LoraGroup, Result};

pub(crate) type Adapters<'a> = Option<(&'a LoraGroup, &'a Full, &'a Act)>;

pub(crate) fn forward(
    products: Products<'_>,
    x: &Act,
    w: &Weight,
    adapters: Adapters<'_>,
    residual: Option<&Act>,
    y: &mut Act,
) -> Result<()> {
    let Products { device, blas, scratch } = products;
    let dtype = x.dtype;
    w.with(device, scratch, dtype, |weight| {
        let product = Product {
            rows: x.rows,
            cols: w.rows,
            depth: w.cols,
            dtype,
            left: Operand::new(x.pointer(), x.cols),
            right: Operand::transposed(weight, w.cols),
            alpha: 1.0,
            start: residual.map(|residual| (residual.pointer(), residual.cols)),
            out: (y.pointer(), y.cols),
            out_dtype: dtype,
        };
        // SAFETY: x (T, K), W (N, K), residual and y (T, N): `prepare` in mod.rs. y is borrowed alone.
        unsafe { blas.product(device, "linear", &product) }
    })?;
    let Some((group, params, s)) = adapters else { return Ok(()) };
    let params = params.narrow(device, dtype)?;
    for part in &group.parts {
        let out = y.column(part.out_start);
        let product = Product {
            rows: x.rows,
            cols: part.out_len,
            depth: part.rank,
            dtype,
            left: Operand::new(s.column(part.s_start), s.cols),
            right: Operand::transposed(params.plus(part.b * dtype.bytes()), part.rank),
            alpha: part.scale as f32,
            start: Some((out, y.cols)),
            out: (out, y.cols),
            out_dtype: dtype,
        };
        // SAFETY: the part's B lies in the parameters, its columns in s and y: `check_group` by `prepare` in mod.rs.
        unsafe { blas.product(device, "linear_lora", &product)? };
    }
    Ok(())
}

pub(crate) fn backward(
    products: Products<'_>,
    dy: &Act,
    w: &Weight,
    adapters: Adapters<'_>,
    dx: &mut Act,
) -> Result<()> {
    let Products { device, blas, scratch } = products;
    let dtype = dy.dtype;
    let out = (dx.pointer(), dx.cols);
    w.with(device, scratch, dtype, |weight| {
        let product = Product {
            rows: dy.rows,
            cols: w.cols,
            depth: w.rows,
            dtype,
            left: Operand::new(dy.pointer(), dy.cols),
            right: Operand::new(weight, w.cols),
            alpha: 1.0,
            start: None,
            out,
            out_dtype: dtype,
        };
        // SAFETY: dy (T, N), W (N, K), dx (T, K): `prepare_backward` in mod.rs.
        unsafe { blas.product(device, "linear_backward", &product) }
    })?;
    let Some((group, params, ds)) = adapters else { return Ok(()) };
    let params = params.narrow(device, dtype)?;
    for run in super::super::lora::cuda::stacked(group) {
        let product = Product {
            rows: dy.rows,
            cols: w.cols,
            depth: run.rank,
            dtype,
            left: Operand::new(ds.column(run.s_start), ds.cols),
            right: Operand::new(params.plus(run.a * dtype.bytes()), group.in_features),
            alpha: 1.0,
            start: Some(out),
            out,
            out_dtype: dtype,
        };
        // SAFETY: the A of the run lie in the parameters, their columns in ds: `check_group` by `prepare_backward`.
        unsafe { blas.product(device, "linear_backward_lora", &product)? };
    }
    Ok(())
}

/// Writes the part's values, of which there are `elements`, to `out`.
pub(crate) fn dequantize(device: &Device, part: &Part, elements: usize, (out, dtype): (Pointer, Dtype)) -> Result<()> {
    match &part.storage {
        Storage::Dense { dtype: stored, values } => cast(device, (values.pointer(), *stored), elements, (out, dtype)),
        Storage::Nf4(nf4) => {
            let args = [nf4.args().as_slice(), &[elements.into(), out.into()]].concat();
            // SAFETY: codes and scales are there for `elements` values: `Weight::new`; `out` is in the scratch that
            // `Weight::with` sized.
            unsafe { device.launch("linear_dequantize", dtype, device.over(elements.div_ceil(8)), &args) }
        }
    }
}

/// Writes `len` values of one dtype as another.
pub(crate) fn cast(
    device: &Device,
    (from, stored): (Pointer, Dtype),
    len: usize,
    (to, dtype): (Pointer, Dtype),
) -> Result<()> {
    let args = [from.into(), stored.kind().into(), len.into(), to.into()];
    // SAFETY: the callers, `dequantize` and `Full::narrow`, give buffers that they sized for `len` values.
    unsafe { device.launch("linear_cast", dtype, device.over(len), &args) }
}
