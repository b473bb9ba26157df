//! Work split over the threads of a pool of its own.
//!
//! No operation's result may depend on the number of threads: pieces are either independent rows, or of a fixed size.

use std::cell::Cell;

use rayon::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};

use super::Result;
use super::matrix::resize;

/// Below this many values an elementwise pass is faster on the calling thread than handed over.
const SMALL: usize = 16 * 1024;

/// The threads of one `Cpu`.
#[derive(Debug)]
pub(super) struct Threads {
    pool: Option<ThreadPool>,
    count: usize,
}

impl Threads {
    /// `None` asks for all cores. Where no thread can be started, the calling thread does the work.
    pub(super) fn new(count: Option<usize>) -> Self {
        let all = || std::thread::available_parallelism().map_or(1, usize::from);
        let count = count.unwrap_or_else(all).max(1);
        if count == 1 {
            return Self { pool: None, count };
        }
        let pool = ThreadPoolBuilder::new().num_threads(count).thread_name(|i| format!("kernels-{i}")).build().ok();
        let count = if pool.is_some() { count } else { 1 };
        Self { pool, count }
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Runs `work` on a thread of the pool, so that the operations inside hand work over without waking it first.
    pub(super) fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        match &self.pool {
            Some(pool) => pool.install(work),
            None => work(),
        }
    }

    /// Calls `work` with every item, on all threads.
    pub(super) fn each<I: Send>(&self, items: Vec<I>, work: impl Fn(I) + Sync + Send) {
        match &self.pool {
            Some(pool) if items.len() > 1 => pool.install(|| items.into_par_iter().with_max_len(1).for_each(work)),
            _ => items.into_iter().for_each(work),
        }
    }

    /// Calls `work` with the number and the values of every piece of `len` values.
    pub(super) fn pieces<T: Send>(&self, values: &mut [T], len: usize, work: impl Fn(usize, &mut [T]) + Sync + Send) {
        if values.is_empty() {
            return;
        }
        match &self.pool {
            Some(pool) if values.len() > len => {
                pool.install(|| values.par_chunks_mut(len).enumerate().for_each(|(i, piece)| work(i, piece)));
            }
            _ => values.chunks_mut(len).enumerate().for_each(|(i, piece)| work(i, piece)),
        }
    }

    /// How many rows of `width` values one piece of an elementwise pass should have.
    pub(super) fn rows_per_piece(&self, rows: usize, width: usize) -> usize {
        let pieces = (rows * width / SMALL).clamp(1, self.count * 4);
        rows.div_ceil(pieces).max(1)
    }
}

thread_local! {
    static SCRATCH: Cell<Vec<Vec<f32>>> = const { Cell::new(Vec::new()) };
}

/// Lends `work` a buffer of `len` values of any content, kept by the thread for the next call. For what grows with the
/// batch, on the thread that called the operation: too little memory is its error.
pub(super) fn try_scratch<R>(op: &'static str, len: usize, work: impl FnOnce(&mut [f32]) -> R) -> Result<R> {
    let mut buffer = take_scratch();
    if buffer.len() < len {
        resize(op, &mut buffer, len)?;
    }
    let result = work(&mut buffer[..len]);
    keep_scratch(buffer);
    Ok(result)
}

/// The same for the panels and tiles of one task, which has no error to give: without memory for these the process ends.
pub(super) fn with_scratch<R>(len: usize, work: impl FnOnce(&mut [f32]) -> R) -> R {
    let mut buffer = take_scratch();
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
    let result = work(&mut buffer[..len]);
    keep_scratch(buffer);
    result
}

fn take_scratch() -> Vec<f32> {
    let mut buffers = SCRATCH.take();
    let buffer = buffers.pop().unwrap_or_default();
    SCRATCH.set(buffers);
    buffer
}

fn keep_scratch(buffer: Vec<f32>) {
    let mut buffers = SCRATCH.take();
    buffers.push(buffer);
    SCRATCH.set(buffers);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::Error;

    #[test]
    fn a_buffer_that_no_memory_holds_is_an_error() {
        let failed = try_scratch("attention", usize::MAX / 8, |_| ());
        assert!(matches!(failed, Err(Error::Memory { op: "attention", .. })), "{failed:?}");
        assert_eq!(try_scratch("attention", 3, |buffer| buffer.len()).ok(), Some(3));
    }
}
