//! How long each operation takes on the device, by a pair of events around it.

use std::collections::HashMap;
use std::sync::Arc;

use cudarc::driver::{CudaEvent, CudaStream, sys};

use super::device::driver;
use crate::kernels::Result;

/// Events not yet read, and the sums of those that were.
#[derive(Debug, Default)]
pub(super) struct Timings {
    open: Vec<(String, CudaEvent, CudaEvent)>,
    sums: HashMap<String, (f64, usize)>,
}

/// Events kept before they are read and given back.
const MOST_OPEN: usize = 4096;

impl Timings {
    pub fn time(&mut self, stream: &Arc<CudaStream>, name: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
        if self.open.len() >= MOST_OPEN {
            self.close()?;
        }
        let event = || stream.record_event(Some(sys::CUevent_flags::CU_EVENT_DEFAULT)).map_err(driver("measure"));
        let start = event()?;
        work()?;
        self.open.push((name.to_owned(), start, event()?));
        Ok(())
    }

    fn close(&mut self) -> Result<()> {
        for (name, start, end) in self.open.drain(..) {
            let elapsed = start.elapsed_ms(&end).map_err(driver("measure"))?;
            let (sum, calls) = self.sums.entry(name).or_default();
            *sum += f64::from(elapsed);
            *calls += 1;
        }
        Ok(())
    }

    /// Name, milliseconds and calls, longest first.
    pub fn table(&mut self) -> Result<Vec<(String, f64, usize)>> {
        self.close()?;
        let mut rows: Vec<_> = self.sums.iter().map(|(name, &(sum, calls))| (name.clone(), sum, calls)).collect();
        rows.sort_by(|a, b| b.1.total_cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        Ok(rows)
    }
}
