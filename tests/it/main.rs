//! The one integration test binary.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod adapters;
mod base;
mod bnb;
mod cli;
mod curves;
mod dataset;
mod docs;
mod generate;
mod inputs;
mod interrupted;
mod layers;
mod loss_scale;
mod parity;
mod recipes;
mod script;
mod stored;
#[cfg(feature = "cuda")]
mod tensors;
mod tiny;
mod train;
mod weights;
