//! Ctrl-C and SIGTERM: the first asks the run to end, the third ends the process.

use std::sync::mpsc::{Sender, channel};

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
    let mut asked = Asked::new(stop)?;
    std::thread::Builder::new().name("signals".to_string()).spawn(move || {
        while let Ok(signal) = signals.wait() {
            let terminates = signal == Signal::SIGTERM;
            asked.again(if terminates { StopReason::Terminate } else { StopReason::Interrupt });
        }
    })?;
    Ok(())
}

/// Sets `stop` when the user asks to end.
#[cfg(not(unix))]
pub(super) fn watch(stop: &Stop) -> anyhow::Result<()> {
    let mut asked = Asked::new(stop)?;
    ctrlc::set_handler(move || asked.again(StopReason::Interrupt))?;
    Ok(())
}

/// Counts what was asked, and never waits: a thread of its own does the talking, which a full pipe may hold up.
struct Asked {
    stop: Stop,
    count: u32,
    talker: Sender<String>,
}

impl Asked {
    fn new(stop: &Stop) -> anyhow::Result<Self> {
        let (talker, said) = channel::<String>();
        std::thread::Builder::new().name("talker".to_string()).spawn(move || {
            for text in said {
                output::urgent(&text);
            }
        })?;
        Ok(Self { stop: stop.clone(), count: 0, talker })
    }

    fn again(&mut self, reason: StopReason) {
        self.stop.set(reason);
        self.count += 1;
        let text = match self.count {
            1 => "stopping; the run folder keeps what is done (twice more to end at once)".to_string(),
            2 => format!("still stopping: {} (once more to end at once)", waits_for(&self.stop)),
            _ => at_once(reason),
        };
        // A talker that is gone has nobody to talk to.
        let _ = self.talker.send(text);
    }
}

/// What keeps the run from ending, as far as it has said so.
fn waits_for(stop: &Stop) -> String {
    match stop.doing() {
        what if what.is_empty() => "what is being computed or written comes to its end".to_string(),
        what => what,
    }
}

#[expect(clippy::disallowed_methods, reason = "the user has asked three times; main may hang in a native")]
fn at_once(reason: StopReason) -> ! {
    std::process::exit(i32::from(reason.exit_code()))
}
