//! A step of many small kernels, recorded once and started as one.
//!
//! A step that works is first done kernel by kernel, until one pass of it has taken no memory and given no kernel anything
//! that the host decided; then it is recorded while it is asked for again, and from then on the recording is started.
#![expect(unsafe_code, reason = "a recording may be started from any thread")]

use std::fmt;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use cudarc::driver::{CudaGraph, sys};

use super::device::{Device, Pointer, driver};
use super::{Cuda, Full};
use crate::kernels::{Error, Result};

/// All that a recorded step holds the address of, beside the weights and the step's own buffers.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Key {
    shape: [usize; 2],
    /// Which contents the parameters have, and where they are in the compute dtype.
    params: Option<(u64, Pointer)>,
    rotations: Pointer,
    partial: Pointer,
}

/// A step as it was last done.
#[derive(Debug, Default)]
pub struct Recording {
    key: Option<Key>,
    is_replayable: bool,
    graph: Option<Graph>,
}

struct Graph(CudaGraph);

// SAFETY: the driver takes calls on a graph from any thread, one at a time; a `Recording` is used through `&mut` only.
unsafe impl Send for Graph {}
// SAFETY: as above; nothing is done through `&Graph`.
unsafe impl Sync for Graph {}

impl fmt::Debug for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Graph")
    }
}

impl Cuda {
    /// `Backend::repeat`.
    pub(super) fn repeat_recorded<E: From<Error>>(
        &self,
        recording: &mut Recording,
        shape: [usize; 2],
        params: Option<&Full>,
        work: impl FnOnce() -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        let device = &*self.device;
        if device.is_measured() {
            return work();
        }
        let key = self.key(shape, params)?;
        if recording.key != Some(key) {
            *recording = Recording { key: Some(key), ..Recording::default() };
        }
        if let Some(Graph(graph)) = &recording.graph {
            return Ok(graph.launch().map_err(driver("repeat"))?);
        }
        if !recording.is_replayable {
            device.watch();
            let done = work();
            recording.is_replayable = done.is_ok() && device.is_replayable();
            return done;
        }
        let graph = self.record(work)?;
        graph.0.launch().map_err(driver("repeat"))?;
        recording.graph = Some(graph);
        Ok(())
    }

    fn key(&self, shape: [usize; 2], params: Option<&Full>) -> Result<Key> {
        let at = |params: &Full| Ok::<_, Error>((params.version(), params.narrow(&self.device, self.dtype)?));
        let rotations = self.rotations.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Key {
            shape,
            params: params.map(at).transpose()?,
            rotations: rotations.as_ref().map_or(Pointer::NULL, |table| table.pointer()),
            partial: self.partial.lock().unwrap_or_else(PoisonError::into_inner).pointer(),
        })
    }

    /// What `work` asks for, which is not done now.
    fn record<E: From<Error>>(
        &self,
        work: impl FnOnce() -> std::result::Result<(), E>,
    ) -> std::result::Result<Graph, E> {
        let stream = self.device.stream();
        stream.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED).map_err(driver("record"))?;
        let asked = work();
        let graph = stream.end_capture(sys::CUgraphInstantiate_flags(0)).map_err(driver("record"));
        asked?;
        match graph? {
            Some(graph) => Ok(Graph(graph)),
            None => unreachable!("a capture that was begun and ended without an error gives a graph"),
        }
    }
}

impl Device {
    /// Begins to note whether a recording of what is asked for from now on would do the same.
    fn watch(&self) {
        self.is_replayable.store(true, Ordering::Relaxed);
    }

    fn is_replayable(&self) -> bool {
        self.is_replayable.load(Ordering::Relaxed)
    }

    /// Said by whatever takes memory, copies to or from the host, or gives a kernel what changes from step to step.
    pub(crate) fn needs_host(&self) {
        self.is_replayable.store(false, Ordering::Relaxed);
    }

    fn is_measured(&self) -> bool {
        self.timings.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }
}
