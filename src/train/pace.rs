//! How fast a run goes, and how long it will still take.

use std::time::{Duration, Instant};

/// The clock of a training loop.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    total: u64,
    done: u64,
    started: Instant,
    last: Instant,
}

/// What one step took.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Beat {
    pub done: u64,
    pub total: u64,
    /// Of this step, from the end of the one before.
    pub tokens_per_second: f64,
    /// At the mean pace so far.
    pub left: Duration,
}

impl Pace {
    /// Starts the clock for `total` steps.
    pub fn start(total: u64) -> Self {
        let now = Instant::now();
        Self { total, done: 0, started: now, last: now }
    }

    /// Counts one step of so many tokens.
    pub fn step(&mut self, tokens: u64) -> Beat {
        self.step_at(tokens, Instant::now())
    }

    fn step_at(&mut self, tokens: u64, now: Instant) -> Beat {
        let took = now.duration_since(self.last).as_secs_f64().max(1e-9);
        self.last = now;
        self.done += 1;
        let mean = now.duration_since(self.started).as_secs_f64() / self.done as f64;
        let left = self.total.saturating_sub(self.done) as f64 * mean;
        let left = Duration::try_from_secs_f64(left).unwrap_or(Duration::MAX);
        Beat { done: self.done, total: self.total, tokens_per_second: tokens as f64 / took, left }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_timed_from_the_one_before_and_the_rest_by_the_mean() {
        let mut pace = Pace::start(4);
        let at = |seconds| pace.started + Duration::from_secs(seconds);
        let (first, second) = (at(1), at(4));
        assert!((pace.step_at(100, first).tokens_per_second - 100.0).abs() < 1e-9);
        let beat = pace.step_at(60, second);
        assert!((beat.tokens_per_second - 20.0).abs() < 1e-9);
        assert_eq!((beat.done, beat.total, beat.left), (2, 4, Duration::from_secs(4)));
    }
}
