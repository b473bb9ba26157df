//! What is on this machine: driver, GPUs.
#![expect(unsafe_code, reason = "calls the CUDA driver")]

use cudarc::driver::{CudaContext, result, sys};

use super::device::{driver, is_driver_there};
use crate::kernels::{Error, Result};

/// The newest CUDA version the driver supports.
pub(super) fn driver_version() -> Result<(i32, i32)> {
    if !is_driver_there() {
        return Err(Error::NoDriver);
    }
    let mut version = 0;
    // SAFETY: the driver is there; writes one number.
    unsafe { sys::cuDriverGetVersion(&raw mut version) }.result().map_err(driver("driver version"))?;
    Ok((version / 1000, version % 1000 / 10))
}

pub(super) fn count() -> Result<usize> {
    result::init().map_err(driver("start"))?;
    Ok(usize::try_from(CudaContext::device_count().map_err(driver("start"))?).unwrap_or(0))
}

/// What GPU `index` is. Starts a context on it, which takes a moment and some memory.
pub(super) fn describe(index: usize) -> Result<super::Description> {
    let context = CudaContext::new(index).map_err(driver("start"))?;
    let capability = context.compute_capability().map_err(driver("start"))?;
    let (free_bytes, total_bytes) = context.mem_get_info().map_err(driver("memory"))?;
    let name = context.name().map_err(driver("start"))?;
    Ok(super::Description { name, capability, free_bytes, total_bytes, dtype: super::dtype_for(capability) })
}
