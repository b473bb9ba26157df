//! Matrix products by cuBLASLt, loaded at run time, with a cache of plans.
//!
//! cuBLASLt counts columns first: the product row-major C = L·R is asked for as Cᵀ = Rᵀ·Lᵀ. Sums are f32; f32 operands
//! are multiplied as f32, never as TF32; a product split over its depth is added up in f32. Where it has no algorithm (odd
//! strides in 16 bits), `gemm/kernel.cu` computes, visible in the timings as `gemm_plain`.
#![expect(unsafe_code, reason = "calls a C library")]

use std::collections::HashMap;
use std::ffi::c_void;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use libloading::Library;

use super::device::{Buffer, Device, Pointer};
use super::dtype::Dtype;
use super::library;
use crate::kernels::{Error, Result, gemm};

/// Bytes cuBLASLt may use beside the operands.
const WORKSPACE: usize = 32 << 20;
/// Algorithms asked for, and timed when tuning is on.
const CANDIDATES: usize = 8;
/// Plans kept; packed batches come in many lengths.
const MOST_PLANS: usize = 4096;

// Numbers of cublasLt.h.
const COMPUTE_32F: u32 = 68;
const DESC_TRANSA: u32 = 3;
const DESC_TRANSB: u32 = 4;
const PREF_MAX_WORKSPACE: u32 = 1;
const PREF_REDUCTION_SCHEMES: u32 = 3;
const PREF_ALIGNMENT_A: u32 = 5;
/// Split products are summed in the compute type, through the workspace.
const REDUCTION_COMPUTE_TYPE: u32 = 2;
/// The answer where no algorithm fits.
const NOT_SUPPORTED: Status = 15;

type Handle = *mut c_void;
type Status = u32;

#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct Algorithm([u64; 8]);

#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct Heuristic {
    algorithm: Algorithm,
    workspace: usize,
    status: Status,
    waves: f32,
    reserved: [i32; 4],
}

/// The ten functions that are used.
struct Functions {
    create: unsafe extern "C" fn(*mut Handle) -> Status,
    destroy: unsafe extern "C" fn(Handle) -> Status,
    version: unsafe extern "C" fn() -> usize,
    desc_create: unsafe extern "C" fn(*mut Handle, u32, u32) -> Status,
    desc_destroy: unsafe extern "C" fn(Handle) -> Status,
    desc_set: unsafe extern "C" fn(Handle, u32, *const c_void, usize) -> Status,
    layout_create: unsafe extern "C" fn(*mut Handle, u32, u64, u64, i64) -> Status,
    layout_destroy: unsafe extern "C" fn(Handle) -> Status,
    pref_create: unsafe extern "C" fn(*mut Handle) -> Status,
    pref_destroy: unsafe extern "C" fn(Handle) -> Status,
    pref_set: unsafe extern "C" fn(Handle, u32, *const c_void, usize) -> Status,
    heuristic: unsafe extern "C" fn(
        Handle,
        Handle,
        Handle,
        Handle,
        Handle,
        Handle,
        Handle,
        i32,
        *mut Heuristic,
        *mut i32,
    ) -> Status,
    matmul: unsafe extern "C" fn(
        Handle,
        Handle,
        *const c_void,
        *const c_void,
        Handle,
        *const c_void,
        Handle,
        *const c_void,
        *const c_void,
        Handle,
        *mut c_void,
        Handle,
        *const Algorithm,
        *mut c_void,
        usize,
        *mut c_void,
    ) -> Status,
}

impl Functions {
    fn load(library: &Library) -> std::result::Result<Self, libloading::Error> {
        // SAFETY: the names and signatures are those of cublasLt.h, unchanged from CUDA 11 to 13.
        unsafe {
            Ok(Self {
                create: *library.get(b"cublasLtCreate\0")?,
                destroy: *library.get(b"cublasLtDestroy\0")?,
                version: *library.get(b"cublasLtGetVersion\0")?,
                desc_create: *library.get(b"cublasLtMatmulDescCreate\0")?,
                desc_destroy: *library.get(b"cublasLtMatmulDescDestroy\0")?,
                desc_set: *library.get(b"cublasLtMatmulDescSetAttribute\0")?,
                layout_create: *library.get(b"cublasLtMatrixLayoutCreate\0")?,
                layout_destroy: *library.get(b"cublasLtMatrixLayoutDestroy\0")?,
                pref_create: *library.get(b"cublasLtMatmulPreferenceCreate\0")?,
                pref_destroy: *library.get(b"cublasLtMatmulPreferenceDestroy\0")?,
                pref_set: *library.get(b"cublasLtMatmulPreferenceSetAttribute\0")?,
                heuristic: *library.get(b"cublasLtMatmulAlgoGetHeuristic\0")?,
                matmul: *library.get(b"cublasLtMatmul\0")?,
            })
        }
    }
}

/// One operand: where it is, the distance of its rows, and whether it is used transposed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Operand {
    pub at: Pointer,
    pub stride: usize,
    pub transposed: bool,
}

impl Operand {
    pub(crate) fn new(at: Pointer, stride: usize) -> Self {
        Self { at, stride, transposed: false }
    }

    pub(crate) fn transposed(at: Pointer, stride: usize) -> Self {
        Self { at, stride, transposed: true }
    }
}

/// `out = alpha·left·right [+ start]`, all row-major; left (rows, depth), right (depth, cols) after transposition.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Product {
    pub rows: usize,
    pub cols: usize,
    pub depth: usize,
    pub dtype: Dtype,
    pub left: Operand,
    pub right: Operand,
    pub alpha: f32,
    /// What is added: another matrix, or the output itself.
    pub start: Option<(Pointer, usize)>,
    pub out: (Pointer, usize),
    pub out_dtype: Dtype,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    shape: [usize; 3],
    strides: [usize; 4],
    transposed: [bool; 2],
    dtypes: [Dtype; 2],
    adds: bool,
    is_in_place: bool,
    alignments: [u32; 4],
}

struct Plan {
    desc: Handle,
    layouts: [Handle; 4],
    algorithm: Algorithm,
}

/// cuBLASLt with its handle, workspace and plans.
pub(crate) struct Blas {
    functions: Functions,
    handle: Handle,
    workspace: Buffer,
    /// None where there is no algorithm.
    plans: Mutex<HashMap<Key, Option<Plan>>>,
    is_tuned: bool,
    path: String,
    // last: the functions live in it
    _library: Library,
}

// SAFETY: a cuBLASLt handle may be used from any thread; plans are changed under the mutex only.
unsafe impl Send for Blas {}
// SAFETY: as above.
unsafe impl Sync for Blas {}

impl fmt::Debug for Blas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Blas").field("path", &self.path).finish_non_exhaustive()
    }
}

fn ok(op: &'static str, status: Status) -> Result<()> {
    if status == 0 { Ok(()) } else { Err(Error::Blas { op, status }) }
}

/// The library that loads first, and where from.
fn open() -> Result<(Library, Functions, String)> {
    for path in library::candidates(&library::BLAS) {
        // SAFETY: the file is cuBLASLt by its name; loading it runs its initialisers and nothing of ours.
        let Ok(library) = (unsafe { Library::new(&path) }) else { continue };
        if let Ok(functions) = Functions::load(&library) {
            return Ok((library, functions, path.display().to_string()));
        }
    }
    Err(Error::NoBlas)
}

/// Where cuBLASLt was found and its version.
pub(super) fn find() -> Result<(String, usize)> {
    let (_library, functions, path) = open()?;
    // SAFETY: takes no arguments.
    let version = unsafe { (functions.version)() };
    Ok((path, version))
}

impl Blas {
    pub(super) fn open(device: &Arc<Device>) -> Result<Self> {
        let (library, functions, path) = open()?;
        device.bind()?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: writes a handle for the current context, bound above.
        ok("start cuBLASLt", unsafe { (functions.create)(&raw mut handle) })?;
        let workspace = device.alloc("gemm", WORKSPACE)?;
        Ok(Self { functions, handle, workspace, plans: Mutex::default(), is_tuned: false, path, _library: library })
    }

    pub(super) fn set_tuned(&mut self, is_tuned: bool) {
        self.is_tuned = is_tuned;
    }

    /// Computes a product whose operands the caller has checked.
    ///
    /// # Safety
    ///
    /// The operands and the output lie on `device` and are as large as shape and strides say; a `start` that is not the
    /// output does not overlap it.
    pub(crate) unsafe fn product(&self, device: &Device, name: &'static str, product: &Product) -> Result<()> {
        let &Product { rows, cols, depth, .. } = product;
        if rows == 0 || cols == 0 {
            return Ok(());
        }
        if depth == 0 {
            // nothing is added to an output that starts from itself; no other product is this empty
            let is_in_place = product.start.is_some_and(|(start, _)| start == product.out.0);
            return if is_in_place {
                Ok(())
            } else {
                Err(Error::Size { op: name, what: "the depth of a product", got: 0, wanted: 1 })
            };
        }
        device.bind()?;
        // its operands may be scratch that another pass makes larger
        device.needs_host();
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        let key = key(product);
        if plans.len() >= MOST_PLANS && !plans.contains_key(&key) {
            plans.drain().filter_map(|(_, plan)| plan).for_each(|plan| self.free(&plan));
        }
        if !plans.contains_key(&key) {
            let plan = self.plan(device, name, product, &key)?;
            plans.insert(key.clone(), plan);
        }
        let Some(Some(plan)) = plans.get(&key) else {
            // SAFETY: the caller's.
            return unsafe { gemm::cuda::product(device, product) };
        };
        let algorithm = &plan.algorithm;
        device.timed(name, || {
            // SAFETY: the caller's; the plan was made for these strides.
            ok(name, unsafe { self.run(device, plan, algorithm, product, product.out.0) })
        })
    }

    /// # Safety
    ///
    /// As `product`, with `out` for the output.
    unsafe fn run(
        &self,
        device: &Device,
        plan: &Plan,
        algorithm: &Algorithm,
        product: &Product,
        out: Pointer,
    ) -> Status {
        let (alpha, beta) = (product.alpha, if product.start.is_some() { 1.0_f32 } else { 0.0 });
        let start = product.start.map_or(out, |(start, _)| start);
        let at = |pointer: Pointer| pointer.0 as *mut c_void;
        // SAFETY: the caller's.
        unsafe {
            (self.functions.matmul)(
                self.handle,
                plan.desc,
                (&raw const alpha).cast(),
                at(product.right.at),
                plan.layouts[0],
                at(product.left.at),
                plan.layouts[1],
                (&raw const beta).cast(),
                at(start),
                plan.layouts[2],
                at(out),
                plan.layouts[3],
                algorithm,
                at(self.workspace.pointer()),
                self.workspace.len(),
                device.raw_stream().cast(),
            )
        }
    }

    fn plan(&self, device: &Device, name: &'static str, product: &Product, key: &Key) -> Result<Option<Plan>> {
        let mut plan =
            Plan { desc: std::ptr::null_mut(), layouts: [std::ptr::null_mut(); 4], algorithm: Algorithm([0; 8]) };
        let made =
            self.describe(name, product, &mut plan).and_then(|()| self.choose(device, name, product, key, &plan));
        match made {
            Ok(Some(algorithm)) => {
                plan.algorithm = algorithm;
                Ok(Some(plan))
            }
            Ok(None) => {
                self.free(&plan);
                Ok(None)
            }
            Err(error) => {
                self.free(&plan);
                Err(error)
            }
        }
    }

    fn describe(&self, name: &'static str, product: &Product, plan: &mut Plan) -> Result<()> {
        let f = &self.functions;
        let &Product { rows, cols, depth, left, right, .. } = product;
        let transposed = |operand: Operand| i32::from(operand.transposed);
        // SAFETY: writes a new descriptor to `plan.desc`; the attributes are 4-byte numbers.
        unsafe {
            ok(name, (f.desc_create)(&raw mut plan.desc, COMPUTE_32F, Dtype::F32.cuda_type()))?;
            for (attribute, value) in [(DESC_TRANSA, transposed(right)), (DESC_TRANSB, transposed(left))] {
                ok(name, (f.desc_set)(plan.desc, attribute, (&raw const value).cast(), 4))?;
            }
        }
        // the buffers' own columns and rows: cuBLASLt's rows and columns
        let shape =
            |operand: Operand, rows: usize, cols: usize| if operand.transposed { (rows, cols) } else { (cols, rows) };
        let start_stride = product.start.map_or(product.out.1, |(_, stride)| stride);
        let matrices = [
            (shape(right, depth, cols), right.stride, product.dtype),
            (shape(left, rows, depth), left.stride, product.dtype),
            ((cols, rows), start_stride, product.out_dtype),
            ((cols, rows), product.out.1, product.out_dtype),
        ];
        for (layout, ((rows, cols), stride, dtype)) in plan.layouts.iter_mut().zip(matrices) {
            // SAFETY: writes a new layout to `layout`.
            let status =
                unsafe { (f.layout_create)(layout, dtype.cuda_type(), rows as u64, cols as u64, stride as i64) };
            ok(name, status)?;
        }
        Ok(())
    }

    /// The first algorithm cuBLASLt names, or the fastest of them; none where it has none.
    fn choose(
        &self,
        device: &Device,
        name: &'static str,
        product: &Product,
        key: &Key,
        plan: &Plan,
    ) -> Result<Option<Algorithm>> {
        let f = &self.functions;
        let mut preference = std::ptr::null_mut();
        // SAFETY: writes a new preference to `preference`.
        ok(name, unsafe { (f.pref_create)(&raw mut preference) })?;
        let empty = Heuristic { algorithm: Algorithm([0; 8]), workspace: 0, status: 1, waves: 0.0, reserved: [0; 4] };
        let mut found = [empty; CANDIDATES];
        let mut count = 0_i32;
        let wanted = if self.is_tuned { CANDIDATES } else { 1 };
        let [a, b, c, d] = plan.layouts;
        let workspace = WORKSPACE;
        // SAFETY: the attributes have the sizes cublasLt.h gives them; `found` has room for `wanted` results.
        let status = unsafe {
            let mut status =
                (f.pref_set)(preference, PREF_MAX_WORKSPACE, (&raw const workspace).cast(), size_of::<usize>());
            let schemes = REDUCTION_COMPUTE_TYPE;
            status |= (f.pref_set)(preference, PREF_REDUCTION_SCHEMES, (&raw const schemes).cast(), 4);
            for (attribute, alignment) in (PREF_ALIGNMENT_A..).zip(&key.alignments) {
                status |= (f.pref_set)(preference, attribute, (&raw const *alignment).cast(), 4);
            }
            if status == 0 {
                let (results, wanted) = (found.as_mut_ptr(), wanted as i32);
                status = (f.heuristic)(self.handle, plan.desc, a, b, c, d, preference, wanted, results, &raw mut count);
            }
            (f.pref_destroy)(preference);
            status
        };
        if status == NOT_SUPPORTED {
            return Ok(None);
        }
        ok(name, status)?;
        let usable: Vec<Algorithm> = found
            .iter()
            .take(usize::try_from(count).unwrap_or(0))
            .filter(|found| found.status == 0)
            .map(|found| found.algorithm)
            .collect();
        match usable.as_slice() {
            [] => Ok(None),
            [only] => Ok(Some(*only)),
            many => self.fastest(device, product, plan, many).map(Some),
        }
    }

    /// Times the candidates on the real operands, into an output of their own.
    fn fastest(&self, device: &Device, product: &Product, plan: &Plan, candidates: &[Algorithm]) -> Result<Algorithm> {
        let bytes = ((product.rows - 1) * product.out.1 + product.cols) * product.out_dtype.bytes();
        let out = device.alloc("gemm", bytes)?;
        let event = || {
            let timing = Some(cudarc::driver::sys::CUevent_flags::CU_EVENT_DEFAULT);
            device.stream().record_event(timing).map_err(super::device::driver("tune"))
        };
        let mut best: Option<(f32, Algorithm)> = None;
        for algorithm in candidates {
            let mut shortest = f32::INFINITY;
            for _ in 0..3 {
                let start = event()?;
                // SAFETY: the operands are the caller's of `product`; `out` was sized for shape and stride above.
                let status = unsafe { self.run(device, plan, algorithm, product, out.pointer()) };
                let end = event()?;
                if status == 0 {
                    shortest = shortest.min(start.elapsed_ms(&end).map_err(super::device::driver("tune"))?);
                }
            }
            if shortest.is_finite() && best.is_none_or(|(time, _)| shortest < time) {
                best = Some((shortest, *algorithm));
            }
        }
        match (best, candidates.first()) {
            (Some((_, algorithm)), _) => Ok(algorithm),
            (None, Some(first)) => Ok(*first),
            (None, None) => unreachable!("called with candidates"),
        }
    }

    fn free(&self, plan: &Plan) {
        // SAFETY: each was made by `describe` or is null, and is freed here once.
        unsafe {
            for layout in plan.layouts.iter().filter(|layout| !layout.is_null()) {
                (self.functions.layout_destroy)(*layout);
            }
            if !plan.desc.is_null() {
                (self.functions.desc_destroy)(plan.desc);
            }
        }
    }
}

impl Drop for Blas {
    fn drop(&mut self) {
        let plans = std::mem::take(&mut *self.plans.lock().unwrap_or_else(PoisonError::into_inner));
        plans.values().flatten().for_each(|plan| self.free(plan));
        // SAFETY: made in `open`, destroyed here only.
        unsafe { (self.functions.destroy)(self.handle) };
    }
}

fn key(product: &Product) -> Key {
    let start = product.start.unwrap_or(product.out);
    let alignment = |pointer: Pointer| 1_u32 << pointer.0.trailing_zeros().min(8);
    Key {
        shape: [product.rows, product.cols, product.depth],
        strides: [product.left.stride, product.right.stride, start.1, product.out.1],
        transposed: [product.left.transposed, product.right.transposed],
        dtypes: [product.dtype, product.out_dtype],
        adds: product.start.is_some(),
        is_in_place: start.0 == product.out.0,
        alignments: [product.right.at, product.left.at, start.0, product.out.0].map(alignment),
    }
}
