//! Writing to the process's own streams, which somebody may have closed.

use std::io::Write;

use crate::script::{Failure, Kind, StopReason};

/// Writes `text` to standard output; a closed one ends the command quietly.
pub(super) fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    written.map_err(|_| Failure::new(Kind::Stopped(StopReason::OutputClosed), "nobody reads the output").into())
}

/// Writes a line to standard error; if nobody reads that, there is nobody to tell.
pub(super) fn error(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// Shows what clap has to say, and gives the exit code.
pub(super) fn clap(told: &clap::Error) -> u8 {
    let code = u8::try_from(told.exit_code()).unwrap_or(2);
    match told.print() {
        Err(_) if code == 0 => StopReason::OutputClosed.exit_code(),
        _ => code,
    }
}
