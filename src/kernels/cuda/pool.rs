//! The driver's memory pool: what of it is taken, what it keeps.
#![expect(unsafe_code, reason = "calls the CUDA driver")]

use cudarc::driver::{CudaContext, result, sys};

use super::device::{Device, driver};
use crate::kernels::Result;

use sys::CUmemPool_attribute as Attribute;

impl Device {
    /// Free and total bytes.
    pub fn memory(&self) -> Result<(usize, usize)> {
        self.context().mem_get_info().map_err(driver("memory"))
    }

    /// The most bytes that buffers took at once since `reset_peak`.
    pub fn peak_bytes(&self) -> Result<usize> {
        get(self.context(), Attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH)
    }

    /// The most bytes of the card that were taken at once since `reset_peak`: this pool's peak and others' bytes as they are
    /// now. `None` where the driver has no pools.
    pub(super) fn peak_taken(&self) -> Result<Option<usize>> {
        if !self.context().has_async_alloc() {
            return Ok(None);
        }
        let (free, total) = self.memory()?;
        let reserved = get(self.context(), Attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT)?;
        let high = get(self.context(), Attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH)?;
        Ok(Some(total - free + high.saturating_sub(reserved)))
    }

    /// Starts counting both peaks anew.
    pub fn reset_peak(&self) -> Result<()> {
        if !self.context().has_async_alloc() {
            return Ok(());
        }
        for attribute in [Attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH, Attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH] {
            set(self.context(), attribute, 0)?;
        }
        Ok(())
    }

    /// Waits for everything, copies too, and gives back to the driver what is not in use.
    pub(super) fn trim(&self) -> Result<()> {
        self.wait()?;
        self.copies().wait()?;
        if !self.context().has_async_alloc() {
            return Ok(());
        }
        // SAFETY: the pool is the device's own, and what is in use stays.
        unsafe {
            let pool = result::device::get_default_mem_pool(self.context().cu_device()).map_err(driver("memory"))?;
            result::mem_pool::trim_to(pool, 0).map_err(driver("memory"))
        }
    }
}

/// Tells the pool to keep freed memory for the next buffer.
pub(super) fn keep(context: &CudaContext) -> Result<()> {
    if context.has_async_alloc() {
        set(context, Attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, u64::MAX)
    } else {
        Ok(())
    }
}

/// One of the attributes that are counts of bytes.
fn get(context: &CudaContext, attribute: Attribute) -> Result<usize> {
    let mut bytes = 0_u64;
    // SAFETY: the attributes asked for here are written as a u64, which `bytes` is.
    unsafe {
        let pool = result::device::get_default_mem_pool(context.cu_device()).map_err(driver("memory"))?;
        result::mem_pool::get_attribute(pool, attribute, (&raw mut bytes).cast()).map_err(driver("memory"))?;
    }
    Ok(bytes as usize)
}

fn set(context: &CudaContext, attribute: Attribute, mut bytes: u64) -> Result<()> {
    // SAFETY: the attributes set here are read as a u64, which `bytes` is.
    unsafe {
        let pool = result::device::get_default_mem_pool(context.cu_device()).map_err(driver("memory"))?;
        result::mem_pool::set_attribute(pool, attribute, (&raw mut bytes).cast()).map_err(driver("memory"))
    }
}
