//! Activations and tables in the computer's own memory, pinned so that the GPU reaches them by itself.
//!
//! Copies of activations run on a stream of their own beside the computation. A `Host` remembers the end of its last
//! copy; whoever touches the activation next waits for that on the device, never on the host.
#![expect(unsafe_code, reason = "calls the CUDA driver")]

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaStream, result, sys};

use super::buffers::Act;
use super::device::{Device, Pointer, driver};
use crate::kernels::{Error, Result, same};

/// Pinned memory that the GPU can read and write.
pub(crate) struct Pinned {
    address: *mut u8,
    len: usize,
    context: Arc<CudaContext>,
}

// SAFETY: memory without an owner thread; `Pinned` is its only owner and changes it through `&mut self` alone.
unsafe impl Send for Pinned {}
// SAFETY: as above.
unsafe impl Sync for Pinned {}

impl std::fmt::Debug for Pinned {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pinned").field("len", &self.len).finish_non_exhaustive()
    }
}

impl Pinned {
    pub(super) fn new(context: &Arc<CudaContext>, len: usize) -> Result<Self> {
        let op = "pinned memory";
        context.bind_to_thread().map_err(driver(op))?;
        // SAFETY: the memory is written before anything reads it.
        let address = unsafe { result::malloc_host(len.max(1), sys::CU_MEMHOSTALLOC_PORTABLE) };
        match address {
            Ok(address) => Ok(Self { address: address.cast(), len, context: Arc::clone(context) }),
            Err(error) if error.0 == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                Err(Error::HostMemory { op, bytes: len })
            }
            Err(error) => Err(driver(op)(error)),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Its address, which is the same for the GPU.
    pub(super) fn pointer(&self) -> Pointer {
        Pointer(self.address as u64)
    }

    /// The bytes, which nothing on the GPU may be using.
    pub(super) fn fill(&mut self, bytes: &[u8]) -> Result<()> {
        same("pinned memory", "the number of bytes", bytes.len(), self.len)?;
        self.put(bytes)
    }

    /// The first bytes, which nothing on the GPU may be using.
    pub(super) fn put(&mut self, bytes: &[u8]) -> Result<()> {
        if bytes.len() > self.len {
            return Err(Error::Index { op: "pinned memory", index: bytes.len(), len: self.len });
        }
        // SAFETY: `address` is the start of `len` bytes that are borrowed alone, and `bytes` lies elsewhere.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.address, bytes.len()) };
        Ok(())
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: allocated in `new` and freed here only. The driver waits for copies that still use it.
            let _ = unsafe { result::free_host(self.address.cast()) };
        }
    }
}

/// Room for an activation outside the GPU.
#[derive(Debug)]
pub struct Host {
    memory: Pinned,
    rows: usize,
    cols: usize,
    moved: Event,
}

/// The stream of the copies, and the event that tells it how far the computation is.
#[derive(Debug)]
pub(super) struct Copies {
    stream: Arc<CudaStream>,
    computed: Event,
}

#[derive(Debug)]
pub(super) struct Event(sys::CUevent, Arc<CudaContext>);

// SAFETY: an event handle is a name inside the driver, which takes calls from any thread.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    pub(super) fn new(context: &Arc<CudaContext>) -> Result<Self> {
        context.bind_to_thread().map_err(driver("event"))?;
        let event = result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING).map_err(driver("event"))?;
        Ok(Self(event, Arc::clone(context)))
    }

    pub(super) fn record(&self, stream: sys::CUstream) -> Result<()> {
        // SAFETY: the event lives as long as `self`, the stream as long as its `Device`.
        unsafe { result::event::record(self.0, stream) }.map_err(driver("event"))
    }

    /// Waits until it has happened; an event that was never recorded has.
    pub(super) fn wait(&self) -> Result<()> {
        // SAFETY: as in `record`.
        unsafe { result::event::synchronize(self.0) }.map_err(driver("event"))
    }

    /// What `stream` is asked for from now on comes after this event.
    fn before(&self, stream: sys::CUstream) -> Result<()> {
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: as in `record`.
        unsafe { result::stream::wait_event(stream, self.0, flags) }.map_err(driver("event"))
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.1.bind_to_thread().is_ok() {
            // SAFETY: made in `new` and destroyed here only; the driver keeps it until it has happened.
            let _ = unsafe { result::event::destroy(self.0) };
        }
    }
}

impl Copies {
    pub(super) fn new(context: &Arc<CudaContext>) -> Result<Self> {
        Ok(Self { stream: context.new_stream().map_err(driver("start"))?, computed: Event::new(context)? })
    }

    pub(super) fn wait(&self) -> Result<()> {
        self.stream.synchronize().map_err(driver("wait"))
    }

    /// Lets the copies follow everything that was asked of the computation so far.
    fn follow(&self, device: &Device) -> Result<sys::CUstream> {
        device.bind()?;
        self.computed.record(device.raw_stream())?;
        self.computed.before(self.stream.cu_stream())?;
        Ok(self.stream.cu_stream())
    }
}

impl Host {
    pub(super) fn new(context: &Arc<CudaContext>, rows: usize, cols: usize, value_bytes: usize) -> Result<Self> {
        let memory = Pinned::new(context, rows.saturating_mul(cols).saturating_mul(value_bytes))?;
        Ok(Self { memory, rows: 0, cols, moved: Event::new(context)? })
    }

    pub(super) fn offload(&mut self, device: &Device, copies: &Copies, act: &Act) -> Result<()> {
        let op = "offload";
        same(op, "the columns", act.cols, self.cols)?;
        if act.bytes() > self.memory.len() {
            return Err(Error::Size { op, what: "the bytes", got: act.bytes(), wanted: self.memory.len() });
        }
        let stream = copies.follow(device)?;
        let from = act.pointer().0;
        // SAFETY: both have room for `bytes`: checked above. Neither is touched before the event: `Backend::offload`.
        unsafe { sys::cuMemcpyDtoHAsync_v2(self.memory.address.cast(), from, act.bytes(), stream) }
            .result()
            .map_err(driver(op))?;
        self.rows = act.rows;
        self.moved.record(stream)
    }

    pub(super) fn fetch(&mut self, device: &Device, copies: &Copies, act: &mut Act) -> Result<()> {
        act.fit(device, self.rows, self.cols)?;
        let stream = copies.follow(device)?;
        let (to, from) = (act.pointer().0, self.memory.address.cast());
        // SAFETY: `act` was just sized for what `offload` put here. Neither is touched before the event: `Backend::fetch`.
        unsafe { sys::cuMemcpyHtoDAsync_v2(to, from, act.bytes(), stream) }.result().map_err(driver("fetch"))?;
        self.moved.record(stream)
    }

    pub(super) fn arrive(&self, device: &Device) -> Result<()> {
        device.bind()?;
        self.moved.before(device.raw_stream())
    }
}
