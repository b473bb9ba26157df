//! `run.json`: what was started and how it ended.

use serde_json::json;

use super::{Folder, Result};

/// How a run ended, or that it has not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Running,
    Ok,
    Failed,
    /// Ctrl-C, or nobody reads the output.
    Interrupted,
    /// SIGTERM.
    Terminated,
}

impl Status {
    fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Ok => "ok",
            Self::Failed => "failed",
            Self::Interrupted => "interrupted",
            Self::Terminated => "terminated",
        }
    }
}

/// What `run.json` says.
#[derive(Clone, Debug)]
pub struct Record {
    pub argv: Vec<String>,
    pub recipe: String,
    pub device: String,
    pub threads: Option<usize>,
    started: jiff::Timestamp,
}

impl Record {
    pub fn new(recipe: String, argv: Vec<String>, device: String, threads: Option<usize>) -> Self {
        Self { argv, recipe, device, threads, started: jiff::Timestamp::now() }
    }

    /// Writes the record as it stands; at the start with [`Status::Running`], at the end with the exit code.
    pub fn write(&self, folder: &Folder, status: Status, exit_code: Option<u8>, error: Option<&str>) -> Result<()> {
        let now = jiff::Timestamp::now();
        let finished = (status != Status::Running).then(|| now.to_string());
        let seconds = now.duration_since(self.started).as_millis_f64() / 1000.0;
        let record = json!({
            "recipe": self.recipe,
            "argv": self.argv,
            "version": env!("CARGO_PKG_VERSION"),
            "device": self.device,
            "threads": self.threads,
            "status": status.name(),
            "exit_code": exit_code,
            "error": error,
            "started": self.started.to_string(),
            "finished": finished,
            "seconds": finished.as_ref().map(|_| seconds),
        });
        folder.write("run.json", format!("{record:#}\n").as_bytes())
    }
}
