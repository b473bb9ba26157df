//! Text from a model: the token loop, the sampler, stop rules, and pieces of text as they come.

mod error;
mod sampler;
mod stop;
#[cfg(test)]
mod tests;
mod tokens;

pub use error::{Error, Result};
pub use sampler::Sampling;
pub use tokens::{Decoder, Finish, Generated, Options, generate};
