//! `cuda`: what there is of it.

use rhai::Engine;
use rhai::plugin::*;

#[export_module]
mod functions {
    /// Whether models can be computed on an NVIDIA GPU. Not there yet: always false.
    ///
    /// ```rhai
    /// if !cuda::is_available() { print("this runs on the processor"); }
    /// ```
    pub fn is_available() -> bool {
        false
    }
}

pub(super) fn register(engine: &mut Engine) {
    let mut module = exported_module!(functions);
    super::later::extend(&mut module, "cuda");
    engine.register_static_module("cuda", module.into());
}
