//! The engine as one node of candle's graph.
//!
//! `Model::loss` runs the engine's forward and returns an ordinary candle scalar whose only parent is an anchor
//! variable; candle's backward calls `EngineOp::bwd` once with the upstream gradient, and the engine adds the
//! adapter's gradients into its own flat buffer. Read in candle 0.11.1: `backprop.rs` keeps a node whose argument is
//! a variable, and `None` for that argument allocates nothing.

use std::cell::RefCell;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::{CpuStorage, CustomOp1, DType, Layout, Shape, Var};

pub use candle_core::{Device as Place, Error as CandleError, Tensor};

use crate::data::{MicroBatch, RowId};

use crate::kernels::Cuda;
use crate::kernels::cuda::Dtype;

use super::{Error, Model, Result};

thread_local! {
    /// Our own error on its way through candle, which can carry text only.
    static FAILURE: RefCell<Option<Error>> = const { RefCell::new(None) };
}

/// The variable that makes candle walk down to the engine. Its value means nothing.
pub(super) fn anchor() -> Result<Tensor> {
    Ok(Var::zeros((), DType::F32, &candle_core::Device::Cpu)?.into_inner())
}

/// One forward pass of the engine, waiting for its backward.
struct EngineOp {
    model: Model,
    value: f64,
    /// The texts of the pass.
    rows: Vec<RowId>,
    /// The gradients have been added.
    spent: AtomicBool,
}

impl CustomOp1 for EngineOp {
    fn name(&self) -> &'static str {
        "model.loss"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(vec![self.value as f32]), Shape::from(())))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, upstream: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let upstream = upstream.to_dtype(DType::F64)?.to_scalar::<f64>()?;
        if self.spent.swap(true, Ordering::Relaxed) {
            return Err(carry(Error::Spent));
        }
        self.model.engine_backward(upstream, &self.rows).map_err(carry)?;
        Ok(None)
    }
}

impl Drop for EngineOp {
    /// A loss nobody asked the gradients of frees what its backward would have needed.
    fn drop(&mut self) {
        if !*self.spent.get_mut() {
            self.model.discard();
        }
    }
}

impl fmt::Debug for EngineOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EngineOp").field("value", &self.value).finish_non_exhaustive()
    }
}

impl Model {
    /// The micro-batch's share of its step's mean cross entropy: differentiable, one number.
    ///
    /// `Σ CE over the micro-batch / target tokens of the whole step`, so that the shares of a step add up to its mean
    /// however the step was split. Source: transformers' `num_items_in_batch`.
    pub fn loss(&self, batch: &MicroBatch) -> Result<Tensor> {
        let value = self.engine_forward(batch)?;
        // From here on the pass is pending: the op exists before anything can fail, and its drop frees the pass.
        let op = EngineOp { model: self.clone(), value, rows: batch.rows.clone(), spent: AtomicBool::new(false) };
        Ok(self.anchor().apply_op1(op)?)
    }
}

/// GPU `index` for the engine, and where scripts' tensors go beside it.
#[cfg(not(feature = "cuda"))]
pub(super) fn gpu(index: usize, dtype: Option<Dtype>) -> Result<(Cuda, Place)> {
    Ok((Cuda::new(index, dtype).map_err(crate::engine::Error::from)?, Place::Cpu))
}

/// GPU `index` for the engine, and where scripts' tensors go beside it: the same context and stream.
#[cfg(feature = "cuda")]
pub(super) fn gpu(index: usize, dtype: Option<Dtype>) -> Result<(Cuda, Place)> {
    use std::collections::BTreeMap;
    use std::sync::{Mutex, PoisonError};

    /// One for each GPU, for good: tensors of two devices of candle do not mix, even on one GPU.
    static PLACES: Mutex<BTreeMap<usize, Place>> = Mutex::new(BTreeMap::new());

    Cuda::check(index).map_err(crate::engine::Error::from)?;
    let mut places = PLACES.lock().unwrap_or_else(PoisonError::into_inner);
    let place = match places.get(&index) {
        Some(place) => place.clone(),
        None => {
            let place = Place::new_cuda_with_stream(index)?;
            places.insert(index, place.clone());
            place
        }
    };
    let stream = place.as_cuda_device()?.cuda_stream();
    Ok((Cuda::on_stream(stream, dtype).map_err(crate::engine::Error::from)?, place))
}

#[cfg(all(test, feature = "cuda"))]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    #[ignore = "not run: needs a GPU, `.ci/run gpu`"]
    fn the_gpu_has_one_context_and_one_stream_for_engines_and_tensors() {
        let (first, place) = gpu(0, None).unwrap();
        let (second, same) = gpu(0, Some(Dtype::F32)).unwrap();
        assert!(place.same_device(&same));
        let theirs = place.as_cuda_device().unwrap().cuda_stream();
        for engine in [&first, &second] {
            assert_eq!(engine.stream().cu_stream(), theirs.cu_stream());
            assert_eq!(engine.stream().context().cu_ctx(), theirs.context().cu_ctx());
        }
        assert!(!theirs.context().is_event_tracking());
    }
}

fn carry(error: Error) -> CandleError {
    let message = error.to_string();
    FAILURE.with(|failure| *failure.borrow_mut() = Some(error));
    CandleError::Msg(message)
}

/// Adds the gradients of `loss`, one number, to every trained parameter it depends on.
pub fn backward(loss: &Tensor) -> Result<()> {
    if loss.elem_count() != 1 {
        return Err(Error::NotScalar { elements: loss.elem_count() });
    }
    if !loss.track_op() {
        return Err(Error::NoGraph);
    }
    FAILURE.with(|failure| failure.borrow_mut().take());
    match loss.backward() {
        Ok(_) => Ok(()),
        Err(error) => Err(FAILURE.with(|failure| failure.borrow_mut().take()).unwrap_or(Error::Candle(error))),
    }
}
