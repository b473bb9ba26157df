//! The natives of the script language, one file per namespace: conversions only, no arithmetic.
//!
//! Every handle is shared: copies in variables, closures and constants are the same object. Natives find the session
//! through the engine's tag ([`host`]), so that each can be a plain function with its documentation above it.

// `export_module` unwraps the arguments whose types Rhai has matched already; nothing written here does.
#![allow(clippy::unwrap_used)]

mod batches;
mod cuda;
mod dataset;
mod later;
mod loading;
mod lr_scheduler;
mod model;
mod optim;
mod run;
mod session;
mod tensor;
mod text;
mod tokenizer;

use std::sync::{Arc, Mutex};

use rhai::{Dynamic, Engine, EvalAltResult, NativeCallContext};

use crate::train::Pace;

use super::{Failure, Host};

/// What to do when memory runs out.
const LESS_MEMORY: &str =
    "a smaller `batch_size`, shorter texts (`max_seq_length`), a smaller `r` or a smaller model take less";

/// What a native returns.
type Answer<T> = Result<T, Box<EvalAltResult>>;

/// What natives find behind the engine's tag.
#[derive(Clone)]
struct Session {
    host: Host,
    /// The clock of the loop that runs, started by `run::start`.
    pace: Arc<Mutex<Option<Pace>>>,
}

/// Gives `engine` every native of unslothify.
pub fn register(engine: &mut Engine, host: &Host) {
    engine.set_default_tag(Dynamic::from(Session { host: host.clone(), pace: Arc::default() }));
    model::register(engine);
    tokenizer::register(engine);
    dataset::register(engine);
    batches::register(engine);
    tensor::register(engine);
    optim::register(engine);
    lr_scheduler::register(engine);
    run::register(engine);
    text::register(engine);
    cuda::register(engine);
    session::register(engine);
    later::register(engine);
}

fn session(context: &NativeCallContext<'_>) -> Answer<Session> {
    let tag = context.tag().and_then(|tag| tag.clone().try_cast::<Session>());
    tag.ok_or_else(|| Failure::at(context, "this function works inside an unslothify session only").into())
}

/// The outside of the session that a native was called in.
fn host(context: &NativeCallContext<'_>) -> Answer<Host> {
    session(context).map(|session| session.host)
}

/// The failure that an error of `train` is, at the native's place; a wish to stop ends the script; no usable device and
/// too little memory are failures of the device.
fn train_failure(context: &NativeCallContext<'_>, error: &crate::train::Error) -> Box<EvalAltResult> {
    if error.is_cancelled() {
        return cancelled(context);
    }
    if error.is_out_of_memory() {
        return match host(context) {
            Ok(host) => host.device_failure(context, error.to_string()).hint(LESS_MEMORY).into(),
            Err(error) => error,
        };
    }
    if error.is_no_device() {
        return match host(context) {
            Ok(host) => host.device_failure(context, error.to_string()).into(),
            Err(error) => error,
        };
    }
    failure(context, error)
}

/// Ends the script, as somebody asked; the models it has stay until the run has kept what it must.
fn cancelled(context: &NativeCallContext<'_>) -> Box<EvalAltResult> {
    if let Ok(host) = host(context) {
        host.models().hold();
    }
    Failure::cancelled(context)
}

/// The failure that any other error is.
fn failure(context: &NativeCallContext<'_>, error: &dyn std::error::Error) -> Box<EvalAltResult> {
    Failure::at(context, error.to_string()).into()
}

/// What answers for a name that is promised and not built.
fn not_there_yet(context: &NativeCallContext<'_>, name: &str) -> Box<EvalAltResult> {
    Failure::at(context, format!("`{name}` is not there yet"))
        .hint("it is planned and has its name already; `help()` lists what works today")
        .into()
}

/// A non-negative whole number a script gave.
fn count(context: &NativeCallContext<'_>, what: &str, value: i64) -> Answer<usize> {
    usize::try_from(value).map_err(|_| Failure::at(context, format!("{what} must not be negative, got {value}")).into())
}

/// A number as a script may write it: `1` as well as `1.0`.
fn number(context: &NativeCallContext<'_>, what: &str, value: &Dynamic) -> Answer<f64> {
    let wrong = |_| -> Box<EvalAltResult> {
        let got = super::names::describe(context.engine(), value);
        Failure::at(context, format!("{what} must be a number, got {got}")).into()
    };
    match value.as_int() {
        Ok(whole) => Ok(whole as f64),
        Err(_) => value.as_float().map_err(wrong),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::kernels;
    use crate::script::{Kind, Session, SessionOptions};

    #[test]
    fn running_out_of_memory_is_a_failure_of_the_device() {
        let options = SessionOptions::default().with_module(|engine, _| {
            engine.register_fn("starve", |context: NativeCallContext<'_>| -> Answer<()> {
                let error = kernels::Error::Memory { op: "full", bytes: 1 << 50 };
                Err(train_failure(&context, &crate::train::Error::Engine(error.into())))
            });
        });
        let failure = Session::new(options).run_source("x", "starve();").unwrap_err();
        assert_eq!((failure.kind, failure.exit_code()), (Kind::Device, 6));
        assert_eq!(failure.message, "out of memory: full asked for 1125899906842624 bytes");
        assert!(failure.place.is_some() && failure.hints.len() == 1);
    }
}
