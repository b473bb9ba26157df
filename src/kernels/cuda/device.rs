//! One GPU: its stream, its memory, and the compiled kernels.
//!
//! One stream for the computation, so that everything happens in the order it was asked for and no event is needed between
//! two operations; copies to and from the computer's memory have another (host.rs).
//! Memory comes from the driver's pool, which is told to keep what it has: giving it back at each wait costs 130 times
//! more.
#![expect(unsafe_code, reason = "calls the CUDA driver")]

use std::collections::HashMap;
use std::ffi::CString;
use std::fmt;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::{CudaContext, CudaSlice, CudaStream, DevicePtr, DeviceRepr, DriverError, result, sys};

use super::compiled;
use super::dtype::Dtype;
use super::host::{Copies, Host, Pinned};
use super::overlap;
use super::pool;
use super::timing::Timings;
use crate::kernels::{Error, Result};

/// Threads of an elementwise block.
pub(crate) const THREADS: u32 = 256;
/// Blocks of an elementwise kernel per multiprocessor: enough to fill it, the rest is the kernel's own loop.
const BLOCKS_PER_MULTIPROCESSOR: usize = 16;
/// Dynamic shared memory every kernel may use without being asked for.
const PLAIN_SHARED: u32 = 48 * 1024;

/// One argument of a kernel: the bytes of a pointer, an `i64` or an `f32`, in the low end of eight.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arg(pub(super) u64);

impl From<usize> for Arg {
    fn from(value: usize) -> Self {
        Self(value as u64)
    }
}

impl From<f32> for Arg {
    fn from(value: f32) -> Self {
        Self(u64::from(value.to_bits()))
    }
}

/// The address of a byte on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pointer(pub(super) u64);

impl Pointer {
    pub(crate) const NULL: Self = Self(0);

    pub(crate) fn plus(self, bytes: usize) -> Self {
        Self(self.0 + bytes as u64)
    }
}

impl From<Pointer> for Arg {
    fn from(pointer: Pointer) -> Self {
        Self(pointer.0)
    }
}

/// How many blocks of how many threads, and their dynamic shared memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grid {
    pub(super) blocks: usize,
    pub(super) threads: u32,
    pub(super) shared: u32,
}

impl Grid {
    pub(crate) fn new(blocks: usize, threads: u32) -> Self {
        Self { blocks, threads, shared: 0 }
    }

    pub(crate) fn with_shared(self, bytes: usize) -> Self {
        Self { shared: u32::try_from(bytes).unwrap_or(u32::MAX), ..self }
    }
}

/// Bytes the device can reach; empty ones take no memory.
#[derive(Debug, Default)]
pub(crate) enum Buffer {
    #[default]
    Empty,
    Device(CudaSlice<u8>),
    /// In the computer's memory: each read crosses the bus.
    Host(Pinned),
}

impl Buffer {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Empty => 0,
            Self::Device(slice) => slice.len(),
            Self::Host(pinned) => pinned.len(),
        }
    }

    /// Bytes of the device's own memory.
    pub(super) fn device_len(&self) -> usize {
        if let Self::Host(_) = self { 0 } else { self.len() }
    }

    pub(crate) fn pointer(&self) -> Pointer {
        match self {
            Self::Empty => Pointer::NULL,
            Self::Device(slice) => Pointer(slice.device_ptr(slice.stream()).0),
            Self::Host(pinned) => pinned.pointer(),
        }
    }
}

struct Function {
    raw: sys::CUfunction,
    /// Dynamic shared memory it has been allowed.
    shared: u32,
}

// SAFETY: a function handle is a name inside the driver, which takes calls from any thread; `Device` keeps the module
// that holds it loaded.
unsafe impl Send for Function {}

struct Module(sys::CUmodule);

// SAFETY: the driver takes calls on a module from any thread; it is unloaded once, when its `Device` goes.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

/// A GPU with its stream and kernels.
pub struct Device {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    copies: Copies,
    module: Module,
    functions: Mutex<HashMap<(&'static str, Dtype), Function>>,
    pub(super) timings: Mutex<Option<Timings>>,
    /// Whether what was asked for since `watch` can be asked for again without the host.
    pub(super) is_replayable: AtomicBool,
    multiprocessors: usize,
    most_shared: usize,
    capability: (i32, i32),
    /// Whether kernels that can begin while the one before them ends do so.
    pub(super) overlaps: bool,
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device").field("ordinal", &self.context.ordinal()).finish_non_exhaustive()
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // kernels may still run
        if self.wait().is_ok() && self.bind().is_ok() {
            // SAFETY: loaded in `open`, unloaded here only; its functions are in `self` and go with it. An error means
            // that the context is gone and the module with it.
            let _ = unsafe { result::module::unload(self.module.0) };
        }
    }
}

pub(super) fn driver(op: &'static str) -> impl Fn(DriverError) -> Error {
    move |error| Error::Driver { op, code: error.0 as u32, said: format!("{:?}", error.0) }
}

/// Is there a CUDA driver on this machine? Nothing else of cudarc may be called before this says so: it would panic.
#[cfg(not(feature = "cuda"))]
pub(super) fn is_driver_there() -> bool {
    // SAFETY: looks for the library by its names and closes it again.
    unsafe { sys::is_culib_present() }
}

/// Is there a CUDA driver on this machine? A program that is linked to it does not start without.
#[cfg(feature = "cuda")]
pub(super) fn is_driver_there() -> bool {
    true
}

impl Device {
    /// Fails where there is no GPU `index`.
    pub(super) fn check(index: usize) -> Result<()> {
        if !is_driver_there() {
            return Err(Error::NoDriver);
        }
        result::init().map_err(driver("start"))?;
        let count = CudaContext::device_count().map_err(driver("start"))?;
        if index >= usize::try_from(count).unwrap_or(0) {
            return Err(Error::NoDevice { index, count: usize::try_from(count).unwrap_or(0) });
        }
        Ok(())
    }

    pub(super) fn open(index: usize) -> Result<Self> {
        Self::check(index)?;
        let context = CudaContext::new(index).map_err(driver("start"))?;
        Self::on_stream(context.new_stream().map_err(driver("start"))?)
    }

    /// The GPU of a stream that others may use too.
    pub(super) fn on_stream(stream: Arc<CudaStream>) -> Result<Self> {
        let context = Arc::clone(stream.context());
        // the stream may come from another thread
        context.bind_to_thread().map_err(driver("start"))?;
        // SAFETY: all buffers of this context use this one stream; `Copies`, which has another, waits by its own events.
        unsafe { context.disable_event_tracking() };
        pool::keep(&context)?;
        let attribute = |attribute| context.attribute(attribute).map_err(driver("start"));
        let multiprocessors = attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        let most_shared = attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?;
        let capability = context.compute_capability().map_err(driver("start"))?;
        let image = compiled::image(capability)?;
        // SAFETY: `image` is a whole cubin, or PTX with its final zero byte: what NVRTC wrote.
        let module = unsafe { result::module::load_data(image.as_ptr().cast()) }.map_err(driver("load the kernels"))?;
        Ok(Self {
            copies: Copies::new(&context)?,
            context,
            stream,
            module: Module(module),
            functions: Mutex::default(),
            timings: Mutex::default(),
            is_replayable: AtomicBool::new(false),
            multiprocessors: usize::try_from(multiprocessors).unwrap_or(1),
            most_shared: usize::try_from(most_shared).unwrap_or(0),
            capability,
            overlaps: overlap::is_possible(capability),
        })
    }

    /// Major and minor version of what the chip can do: (9, 0) is a H100.
    pub fn capability(&self) -> (i32, i32) {
        self.capability
    }

    pub(crate) fn multiprocessors(&self) -> usize {
        self.multiprocessors
    }

    /// Shared memory a block may have.
    pub(crate) fn most_shared(&self) -> usize {
        self.most_shared
    }

    /// Waits until everything asked for is done.
    pub fn wait(&self) -> Result<()> {
        self.stream.synchronize().map_err(driver("wait"))
    }

    pub(super) fn context(&self) -> &Arc<CudaContext> {
        &self.context
    }

    pub(super) fn copies(&self) -> &Copies {
        &self.copies
    }

    pub(super) fn host(&self, rows: usize, cols: usize, value_bytes: usize) -> Result<Host> {
        Host::new(&self.context, rows, cols, value_bytes)
    }

    /// `bytes` in the computer's memory, where the device reads them by itself.
    pub(super) fn pin(&self, bytes: &[u8]) -> Result<Buffer> {
        let mut pinned = Pinned::new(&self.context, bytes.len())?;
        pinned.fill(bytes)?;
        Ok(Buffer::Host(pinned))
    }

    pub(super) fn raw_stream(&self) -> sys::CUstream {
        self.stream.cu_stream()
    }

    pub(crate) fn bind(&self) -> Result<()> {
        self.context.bind_to_thread().map_err(driver("bind"))
    }

    // ---- memory --------------------------------------------------------------------------------------------

    /// Memory with whatever is in it.
    pub(crate) fn alloc(&self, op: &'static str, bytes: usize) -> Result<Buffer> {
        if bytes == 0 {
            return Ok(Buffer::default());
        }
        self.needs_host();
        // SAFETY: bytes have no invalid value; every operation writes its output before anything reads it.
        let slice = unsafe { self.stream.alloc::<u8>(bytes) };
        match slice {
            Ok(slice) => Ok(Buffer::Device(slice)),
            Err(error) if error.0 == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => Err(Error::Memory { op, bytes }),
            Err(error) => Err(driver(op)(error)),
        }
    }

    pub(crate) fn upload<T: DeviceRepr>(&self, op: &'static str, values: &[T]) -> Result<Buffer> {
        let mut buffer = self.alloc(op, size_of_val(values))?;
        self.write(op, &mut buffer, 0, values)?;
        Ok(buffer)
    }

    /// Copies `bytes` bytes from one place to the other; both lie on the device.
    pub(super) fn copy_bytes(&self, op: &'static str, from: Pointer, to: Pointer, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        self.bind()?;
        self.timed(op, || {
            // SAFETY: the caller, `copy_rows`, checked that the rows lie inside two different buffers.
            unsafe { result::memcpy_dtod_async(to.0, from.0, bytes, self.raw_stream()) }.map_err(driver(op))
        })
    }

    /// Copies `values` to the bytes from `offset` on.
    pub(crate) fn write<T: DeviceRepr>(
        &self,
        op: &'static str,
        to: &mut Buffer,
        offset: usize,
        values: &[T],
    ) -> Result<()> {
        let bytes = size_of_val(values);
        inside(op, offset, bytes, to.len())?;
        self.needs_host();
        if bytes == 0 {
            return Ok(());
        }
        self.bind()?;
        // SAFETY: the bytes lie inside `to`: checked above. From pageable memory the call returns when it has read them.
        unsafe { result::memcpy_htod_async(to.pointer().plus(offset).0, values, self.raw_stream()) }.map_err(driver(op))
    }

    /// Waits for everything asked for and copies the bytes from `offset` on.
    pub(crate) fn read<T: DeviceRepr>(
        &self,
        op: &'static str,
        from: &Buffer,
        offset: usize,
        values: &mut [T],
    ) -> Result<()> {
        let bytes = size_of_val(values);
        inside(op, offset, bytes, from.len())?;
        self.needs_host();
        if bytes == 0 {
            return Ok(());
        }
        self.bind()?;
        // SAFETY: the bytes lie inside `from`: checked above; `values` outlives the wait below.
        unsafe { result::memcpy_dtoh_async(values, from.pointer().plus(offset).0, self.raw_stream()) }
            .map_err(driver(op))?;
        self.wait()
    }

    pub(crate) fn copy(&self, op: &'static str, from: &Buffer, to: &mut Buffer, bytes: usize) -> Result<()> {
        inside(op, 0, bytes, from.len())?;
        inside(op, 0, bytes, to.len())?;
        if bytes == 0 {
            return Ok(());
        }
        self.bind()?;
        self.timed(op, || {
            // SAFETY: the bytes lie inside both: checked above; `to` is borrowed alone, so they are two buffers.
            unsafe { result::memcpy_dtod_async(to.pointer().0, from.pointer().0, bytes, self.raw_stream()) }
                .map_err(driver(op))
        })
    }

    /// Copies `rows` rows of `width` bytes; the address of the first and the distance of the rows in bytes on both sides.
    ///
    /// # Safety
    ///
    /// Both sides have so many rows at such a distance, and do not overlap.
    pub(crate) unsafe fn copy_columns(
        &self,
        op: &'static str,
        from: (Pointer, usize),
        to: (Pointer, usize),
        width: usize,
        rows: usize,
    ) -> Result<()> {
        self.bind()?;
        let on_device = sys::CUmemorytype::CU_MEMORYTYPE_DEVICE;
        let copy = sys::CUDA_MEMCPY2D {
            srcXInBytes: 0,
            srcY: 0,
            srcMemoryType: on_device,
            srcHost: std::ptr::null(),
            srcDevice: from.0.0,
            srcArray: std::ptr::null_mut(),
            srcPitch: from.1,
            dstXInBytes: 0,
            dstY: 0,
            dstMemoryType: on_device,
            dstHost: std::ptr::null_mut(),
            dstDevice: to.0.0,
            dstArray: std::ptr::null_mut(),
            dstPitch: to.1,
            WidthInBytes: width,
            Height: rows,
        };
        self.timed(op, || {
            // SAFETY: the caller's.
            unsafe { sys::cuMemcpy2DAsync_v2(&raw const copy, self.raw_stream()) }.result().map_err(driver(op))
        })
    }

    pub(crate) fn zero(&self, op: &'static str, buffer: &mut Buffer, bytes: usize) -> Result<()> {
        inside(op, 0, bytes, buffer.len())?;
        if bytes == 0 {
            return Ok(());
        }
        self.bind()?;
        self.timed(op, || {
            // SAFETY: the bytes lie inside `buffer`: checked above.
            unsafe { result::memset_d8_async(buffer.pointer().0, 0, bytes, self.raw_stream()) }.map_err(driver(op))
        })
    }

    // ---- kernels -------------------------------------------------------------------------------------------

    /// Blocks for `work` independent threads.
    pub(crate) fn over(&self, work: usize) -> Grid {
        let most = self.multiprocessors * BLOCKS_PER_MULTIPROCESSOR;
        Grid::new(work.div_ceil(THREADS as usize).min(most), THREADS)
    }

    /// Starts the kernel `name` for `dtype`; nothing happens where the grid has no blocks.
    ///
    /// # Safety
    ///
    /// `args` are the kernel's parameters in order and of its types, and every buffer is as long as it will read or
    /// write.
    pub(crate) unsafe fn launch(&self, name: &'static str, dtype: Dtype, grid: Grid, args: &[Arg]) -> Result<()> {
        let mut values = args.to_vec();
        let mut pointers: Vec<_> = values.iter_mut().map(|arg| (&raw mut arg.0).cast()).collect();
        // SAFETY: the caller's.
        unsafe { self.start(name, dtype, grid, &mut pointers, false) }
    }

    pub(super) fn function(&self, name: &'static str, dtype: Dtype, shared: u32) -> Result<sys::CUfunction> {
        let mut functions = self.functions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(function) = functions.get(&(name, dtype)).filter(|function| function.shared >= shared) {
            return Ok(function.raw);
        }
        let full = format!("{name}_{}", dtype.name());
        let Ok(full) = CString::new(full) else { unreachable!("kernel names hold no zero byte") };
        // SAFETY: the module is loaded as long as `self` lives.
        let raw = unsafe { result::module::get_function(self.module.0, full) }
            .map_err(|_| Error::NoKernel { name, dtype: dtype.name() })?;
        if shared > PLAIN_SHARED {
            let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: `raw` was found just above.
            unsafe { result::function::set_function_attribute(raw, attribute, shared.cast_signed()) }
                .map_err(driver(name))?;
        }
        functions.insert((name, dtype), Function { raw, shared: shared.max(PLAIN_SHARED) });
        Ok(raw)
    }

    // ---- timings -------------------------------------------------------------------------------------------

    /// Measures every operation from now on (true), or none (false).
    pub fn measure(&self, is_on: bool) {
        *self.timings.lock().unwrap_or_else(PoisonError::into_inner) = is_on.then(Timings::default);
    }

    /// Milliseconds and number of calls of each operation since `measure(true)`, longest first.
    pub fn measured(&self) -> Result<Vec<(String, f64, usize)>> {
        let mut timings = self.timings.lock().unwrap_or_else(PoisonError::into_inner);
        timings.as_mut().map_or_else(|| Ok(Vec::new()), Timings::table)
    }

    pub(super) fn timed(&self, name: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
        let mut timings = self.timings.lock().unwrap_or_else(PoisonError::into_inner);
        match timings.as_mut() {
            None => {
                drop(timings);
                work()
            }
            Some(timings) => timings.time(&self.stream, name, work),
        }
    }

    pub(super) fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }
}

fn inside(op: &'static str, offset: usize, bytes: usize, len: usize) -> Result<()> {
    let end = offset.saturating_add(bytes);
    if end <= len { Ok(()) } else { Err(Error::Index { op, index: end, len }) }
}
