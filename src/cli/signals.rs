//! Ctrl-C and SIGTERM: the first asks the run to end, the third ends the process.

use crate::script::{Stop, StopReason};

use super::output;

/// Sets `stop` when the user or the system asks to end. Call it before the process has other threads.
#[cfg(unix)]
pub(super) fn watch(stop: &Stop) -> anyhow::Result<()> {
    use nix::sys::signal::{SigSet, Signal};

    // Waiting for blocked signals needs no handler, and so tells SIGINT from SIGTERM without any unsafe code.
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals.thread_block()?;
    let stop = stop.clone();
    std::thread::Builder::new().name("signals".to_string()).spawn(move || {
        let mut count = 0;
        while let Ok(signal) = signals.wait() {
            count += 1;
            let reason = if signal == Signal::SIGTERM { StopReason::Terminate } else { StopReason::Interrupt };
            asked(&stop, reason, count);
        }
    })?;
    Ok(())
}

/// Sets `stop` when the user asks to end.
#[cfg(not(unix))]
pub(super) fn watch(stop: &Stop) -> anyhow::Result<()> {
    let stop = stop.clone();
    let mut count = 0;
    ctrlc::set_handler(move || {
        count += 1;
        asked(&stop, StopReason::Interrupt, count);
    })?;
    Ok(())
}

fn asked(stop: &Stop, reason: StopReason, count: u32) {
    stop.set(reason);
    match count {
        1 => output::error("stopping; what is saved stays (twice more to end at once)"),
        2 => output::error("still stopping (once more to end at once)"),
        _ => at_once(reason),
    }
}

#[expect(clippy::disallowed_methods, reason = "the user has asked three times; main may hang in a native")]
fn at_once(reason: StopReason) -> ! {
    std::process::exit(i32::from(reason.exit_code()))
}
