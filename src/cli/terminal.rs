//! The session's outside on a command line: results to standard output, the rest to standard error.

use std::io::{self, IsTerminal};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use terminal_size::{Width, terminal_size_of};

use super::output;
use crate::script::{PAGE, Progress, Terminal};

/// How often progress is told where no line can be redrawn.
const PLAIN_EVERY: Duration = Duration::from_secs(10);

/// How often the progress line is redrawn, at most: oftener only flickers.
const REDRAWN_EVERY: Duration = Duration::from_millis(50);

/// Columns of a page on a terminal, at least and at most: tables need the one, and nobody reads lines beyond the other.
const PAGES: (usize, usize) = (60, 160);

/// Columns for what progress is about, how far it is, and what it says of a step; the bar takes those beyond.
const TOLD: usize = 76;

/// Columns at the end of the progress line that stay free: the terminal writes `^C` there, and must not begin a new
/// line for it, which nobody would take away.
const FREE: usize = 3;

/// Standard output and standard error of this process.
pub(super) struct Console {
    quiet: bool,
    redraws: bool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// What the progress line or the plain lines speak of.
    what: String,
    told: Option<Instant>,
}

impl Console {
    pub fn new(quiet: bool) -> Self {
        // Whoever names no terminal, or a dumb one, gets plain lines.
        let is_able = std::env::var_os("TERM").is_some_and(|term| !term.is_empty() && term != "dumb");
        let redraws = is_able && io::stderr().is_terminal();
        Self { quiet, redraws, state: Mutex::default() }
    }

    /// Takes the progress line away.
    pub fn finish(&self) {
        output::end_line();
        self.state.lock().unwrap_or_else(PoisonError::into_inner).what.clear();
    }
}

impl Terminal for Console {
    fn print(&self, text: &str) -> io::Result<()> {
        output::result(text)
    }

    fn note(&self, text: &str) {
        if !self.quiet {
            output::error(text);
        }
    }

    fn progress(&self, progress: Progress<'_>) {
        if self.quiet {
            return;
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = state.what != progress.what;
        if is_new {
            state.what = progress.what.to_string();
        }
        if self.redraws {
            let is_last = progress.total == Some(progress.done);
            if is_new || is_last || state.told.is_none_or(|told| told.elapsed() >= REDRAWN_EVERY) {
                state.told = Some(Instant::now());
                output::show_line(&line(&progress, columns_of(&io::stderr()).unwrap_or(PAGE)));
            }
            return;
        }
        // Piped: a line now and then, and none for work that is over sooner.
        if is_new {
            state.told = Some(Instant::now());
        }
        if state.told.is_none_or(|told| told.elapsed() >= PLAIN_EVERY) {
            state.told = Some(Instant::now());
            output::error(format!("{} {}  {}", progress.what, count(&progress), progress.detail).trim_end());
        }
    }

    fn progress_end(&self) {
        self.finish();
    }

    fn width(&self) -> usize {
        page(columns_of(&io::stdout()), std::env::var("COLUMNS").ok().as_deref())
    }
}

/// Columns of a page: what the user says or the terminal has, within bounds; without a terminal always the same.
fn page(terminal: Option<usize>, said: Option<&str>) -> usize {
    let Some(columns) = terminal else { return PAGE };
    let said = said.and_then(|said| said.trim().parse().ok()).filter(|columns| *columns > 0);
    said.unwrap_or(columns).clamp(PAGES.0, PAGES.1)
}

/// Columns of the terminal that `stream` goes to; nothing where it goes elsewhere.
#[cfg(unix)]
fn columns_of(stream: &impl std::os::fd::AsFd) -> Option<usize> {
    terminal_size_of(stream).map(|(Width(columns), _)| usize::from(columns)).filter(|columns| *columns > 0)
}

/// Columns of the terminal that `stream` goes to; nothing where it goes elsewhere.
#[cfg(windows)]
fn columns_of(stream: &impl std::os::windows::io::AsHandle) -> Option<usize> {
    terminal_size_of(stream).map(|(Width(columns), _)| usize::from(columns)).filter(|columns| *columns > 0)
}

/// `12/60`, or `12` where the end is not known.
fn count(progress: &Progress<'_>) -> String {
    progress.total.map_or_else(|| progress.done.to_string(), |total| format!("{}/{total}", progress.done))
}

/// `training [===>      ] 12/60  loss 2.710`, in `columns` columns at most.
fn line(progress: &Progress<'_>, columns: usize) -> String {
    let columns = columns.saturating_sub(FREE);
    let ahead = format!("{} {}{}  ", progress.what, bar(progress, columns), count(progress));
    let detail = fit(progress.detail, columns.saturating_sub(ahead.chars().count()));
    let line = format!("{ahead}{detail}");
    line.trim_end().chars().take(columns).collect()
}

/// `[===>      ] `; nothing where the end is not known or the words leave no room.
fn bar(progress: &Progress<'_>, columns: usize) -> String {
    let width = columns.saturating_sub(TOLD).min(30);
    match progress.total {
        Some(total) if total > 0 && width >= 8 => {
            let done = width as u64 * progress.done.min(total) / total;
            let filled = "=".repeat(done as usize) + ">";
            format!("[{:width$}] ", filled.chars().take(width).collect::<String>())
        }
        _ => String::new(),
    }
}

/// As many of the parts of `detail`, which three spaces set apart, as there is room for.
fn fit(detail: &str, room: usize) -> String {
    let mut parts: Vec<&str> = detail.split("   ").collect();
    loop {
        let shown = parts.join("   ");
        if shown.chars().count() <= room {
            return shown;
        }
        if parts.len() <= 1 {
            return shown.chars().take(room).collect();
        }
        parts.pop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_as_wide_as_the_terminal_within_bounds() {
        assert_eq!(page(None, None), 100);
        assert_eq!(page(None, Some("70")), 100, "what goes to a file is the same everywhere");
        assert_eq!([40, 60, 80, 160, 400].map(|columns| page(Some(columns), None)), [60, 60, 80, 160, 160]);
        assert_eq!(page(Some(80), Some("120")), 120);
        assert_eq!([Some("0"), Some("wide"), Some("")].map(|said| page(Some(80), said)), [80; 3]);
    }

    #[test]
    fn the_progress_line_is_never_longer_than_the_terminal_less_what_ctrl_c_writes() {
        let detail = "loss 2.710   2 310 tokens/s   1:05:24 left   rate 1.667e-3";
        for total in [None, Some(0), Some(60), Some(100_000)] {
            let progress = Progress { what: "training", done: 12, total, detail };
            for columns in 0..200 {
                let shown = line(&progress, columns);
                assert!(shown.chars().count() <= columns.saturating_sub(FREE), "{columns}: {shown}");
            }
        }
        let progress = Progress { what: "training", done: 30, total: Some(60), detail };
        assert_eq!(line(&progress, 60), "training 30/60  loss 2.710   2 310 tokens/s");
        assert_eq!(line(&progress, 80), format!("training 30/60  {detail}"));
        assert_eq!(line(&progress, 120), format!("training [===============>              ] 30/60  {detail}"));
        let progress = Progress { what: "reading", done: 7, total: None, detail: "" };
        assert_eq!(line(&progress, 80), "reading 7");
        assert_eq!(fit(detail, 100), detail);
        assert_eq!(fit(detail, 50), "loss 2.710   2 310 tokens/s   1:05:24 left");
        assert_eq!(fit(detail, 29), "loss 2.710   2 310 tokens/s", "whole parts only");
        assert_eq!(fit(detail, 4), "loss");
    }
}
