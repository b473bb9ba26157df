//! The library: its functions, its handle, its descriptors.
#![expect(unsafe_code, reason = "calls a C library")]

use std::ffi::{CStr, c_char, c_void};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use libloading::Library;

use super::super::device::Device;
use super::super::library;
use crate::kernels::{Error, Result};

pub(super) type Raw = *mut c_void;
type Status = u32;

// Types of attributes: numbers of cudnn_graph.h, the same in all of cuDNN 9.
const OF_HANDLE: u32 = 0;
const OF_BOOLEAN: u32 = 2;
const OF_INT64: u32 = 3;
const OF_POINTER: u32 = 6;
const OF_DESCRIPTOR: u32 = 15;

/// The functions that are used.
struct Functions {
    version: unsafe extern "C" fn() -> usize,
    create: unsafe extern "C" fn(*mut Raw) -> Status,
    destroy: unsafe extern "C" fn(Raw) -> Status,
    set_stream: unsafe extern "C" fn(Raw, *mut c_void) -> Status,
    error_string: unsafe extern "C" fn(Status) -> *const c_char,
    last_error: unsafe extern "C" fn(*mut c_char, usize),
    descriptor_create: unsafe extern "C" fn(u32, *mut Raw) -> Status,
    descriptor_destroy: unsafe extern "C" fn(Raw) -> Status,
    set: unsafe extern "C" fn(Raw, u32, u32, i64, *const c_void) -> Status,
    get: unsafe extern "C" fn(Raw, u32, u32, i64, *mut i64, *mut c_void) -> Status,
    finalize: unsafe extern "C" fn(Raw) -> Status,
    execute: unsafe extern "C" fn(Raw, Raw, Raw) -> Status,
}

impl Functions {
    fn load(library: &Library) -> std::result::Result<Self, libloading::Error> {
        // SAFETY: the names and signatures are those of cudnn_graph.h, unchanged in all of cuDNN 9.
        unsafe {
            Ok(Self {
                version: *library.get(b"cudnnGetVersion\0")?,
                create: *library.get(b"cudnnCreate\0")?,
                destroy: *library.get(b"cudnnDestroy\0")?,
                set_stream: *library.get(b"cudnnSetStream\0")?,
                error_string: *library.get(b"cudnnGetErrorString\0")?,
                last_error: *library.get(b"cudnnGetLastErrorString\0")?,
                descriptor_create: *library.get(b"cudnnBackendCreateDescriptor\0")?,
                descriptor_destroy: *library.get(b"cudnnBackendDestroyDescriptor\0")?,
                set: *library.get(b"cudnnBackendSetAttribute\0")?,
                get: *library.get(b"cudnnBackendGetAttribute\0")?,
                finalize: *library.get(b"cudnnBackendFinalize\0")?,
                execute: *library.get(b"cudnnBackendExecute\0")?,
            })
        }
    }
}

/// The loaded library. Descriptors hold on to it.
pub(super) struct Api {
    functions: Functions,
    // last: the functions live in it
    _library: Library,
}

impl Api {
    pub(super) fn ok(&self, op: &'static str, step: &'static str, status: Status) -> Result<()> {
        if status == 0 {
            return Ok(());
        }
        let mut detail = [0_u8; 512];
        // SAFETY: the first returns a text that lives as long as the library; the second writes a text that ends with a
        // zero byte to at most the given number of bytes.
        let name = unsafe {
            (self.functions.last_error)(detail.as_mut_ptr().cast(), detail.len() - 1);
            CStr::from_ptr((self.functions.error_string)(status))
        };
        let detail = CStr::from_bytes_until_nul(&detail).unwrap_or_default();
        let said = format!("{} {}", name.to_string_lossy(), detail.to_string_lossy());
        Err(Error::Cudnn { op, step, status, said: said.trim().to_owned() })
    }
}

/// cuDNN with its handle on a device's stream.
pub(crate) struct Cudnn {
    api: Arc<Api>,
    /// A handle serves one thread at a time.
    handle: Mutex<Handle>,
    version: usize,
    path: String,
}

pub(super) struct Handle(Raw);

// SAFETY: cuDNN takes a handle from any thread, one at a time: it is behind a mutex.
unsafe impl Send for Handle {}
// SAFETY: the functions may be called from any thread.
unsafe impl Send for Api {}
// SAFETY: as above.
unsafe impl Sync for Api {}

impl fmt::Debug for Cudnn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cudnn").field("version", &self.version).field("path", &self.path).finish_non_exhaustive()
    }
}

/// The library that loads first, and where from.
fn open() -> Result<(Api, String)> {
    for path in library::candidates(&library::CUDNN) {
        // SAFETY: the file is cuDNN by its name; loading it runs its initialisers and nothing of ours.
        let Ok(library) = (unsafe { Library::new(&path) }) else { continue };
        if let Ok(functions) = Functions::load(&library) {
            return Ok((Api { functions, _library: library }, path.display().to_string()));
        }
    }
    Err(Error::NoCudnn)
}

/// Where cuDNN was found and its version, as 91900.
pub(in crate::kernels::cuda) fn find() -> Result<(String, usize)> {
    let (api, path) = open()?;
    // SAFETY: takes no arguments.
    let version = unsafe { (api.functions.version)() };
    Ok((path, version))
}

impl Cudnn {
    pub(crate) fn open(device: &Device) -> Result<Self> {
        let (api, path) = open()?;
        device.bind()?;
        let op = "start cuDNN";
        let mut handle = std::ptr::null_mut();
        // SAFETY: writes a handle for the current context, bound above.
        api.ok(op, "create a handle", unsafe { (api.functions.create)(&raw mut handle) })?;
        // SAFETY: takes no arguments.
        let version = unsafe { (api.functions.version)() };
        let cudnn = Self { api: Arc::new(api), handle: Mutex::new(Handle(handle)), version, path };
        // SAFETY: the stream outlives the handle: `Cuda` gives its device back last.
        let status = unsafe { (cudnn.api.functions.set_stream)(handle, device.raw_stream().cast()) };
        cudnn.api.ok(op, "give it the stream", status)?;
        Ok(cudnn)
    }

    pub(super) fn api(&self) -> &Arc<Api> {
        &self.api
    }

    pub(super) fn handle(&self) -> MutexGuard<'_, Handle> {
        self.handle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// 91900 is 9.19.0.
    pub(crate) fn version(&self) -> usize {
        self.version
    }
}

impl Drop for Cudnn {
    fn drop(&mut self) {
        let handle = self.handle.get_mut().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: made in `open`, destroyed here only.
        unsafe { (self.api.functions.destroy)(handle.0) };
    }
}

/// One of cuDNN's objects; what an error names as the operation.
pub(super) struct Descriptor {
    pub(super) raw: Raw,
    api: Arc<Api>,
    op: &'static str,
}

// SAFETY: cuDNN has no thread of its own for a descriptor.
unsafe impl Send for Descriptor {}
// SAFETY: a finished descriptor is only read, and plans are run one at a time, behind the handle's mutex.
unsafe impl Sync for Descriptor {}

impl Drop for Descriptor {
    fn drop(&mut self) {
        // SAFETY: made in `new`, destroyed here only.
        unsafe { (self.api.functions.descriptor_destroy)(self.raw) };
    }
}

impl Descriptor {
    pub(super) fn new(api: &Arc<Api>, op: &'static str, kind: u32) -> Result<Self> {
        let mut raw = std::ptr::null_mut();
        // SAFETY: writes a new descriptor to `raw`.
        api.ok(op, "create a descriptor", unsafe { (api.functions.descriptor_create)(kind, &raw mut raw) })?;
        Ok(Self { raw, api: api.clone(), op })
    }

    /// `values` are of the type that `of` says: the callers below.
    fn put<T>(self, attribute: u32, of: u32, values: &[T]) -> Result<Self> {
        // SAFETY: `values` holds as many values as said, of the size of the attribute's type.
        let status =
            unsafe { (self.api.functions.set)(self.raw, attribute, of, values.len() as i64, values.as_ptr().cast()) };
        self.api.ok(self.op, "set an attribute", status)?;
        Ok(self)
    }

    pub(super) fn numbers(self, attribute: u32, values: &[i64]) -> Result<Self> {
        self.put(attribute, OF_INT64, values)
    }

    /// One value of an enumeration.
    pub(super) fn choice(self, attribute: u32, of: u32, value: u32) -> Result<Self> {
        self.put(attribute, of, &[value])
    }

    pub(super) fn yes(self, attribute: u32) -> Result<Self> {
        self.put(attribute, OF_BOOLEAN, &[true])
    }

    pub(super) fn descriptors(self, attribute: u32, values: &[Raw]) -> Result<Self> {
        self.put(attribute, OF_DESCRIPTOR, values)
    }

    pub(super) fn pointers(self, attribute: u32, values: &[Raw]) -> Result<Self> {
        self.put(attribute, OF_POINTER, values)
    }

    pub(super) fn handle(self, attribute: u32, handle: &Handle) -> Result<Self> {
        self.put(attribute, OF_HANDLE, &[handle.0])
    }

    pub(super) fn finish(self, step: &'static str) -> Result<Self> {
        // SAFETY: made in `new` and not finished before: this takes the only one there is.
        self.api.ok(self.op, step, unsafe { (self.api.functions.finalize)(self.raw) })?;
        Ok(self)
    }

    /// Fills `descriptors` with what there is and says how many.
    pub(super) fn fill(&self, attribute: u32, descriptors: &[Self]) -> Result<usize> {
        let mut raws: Vec<Raw> = descriptors.iter().map(|descriptor| descriptor.raw).collect();
        let (len, mut count) = (raws.len() as i64, 0_i64);
        // SAFETY: reads at most `len` descriptors, which are there, and writes into them.
        let status = unsafe {
            let to = raws.as_mut_ptr().cast();
            (self.api.functions.get)(self.raw, attribute, OF_DESCRIPTOR, len, &raw mut count, to)
        };
        self.api.ok(self.op, "ask for engines", status)?;
        Ok(usize::try_from(count).unwrap_or(0).min(descriptors.len()))
    }

    /// Starts a plan on what `pack` names.
    ///
    /// # Safety
    ///
    /// The addresses in `pack` are valid and as large as the plan's tensors say.
    pub(super) unsafe fn execute(&self, handle: &Handle, pack: &Self) -> Result<()> {
        // SAFETY: the caller's.
        let status = unsafe { (self.api.functions.execute)(handle.0, self.raw, pack.raw) };
        self.api.ok(self.op, "run the plan", status)
    }

    pub(super) fn number(&self, attribute: u32) -> Result<i64> {
        let (mut value, mut count) = (0_i64, 0_i64);
        // SAFETY: writes at most one number of 8 bytes to `value`.
        let status = unsafe {
            (self.api.functions.get)(self.raw, attribute, OF_INT64, 1, &raw mut count, (&raw mut value).cast())
        };
        self.api.ok(self.op, "read an attribute", status)?;
        Ok(value)
    }
}
