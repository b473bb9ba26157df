//! The natives of the script language, one file per namespace: conversions only, no arithmetic.

use rhai::Engine;

use super::Host;

/// Gives `engine` every native of unslothify.
pub fn register(_engine: &mut Engine, _host: &Host) {}
