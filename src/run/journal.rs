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
    folder: Folder,
    log: Mutex<(PathBuf, Lines)>,
    /// Made by the first row: a run that measures nothing leaves no empty file.
    metrics: Mutex<Option<(PathBuf, Lines)>>,
}

impl Journal {
    pub fn open(folder: &Folder) -> Result<Self> {
        Ok(Self { folder: folder.clone(), log: Mutex::new(folder.lines("log.jsonl")?), metrics: Mutex::default() })
    }

    /// Adds an event: when, what kind, what it says.
    pub fn event(&self, kind: &str, text: &str) -> Result<()> {
        let stamp = jiff::Timestamp::now().to_string();
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        append(&mut log, &json!({ "ts": stamp, "kind": kind, "text": text }))
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
        let mut metrics = self.metrics.lock().unwrap_or_else(PoisonError::into_inner);
        let file = match metrics.take() {
            Some(file) => file,
            None => self.folder.lines("metrics.jsonl")?,
        };
        append(metrics.insert(file), &Value::Object(ordered))
    }
}

fn append(file: &mut (PathBuf, Lines), line: &Value) -> Result<()> {
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
