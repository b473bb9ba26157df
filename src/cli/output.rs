//! Writing to the process's own streams, which somebody may have closed, beside the line that shows progress.

use std::io::{self, ErrorKind, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::script::{Failure, Kind, StopReason};

/// The progress line that standard error ends with; empty when there is none.
static LINE: Mutex<String> = Mutex::new(String::new());

/// Held while something is written that a full pipe may hold up.
static SLOW: Mutex<()> = Mutex::new(());

/// Back to the first column, and the line is empty.
const ERASE: &str = "\r\u{1b}[2K";

fn line() -> MutexGuard<'static, String> {
    LINE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Shows `text` as the progress line in place of the one before; the cursor stays behind it.
pub(super) fn show_line(text: &str) {
    let mut line = line();
    let mut out = io::stderr().lock();
    let _ = write!(out, "{ERASE}{text}").and_then(|()| out.flush());
    text.clone_into(&mut line);
}

/// Takes the progress line away.
pub(super) fn end_line() {
    let mut line = line();
    if !std::mem::take(&mut *line).is_empty() {
        let mut out = io::stderr().lock();
        let _ = write!(out, "{ERASE}").and_then(|()| out.flush());
    }
}

/// Runs `write` while the progress line is out of the way.
fn beside_line<T>(write: impl FnOnce() -> T) -> T {
    let line = line();
    if line.is_empty() {
        // Nothing to guard, and `write` may wait until somebody reads.
        drop(line);
        return write();
    }
    let show = |text: &str| {
        let mut out = io::stderr().lock();
        let _ = write!(out, "{ERASE}{text}").and_then(|()| out.flush());
    };
    show("");
    let done = write();
    show(&line);
    done
}

/// Writes a line of results to standard output.
pub(super) fn result(text: &str) -> io::Result<()> {
    let _slow = SLOW.lock().unwrap_or_else(PoisonError::into_inner);
    beside_line(|| {
        let mut out = io::stdout().lock();
        writeln!(out, "{text}")?;
        out.flush()
    })
}

/// As `error`, for one who must not wait until somebody reads the results.
pub(super) fn urgent(text: &str) {
    match SLOW.try_lock() {
        Ok(_) => error(text),
        Err(_) => {
            let _ = writeln!(io::stderr().lock(), "{text}");
        }
    }
}

/// Writes `text` to standard output; a closed one ends the command quietly.
pub(super) fn print(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    written.map_err(|error| match error.kind() {
        ErrorKind::BrokenPipe => {
            Failure::new(Kind::Stopped(StopReason::OutputClosed), "nobody reads the output").into()
        }
        _ => Failure::new(Kind::Recipe, format!("cannot write to standard output: {error}")).into(),
    })
}

/// Writes a line to standard error; if nobody reads that, there is nobody to tell.
pub(super) fn error(text: &str) {
    let _ = beside_line(|| writeln!(io::stderr().lock(), "{text}"));
}

/// Shows what clap has to say, and gives the exit code.
pub(super) fn clap(told: &clap::Error) -> u8 {
    let code = u8::try_from(told.exit_code()).unwrap_or(2);
    match told.print() {
        Err(error) if code == 0 && error.kind() == ErrorKind::BrokenPipe => StopReason::OutputClosed.exit_code(),
        Err(_) if code == 0 => StopReason::OutputFailed.exit_code(),
        _ => code,
    }
}
