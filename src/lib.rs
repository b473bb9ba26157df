//! Fine-tune Mistral-architecture models with LoRA from Rhai recipes.
//!
//! Rooms depend downward only; `tests/it/layers.rs` holds the table.

pub mod cli;
pub mod data;
pub mod engine;
pub mod export;
pub mod generate;
pub mod hub;
pub mod io;
pub mod kernels;
pub mod optim;
pub mod philox;
pub mod quant;
pub mod recipe;
pub mod run;
pub mod schedule;
pub mod script;
pub mod tokenizer;
pub mod train;
pub mod weights;
