//! `linear` on the GPU: the adapters' thin products start the sum, the weight is dequantised into a scratch if it must be,
//! and cuBLASLt multiplies and adds to what is there.
#![expect(unsafe_code, reason = "starts kernels and products")]

use super::rows;
use crate::kernels::cuda::{Act, Device, Dtype, Full, Operand, Part, Pointer, Product, Products, Storage, Weight};
use crate::kernels::{LoraGroup, Result};

pub(crate) type Adapters<'a> = Option<(&'a LoraGroup, &'a Full, &'a Act)>;

/// Where a sum of products goes: the first adds `start`, the others what is there.
struct Sum {
    start: Option<(Pointer, usize)>,
    out: (Pointer, usize),
}

impl Sum {
    /// What the next product adds to, from a column on.
    fn next(&mut self, column_bytes: usize) -> Option<(Pointer, usize)> {
        self.start.map(|(pointer, stride)| (pointer.plus(column_bytes), stride))
    }

    /// From now on products add to the output.
    fn begun(&mut self) {
        self.start = Some(self.out);
    }
}

pub(crate) fn forward(
    products: Products<'_>,
    x: &Act,
    w: &Weight,
    adapters: Adapters<'_>,
    residual: Option<&Act>,
    y: &mut Act,
) -> Result<()> {
    let Products { device, blas, scratch } = products;
    if rows::forward(device, x, w, adapters, residual, y)? {
        return Ok(());
    }
    let mut sum =
        Sum { start: residual.map(|residual| (residual.pointer(), residual.cols)), out: (y.pointer(), y.cols) };
    // The adapters' products are so thin that they cost their output's reads and writes. When they come first they only
    // write, and the base product reads while it computes.
    let is_first =
        adapters.is_some_and(|(group, ..)| group.parts.iter().map(|part| part.out_len).sum::<usize>() == y.cols);
    if is_first {
        forward_adapters(products, adapters, y, &mut sum)?;
        sum.begun();
    }
    let dtype = x.dtype;
    w.with(device, scratch, dtype, |weight, first, rows| {
        let (pointer, stride) = sum.out;
        let product = Product {
            rows: x.rows,
            cols: rows,
            depth: w.cols,
            dtype,
            left: Operand::new(x.pointer(), x.cols),
            right: Operand::transposed(weight, w.cols),
            alpha: 1.0,
            start: sum.next(first * dtype.bytes()),
            out: (pointer.plus(first * dtype.bytes()), stride),
            out_dtype: dtype,
        };
        // SAFETY: x (T, K), W (N, K), residual and y (T, N): `prepare` in mod.rs. y is borrowed alone.
        unsafe { blas.product(device, "linear", &product) }
    })?;
    if is_first {
        return Ok(());
    }
    sum.begun();
    forward_adapters(products, adapters, y, &mut sum)
}

/// Each adapter's product into its columns of `y`.
fn forward_adapters(products: Products<'_>, adapters: Adapters<'_>, y: &mut Act, sum: &mut Sum) -> Result<()> {
    let Products { device, blas, .. } = products;
    let Some((group, params, s)) = adapters else { return Ok(()) };
    let dtype = s.dtype;
    let params = params.narrow(device, dtype)?;
    for part in &group.parts {
        let product = Product {
            rows: s.rows,
            cols: part.out_len,
            depth: part.rank,
            dtype,
            left: Operand::new(s.column(part.s_start), s.cols),
            right: Operand::transposed(params.plus(part.b * dtype.bytes()), part.rank),
            alpha: part.scale as f32,
            start: sum.next(part.out_start * dtype.bytes()),
            out: (y.column(part.out_start), y.cols),
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
    let mut sum = Sum { start: None, out: (dx.pointer(), dx.cols) };
    if let Some((group, params, ds)) = adapters {
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
                start: sum.next(0),
                out: sum.out,
                out_dtype: dtype,
            };
            // SAFETY: the A of the run lie in the parameters, their columns in ds: `check_group` by `prepare_backward`.
            unsafe { blas.product(device, "linear_backward_lora", &product)? };
            sum.begun();
        }
    }
    w.with(device, scratch, dtype, |weight, first, rows| {
        let product = Product {
            rows: dy.rows,
            cols: w.cols,
            depth: rows,
            dtype,
            left: Operand::new(dy.column(first), dy.cols),
            right: Operand::new(weight, w.cols),
            alpha: 1.0,
            start: sum.next(0),
            out: sum.out,
            out_dtype: dtype,
        };
        // SAFETY: dy (T, N), W (N, K), dx (T, K): `prepare_backward` in mod.rs.
        unsafe { blas.product(device, "linear_backward", &product)? };
        sum.begun();
        Ok(())
    })
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
