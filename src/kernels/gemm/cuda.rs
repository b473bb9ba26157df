//! Products for which cuBLASLt has no algorithm, by a plain kernel.
#![expect(unsafe_code, reason = "starts kernels")]

use crate::kernels::Result;
use crate::kernels::cuda::{Device, Dtype, Grid, Operand, Pointer, Product};

/// Rows and columns of a block; `SIDE` in kernel.cu.
const SIDE: usize = 16;

/// # Safety
///
/// The operands and the output lie on `device` and are as large as shape and strides say; a `start` that is not the output
/// does not overlap it.
pub(crate) unsafe fn product(device: &Device, product: &Product) -> Result<()> {
    let &Product { rows, cols, depth, left, right, .. } = product;
    let strides = |operand: Operand| if operand.transposed { [1, operand.stride] } else { [operand.stride, 1] };
    let ([left_row, left_depth], [right_depth, right_column]) = (strides(left), strides(right));
    let (start, start_row) = product.start.unwrap_or((Pointer::NULL, 0));
    let args = [
        left.at.into(),
        left_row.into(),
        left_depth.into(),
        right.at.into(),
        right_depth.into(),
        right_column.into(),
        rows.into(),
        cols.into(),
        depth.into(),
        product.alpha.into(),
        start.into(),
        start_row.into(),
        product.out.0.into(),
        product.out.1.into(),
    ];
    let is_full = product.out_dtype == Dtype::F32 && product.dtype != Dtype::F32;
    let name = if is_full { "gemm_plain_full" } else { "gemm_plain" };
    let grid = Grid::new(rows.div_ceil(SIDE) * cols.div_ceil(SIDE), (SIDE * SIDE) as u32);
    // SAFETY: the caller's.
    unsafe { device.launch(name, product.dtype, grid, &args) }
}
