//! Parity with transformers, peft, torch and bitsandbytes on the cases of `fixtures/parity` (made by
//! `fixtures/make/parity.py`), and with two oracles of our own: finite differences and candle's Mistral.

mod counting;
mod decode;
mod fixture;
mod forward;
mod gpu;
mod gradients;
mod optimizers;
mod oracles;
mod peft_files;
mod products;
mod training;
