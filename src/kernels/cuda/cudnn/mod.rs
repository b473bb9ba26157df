//! cuDNN's graph interface, loaded at run time: tensors, operations on them, and plans that compute them.
//!
//! A `Graph` takes tensors and operations; `Graph::plan` asks cuDNN's heuristic for engines and makes the first one that
//! works into a `Plan`. Nothing here knows what is computed: `attention/cudnn.rs` does.

mod api;
mod graph;

pub(crate) use api::Cudnn;
pub(super) use api::find;
pub(crate) use graph::{Four, Graph, Lengths, Plan, Pointwise, Reduction, Tensor, Values};
