//! The wish to stop, shared by the signal handler, the interpreter and every native that takes long.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Who asked to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// Ctrl-C.
    Interrupt,
    /// SIGTERM.
    Terminate,
    /// Nobody reads standard output any more (`| head -1`).
    OutputClosed,
    /// Standard output cannot be written: its disk is full.
    OutputFailed,
}

impl StopReason {
    /// 128 plus the number of the signal that says the same, as shells count; a failed output is a failure.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::OutputFailed => 1,
            Self::Interrupt => 130,
            Self::OutputClosed => 141,
            Self::Terminate => 143,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::OutputFailed),
            130 => Some(Self::Interrupt),
            141 => Some(Self::OutputClosed),
            143 => Some(Self::Terminate),
            _ => None,
        }
    }
}

/// A shared flag; the first reason given stays.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    flag: Arc<AtomicBool>,
    reason: Arc<AtomicU8>,
    doing: Arc<Mutex<String>>,
}

impl Stop {
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks everything that runs in the session to end.
    pub fn set(&self, reason: StopReason) {
        // The first reason wins; the flag is set last, so that whoever sees it finds a reason.
        let _ = self.reason.compare_exchange(0, reason.exit_code(), Ordering::SeqCst, Ordering::SeqCst);
        self.flag.store(true, Ordering::SeqCst);
    }

    pub fn is_set(&self) -> bool {
        self.flag.load(Ordering::Relaxed)
    }

    /// Why to stop, once the flag is set; a flag set through [`Stop::flag`] counts as Ctrl-C.
    pub fn reason(&self) -> Option<StopReason> {
        self.is_set()
            .then(|| StopReason::from_code(self.reason.load(Ordering::SeqCst)).unwrap_or(StopReason::Interrupt))
    }

    /// What the session is at, in a few words; empty when nobody has said.
    pub fn doing(&self) -> String {
        self.doing.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_doing(&self, what: &str) {
        what.clone_into(&mut self.doing.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// The bare flag, for rooms below that know nothing of sessions (`engine::Cancel::from_flag`).
    pub fn flag(&self) -> Arc<AtomicBool> {
        self.flag.clone()
    }
}
