//! The session's outside on a command line: results to standard output, the rest to standard error.

use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::output;
use crate::script::{Progress, Terminal};

/// How often progress is told where no line can be redrawn.
const PLAIN_EVERY: Duration = Duration::from_secs(10);

/// Standard output and standard error of this process.
pub(super) struct Console {
    quiet: bool,
    redraws: bool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    bar: Option<ProgressBar>,
    /// What the bar or the plain lines speak of.
    what: String,
    told: Option<Instant>,
}

impl Console {
    pub fn new(quiet: bool) -> Self {
        let redraws = io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
        Self { quiet, redraws, state: Mutex::default() }
    }

    /// Takes the progress line away.
    pub fn finish(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bar) = state.bar.take() {
            bar.finish_and_clear();
        }
        state.what.clear();
    }

    /// Runs `write` while the progress line is out of the way.
    fn beside_bar<T>(&self, write: impl FnOnce() -> T) -> T {
        let bar = self.state.lock().unwrap_or_else(PoisonError::into_inner).bar.clone();
        match bar {
            Some(bar) => bar.suspend(write),
            None => write(),
        }
    }
}

impl Terminal for Console {
    fn print(&self, text: &str) -> io::Result<()> {
        self.beside_bar(|| {
            let mut out = io::stdout().lock();
            writeln!(out, "{text}")?;
            out.flush()
        })
    }

    fn note(&self, text: &str) {
        if !self.quiet {
            self.beside_bar(|| output::error(text));
        }
    }

    fn progress(&self, progress: Progress<'_>) {
        if self.quiet {
            return;
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.what != progress.what {
            if let Some(bar) = state.bar.take() {
                bar.finish_and_clear();
            }
            state.what = progress.what.to_string();
            state.told = Some(Instant::now());
        }
        if self.redraws {
            let bar = state.bar.get_or_insert_with(|| bar(&progress));
            bar.set_position(progress.done);
            bar.set_message(progress.detail.to_string());
            return;
        }
        // Piped: a line now and then, and none for work that is over sooner.
        if state.told.is_none_or(|told| told.elapsed() >= PLAIN_EVERY) {
            state.told = Some(Instant::now());
            let total = progress.total.map_or_else(String::new, |total| format!("/{total}"));
            output::error(format!("{} {}{total}  {}", progress.what, progress.done, progress.detail).trim_end());
        }
    }

    fn progress_end(&self) {
        self.finish();
    }
}

fn bar(progress: &Progress<'_>) -> ProgressBar {
    let (bar, template) = match progress.total {
        Some(total) => (ProgressBar::new(total), "{prefix} [{bar:30}] {pos}/{len}  {msg}"),
        None => (ProgressBar::new_spinner(), "{prefix} {pos}  {msg}"),
    };
    bar.set_draw_target(ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.set_style(style.progress_chars("=> "));
    bar.set_prefix(progress.what.to_string());
    bar
}
