//! How kernels are started, and those that begin while the one before them ends.
#![expect(unsafe_code, reason = "calls the CUDA driver")]

use std::ffi::c_void;

use cudarc::driver::{DriverError, result, sys};

use super::device::{Arg, Device, Grid, driver};
use super::dtype::Dtype;
use crate::kernels::{Error, Result};

/// The chip and the driver that can do it; a recording of such kernels needs CUDA 12.3.
const CAPABILITY: (i32, i32) = (9, 0);
const DRIVER: (i32, i32) = (12, 4);

pub(super) fn is_possible(capability: (i32, i32)) -> bool {
    capability >= CAPABILITY && super::findings::driver_version().is_ok_and(|version| version >= DRIVER)
}

/// Starts `function`, which waits for the kernel before it by itself (`wait_for_previous` in common.cuh).
///
/// # Safety
///
/// `pointers` point to the function's parameters; it writes nothing, and reads nothing that kernels write, before it waits.
unsafe fn launch(
    function: sys::CUfunction,
    (blocks, threads, shared): (u32, u32, u32),
    stream: sys::CUstream,
    pointers: &mut [*mut c_void],
) -> std::result::Result<(), DriverError> {
    let mut attribute = sys::CUlaunchAttribute {
        id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
        pad: [0; 4],
        value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
    };
    let config = sys::CUlaunchConfig {
        gridDimX: blocks,
        gridDimY: 1,
        gridDimZ: 1,
        blockDimX: threads,
        blockDimY: 1,
        blockDimZ: 1,
        sharedMemBytes: shared,
        hStream: stream,
        attrs: &raw mut attribute,
        numAttrs: 1,
    };
    // SAFETY: the caller's; the driver reads `config` before it returns.
    unsafe { sys::cuLaunchKernelEx(&raw const config, function, pointers.as_mut_ptr(), std::ptr::null_mut()) }.result()
}

impl Device {
    /// As `launch`, for a kernel with one parameter, a struct of eight-byte fields, that begins with `wait_for_previous`.
    ///
    /// # Safety
    ///
    /// As `launch`, the struct's fields for the parameters; and as `launch` below.
    pub(crate) unsafe fn launch_struct(
        &self,
        name: &'static str,
        dtype: Dtype,
        grid: Grid,
        fields: &[Arg],
    ) -> Result<()> {
        let mut values: Vec<u64> = fields.iter().map(|field| field.0).collect();
        // SAFETY: the caller's.
        unsafe { self.start(name, dtype, grid, &mut [values.as_mut_ptr().cast()], self.overlaps) }
    }

    /// # Safety
    ///
    /// As `launch`; `pointers` point to the parameters.
    pub(super) unsafe fn start(
        &self,
        name: &'static str,
        dtype: Dtype,
        grid: Grid,
        pointers: &mut [*mut c_void],
        overlaps: bool,
    ) -> Result<()> {
        if grid.blocks == 0 {
            return Ok(());
        }
        let Some(blocks) = u32::try_from(grid.blocks).ok().filter(|&blocks| i32::try_from(blocks).is_ok()) else {
            return Err(Error::Size {
                op: name,
                what: "the number of blocks",
                got: grid.blocks,
                wanted: i32::MAX as usize,
            });
        };
        self.bind()?;
        let function = self.function(name, dtype, grid.shared)?;
        let (threads, shared) = (grid.threads, grid.shared);
        self.timed(name, || {
            // SAFETY: the caller vouches for the arguments; the function was found in the loaded module by its name.
            unsafe {
                if overlaps {
                    launch(function, (blocks, threads, shared), self.raw_stream(), pointers)
                } else {
                    let (grid, block) = ((blocks, 1, 1), (threads, 1, 1));
                    result::launch_kernel(function, grid, block, shared, self.raw_stream(), pointers)
                }
            }
            .map_err(driver(name))
        })
    }
}
