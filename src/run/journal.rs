//! What happened during a run, one JSON object a line. Nothing is buffered: a killed run keeps its lines.

use std::io::Write;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use serde_json::{Map, Value, json};

use super::disk::Lines;
use super::{Error, Folder, Result};

/// The names of a metrics row in the order they are written; others follow as given.
const ROW: [&str; 8] =
    ["step", "epoch", "loss", "grad_norm", "learning_rate", "tokens", "tokens_per_second", "memory_gib"];

/// Writes `log.jsonl` and `metrics.jsonl`.
#[derive(Debug)]
pub struct Journal {
    log: Mutex<(PathBuf, Lines)>,
    metrics: Mutex<(PathBuf, Lines)>,
}

impl Journal {
    pub fn open(folder: &Folder) -> Result<Self> {
        Ok(Self { log: Mutex::new(folder.lines("log.jsonl")?), metrics: Mutex::new(folder.lines("metrics.jsonl")?) })
    }

    /// Adds an event: when, what kind, what it says.
    pub fn event(&self, kind: &str, text: &str) -> Result<()> {
        let stamp = jiff::Timestamp::now().to_string();
        append(&self.log, &json!({ "ts": stamp, "kind": kind, "text": text }))
    }

    /// Adds a row of measurements.
    pub fn metrics(&self, row: &Map<String, Value>) -> Result<()> {
        let mut ordered = Map::new();
        for name in ROW {
            if let Some(value) = row.get(name) {
                ordered.insert(name.to_string(), value.clone());
            }
        }
        for (name, value) in row {
            ordered.entry(name.clone()).or_insert_with(|| value.clone());
        }
        append(&self.metrics, &Value::Object(ordered))
    }
}

fn append(file: &Mutex<(PathBuf, Lines)>, line: &Value) -> Result<()> {
    let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
    let mut text = line.to_string();
    text.push('\n');
    let before = file.1.metadata().map(|metadata| metadata.len());
    file.1.write_all(text.as_bytes()).map_err(|source| {
        // A full disk takes half a line: whoever reads the file finds whole ones.
        if let Ok(before) = before {
            let _ = file.1.set_len(before);
        }
        Error::Write { path: file.0.clone(), source }
    })
}
