//! The command line: arguments, dispatch, exit codes. One file per command.
//!
//! Exit codes: 0 done; 1 the recipe failed; 2 wrong usage or unknown parameter; 6 no usable device, or too little memory
//! for the model or a batch (`kernels::Error::Memory` says what stays outside); 130 Ctrl-C; 141 nobody reads standard output any more (`| head -1` ends a run as it ends any other program);
//! 143 SIGTERM. Results go to standard output; progress, remarks and errors to standard error.

mod arguments;
mod describe;
mod doctor;
mod output;
mod run;
mod signals;
mod terminal;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;

use crate::script::{Failure, Kind, Stop, StopReason};
use arguments::{Arguments, Command};

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let stop = Stop::new();
    if let Err(error) = signals::watch(&stop) {
        output::error(&format!("warning: Ctrl-C ends the program without a word: {error}"));
    }
    // The threads of the process must not exist before the signals are set up: they inherit what is blocked.
    ExitCode::from(command(std::env::args_os().collect(), &stop))
}

/// Runs the command `argv`, its first element being the program's name; gives the exit code.
fn command(argv: Vec<OsString>, stop: &Stop) -> u8 {
    let words: Vec<String> = argv.iter().map(|word| word.to_string_lossy().into_owned()).collect();
    let arguments = match Arguments::try_parse_from(argv) {
        Ok(arguments) => arguments,
        Err(error) => return output::clap(&error),
    };
    let color = arguments.color();
    let result = match arguments.command {
        Some(Command::Describe(describe)) => describe::main(&describe),
        Some(Command::Doctor(doctor)) => doctor::main(&doctor),
        Some(Command::Run(run)) => run::main(&run, words, stop),
        None => run::main(&arguments.run, words, stop),
    };
    match result {
        Ok(()) => 0,
        Err(error) => report(&error, color),
    }
}

/// Tells the user what went wrong, and gives the exit code for it.
fn report(error: &anyhow::Error, color: bool) -> u8 {
    let Some(failure) = error.downcast_ref::<Failure>() else {
        output::error(&format!("error: {error:#}"));
        return 1;
    };
    match failure.kind {
        Kind::Stopped(StopReason::OutputClosed) => {}
        Kind::Stopped(_) => {
            let place = failure.place.as_ref();
            let place = place.map_or_else(String::new, |at| format!(" at {}:{}:{}", at.source, at.line, at.column));
            output::error(&format!("stopped{place}: {}", failure.message));
        }
        _ => output::error(&failure.render(color)),
    }
    failure.exit_code()
}
