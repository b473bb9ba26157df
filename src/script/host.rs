//! What a native may use of the session around it: paths, output, measurements, the wish to stop.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use rhai::{Map, NativeCallContext};
use serde_json::Value as Json;

use super::failure::{Failure, Kind};
use super::stop::{Stop, StopReason};
use super::terminal::{Progress, Terminal};
use super::unsaved::Models;
use crate::recipe::{self, Origin, Resolved};
use crate::{io, run};

/// Where models are to be computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// The best one there is.
    #[default]
    Auto,
    Cpu,
    /// An NVIDIA GPU, by the driver's number.
    Cuda(usize),
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Cpu => "cpu",
            Self::Cuda(index) => return write!(f, "cuda:{index}"),
        })
    }
}

/// A path or a measurement that the host refuses.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("an empty path names no file")]
    EmptyPath,
    #[error("`{path}` leads out of the run's folder")]
    WriteOutside { path: String },
    #[error("`{path}` is kept by the run itself")]
    WriteReserved { path: String },
    #[error("there is no run folder to write `{path}` to")]
    NoFolder { path: String },
    #[error("the recipe may not read `{path}`")]
    ReadOutside { path: String },
    #[error("the recipe may not read `{path}`: its link leads out of the recipe's folder")]
    LinkOutside { path: String },
    #[error("`{name}` of a metrics row is {float}, wanted a finite number")]
    NotFinite { name: String, float: f64 },
    #[error("`{name}` of a metrics row must be a number, a bool or a string, got {kind}")]
    Metric { name: String, kind: String },
    #[error(transparent)]
    Run(#[from] run::Error),
}

impl Error {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::EmptyPath | Self::Metric { .. } => return None,
            Self::WriteOutside { .. } => {
                "a recipe writes into its run folder alone: give a relative path without `..`".to_string()
            }
            Self::WriteReserved { .. } => "choose another name".to_string(),
            Self::NoFolder { .. } => "run a recipe file, or give the session a folder for outputs".to_string(),
            Self::NotFinite { .. } => "leave the value out of the row, or log it as text".to_string(),
            Self::ReadOutside { .. } | Self::LinkOutside { .. } => {
                "a recipe reads the files beside it and below, those it has written, and those \
                 that you name by `--set`: make it a parameter, `param(\"data\", \"data.jsonl\", #{ kind: \"path\" })`"
                    .to_string()
            }
            Self::Run(error) => error.hint().to_string(),
        })
    }

    /// The error as one of the native that `context` describes.
    pub fn at(self, context: &NativeCallContext<'_>) -> Failure {
        let failure = Failure::at(context, self.to_string());
        match self.hint() {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }
}

/// A shared handle to the session's outside; natives keep a clone.
#[derive(Clone)]
pub struct Host(Arc<Shared>);

struct Shared {
    terminal: Arc<dyn Terminal>,
    stop: Stop,
    device: Device,
    threads: Option<usize>,
    shell: PathBuf,
    seed: AtomicU64,
    run: RwLock<Run>,
    history: Mutex<Vec<Map>>,
    written: Mutex<BTreeSet<PathBuf>>,
    models: Models,
    /// The log could not be written, and that has been said.
    log_is_lost: AtomicBool,
}

/// What changes from one run to the next.
#[derive(Clone, Default)]
struct Run {
    /// Where the recipe's own paths start.
    base: PathBuf,
    /// The recipe as it was named on the command line.
    recipe: String,
    parameters: Arc<Resolved>,
    folder: Option<run::Folder>,
    journal: Option<Arc<run::Journal>>,
}

/// Files of the run folder that the run writes itself.
const RESERVED: [&str; 6] = ["recipe.rhai", "imports", "config.json", "run.json", "log.jsonl", "metrics.jsonl"];

/// The seed of everything random in a recipe that sets none.
const SEED: u64 = 1337;

impl Host {
    pub(crate) fn new(
        terminal: Arc<dyn Terminal>,
        stop: Stop,
        device: Device,
        threads: Option<usize>,
        shell: PathBuf,
    ) -> Self {
        let run = RwLock::new(Run { base: shell.clone(), ..Run::default() });
        let (history, written) = (Mutex::default(), Mutex::default());
        Self(Arc::new(Shared {
            terminal,
            stop,
            device,
            threads,
            shell,
            seed: AtomicU64::new(SEED),
            run,
            history,
            written,
            models: Models::default(),
            log_is_lost: AtomicBool::new(false),
        }))
    }

    fn run(&self) -> Run {
        self.0.run.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set_base(&self, base: PathBuf) {
        self.0.run.write().unwrap_or_else(PoisonError::into_inner).base = base;
    }

    pub(crate) fn set_recipe(&self, recipe: &str) {
        self.0.run.write().unwrap_or_else(PoisonError::into_inner).recipe = recipe.to_string();
    }

    /// The recipe that runs, as whoever started it named it.
    pub fn recipe(&self) -> String {
        self.run().recipe
    }

    pub(crate) fn set_parameters(&self, parameters: Resolved) {
        self.0.run.write().unwrap_or_else(PoisonError::into_inner).parameters = Arc::new(parameters);
    }

    pub(crate) fn set_folder(&self, folder: run::Folder, journal: run::Journal) {
        let mut run = self.0.run.write().unwrap_or_else(PoisonError::into_inner);
        run.folder = Some(folder);
        run.journal = Some(Arc::new(journal));
        self.0.history.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.0.written.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    pub(crate) fn parameters(&self) -> Arc<Resolved> {
        self.run().parameters
    }

    pub(crate) fn shell(&self) -> &Path {
        &self.0.shell
    }

    /// The recipe's folder, which relative names start from.
    pub fn base(&self) -> PathBuf {
        self.run().base
    }

    /// The file that a script means by `path`: relative to what this run has written, else to the recipe's folder.
    ///
    /// A path outside of both is refused, by its name and by where its links lead, unless it is or lies in the value
    /// that the user gave to a parameter of the kind `path` or `model`.
    pub fn read_path(&self, path: &str) -> Result<PathBuf, Error> {
        if path.trim().is_empty() {
            return Err(Error::EmptyPath);
        }
        let run = self.run();
        let wanted = Path::new(path);
        let named = if is_inside(wanted) {
            let plain = plain(wanted);
            let is_place = !plain.as_os_str().is_empty(); // `.` is the recipe's folder, whatever was written
            let written = self.0.written.lock().unwrap_or_else(PoisonError::into_inner);
            match &run.folder {
                Some(folder)
                    if is_place && written.iter().any(|own| plain.starts_with(own) || own.starts_with(&plain)) =>
                {
                    folder.path().join(plain)
                }
                _ => run.base.join(plain),
            }
        } else {
            let refused = || Error::ReadOutside { path: path.to_string() };
            let absolute = tidy(&run.base.join(wanted)).ok_or_else(refused)?;
            if !run.may_read(&absolute, tidy) {
                return Err(refused());
            }
            absolute
        };
        match io::canonical(&named) {
            Ok(real) if !run.may_read(&real, |place| io::canonical(place).ok()) => {
                Err(Error::LinkOutside { path: path.to_string() })
            }
            _ => Ok(named), // what is not there is for the reader to say
        }
    }

    /// Whether this run has written `path` or into it.
    pub fn has_written(&self, path: &str) -> bool {
        let plain = plain(Path::new(path));
        let written = self.0.written.lock().unwrap_or_else(PoisonError::into_inner);
        !plain.as_os_str().is_empty() && written.iter().any(|own| own.starts_with(&plain))
    }

    /// The file in the run folder that a script means by `path`; the folders on the way are made by the writer.
    pub fn write_path(&self, path: &str) -> Result<PathBuf, Error> {
        if path.trim().is_empty() {
            return Err(Error::EmptyPath);
        }
        let wanted = Path::new(path);
        if !is_inside(wanted) {
            return Err(Error::WriteOutside { path: path.to_string() });
        }
        let plain = plain(wanted);
        let first = plain.components().next().map(|part| part.as_os_str().to_string_lossy().into_owned());
        match first {
            None => return Err(Error::WriteOutside { path: path.to_string() }),
            Some(first) if RESERVED.contains(&first.as_str()) => {
                return Err(Error::WriteReserved { path: path.to_string() });
            }
            Some(_) => {}
        }
        let folder = self.run().folder.ok_or_else(|| Error::NoFolder { path: path.to_string() })?;
        let full = folder.path().join(&plain);
        self.0.written.lock().unwrap_or_else(PoisonError::into_inner).insert(plain);
        Ok(full)
    }

    /// The folder of this run, if it has one.
    pub fn run_dir(&self) -> Option<PathBuf> {
        self.run().folder.map(|folder| folder.path().to_path_buf())
    }

    /// Prints `text` as a result of the recipe, and writes it to the log.
    pub fn print(&self, text: &str) {
        self.log("print", text);
        match self.0.terminal.print(text) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => self.0.stop.set(StopReason::OutputClosed),
            Err(error) => {
                self.note(&format!("error: cannot write to standard output: {error}"));
                self.0.stop.set(StopReason::OutputFailed);
            }
        }
    }

    /// Says `text` beside the results: what was chosen, cut or left out.
    pub fn note(&self, text: &str) {
        self.log("note", text);
        self.0.terminal.note(text);
    }

    /// Writes an event to the log alone.
    pub fn log(&self, kind: &str, text: &str) {
        if let Some(journal) = self.run().journal
            && let Err(error) = journal.event(kind, text)
            && !self.0.log_is_lost.swap(true, Ordering::Relaxed)
        {
            self.0.terminal.note(&format!("warning: {error}"));
        }
    }

    /// Keeps an exact copy of an imported script in the run folder.
    pub(crate) fn keep_import(&self, name: &str, text: &str) {
        let Some(folder) = self.run().folder else { return };
        let name = if name.ends_with(".rhai") { name.to_string() } else { format!("{name}.rhai") };
        if let Err(error) = folder.write(Path::new("imports").join(name), text.as_bytes()) {
            self.note(&format!("warning: {error}"));
        }
    }

    /// Shows how far the work is; call it as often as you like.
    pub fn progress(&self, what: &str, done: u64, total: Option<u64>, detail: &str) {
        let total_shown = total.map_or_else(String::new, |total| format!(" of {total}"));
        self.doing(&format!("{what}, {done}{total_shown} done"));
        self.0.terminal.progress(Progress { what, done, total, detail });
    }

    /// Columns that a page of results has where it is shown.
    pub fn width(&self) -> usize {
        self.0.terminal.width()
    }

    /// The work that `progress` told of is over.
    pub fn progress_end(&self) {
        self.doing("");
        self.0.terminal.progress_end();
    }

    /// Adds a row to `metrics.jsonl`, in Hugging Face's names (`step` counts from 1), and to the history.
    pub fn log_metrics(&self, row: &Map) -> Result<(), Error> {
        let mut json = serde_json::Map::new();
        for (name, value) in row {
            json.insert(name.to_string(), metric(name, value)?);
        }
        if let Some(journal) = self.run().journal {
            journal.metrics(&json)?;
        }
        self.0.history.lock().unwrap_or_else(PoisonError::into_inner).push(row.clone());
        Ok(())
    }

    /// Every row given to `log_metrics` in this run.
    pub fn history(&self) -> Vec<Map> {
        self.0.history.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The flag that long natives ask for; once set, return [`Failure::cancelled`]. For `engine::Cancel::from_flag`.
    pub fn cancel(&self) -> Arc<AtomicBool> {
        self.0.stop.flag()
    }

    pub(crate) fn stop(&self) -> &Stop {
        &self.0.stop
    }

    /// Says what takes its time, for those who have asked to stop and wait.
    pub fn doing(&self, what: &str) {
        self.0.stop.set_doing(what);
    }

    pub(super) fn models(&self) -> &Models {
        &self.0.models
    }

    pub fn device(&self) -> Device {
        self.0.device
    }

    /// How many threads natives may use; nothing: as many as there are cores.
    pub fn threads(&self) -> Option<usize> {
        self.0.threads
    }

    /// The seed for everything random that is given none: 1337, or what `manual_seed` set.
    pub fn seed(&self) -> u64 {
        self.0.seed.load(Ordering::Relaxed)
    }

    pub fn set_seed(&self, seed: u64) {
        self.0.seed.store(seed, Ordering::Relaxed);
    }

    /// Where the value of parameter `name` came from; nothing if the recipe has no such parameter.
    pub fn param_origin(&self, name: &str) -> Option<Origin> {
        self.run().parameters.get(name).map(|setting| setting.origin.clone())
    }

    /// Writes to `config.json` what was taken for parameter `name`, whose value leaves the choice to the run.
    pub fn chose(&self, name: &str, value: &rhai::Dynamic) -> Result<(), Error> {
        let value = metric(name, value)?;
        let mut run = self.0.run.write().unwrap_or_else(PoisonError::into_inner);
        Arc::make_mut(&mut run.parameters).chose(name, value);
        match &run.folder {
            Some(folder) => Ok(folder.write("config.json", run.parameters.config(&run.recipe).as_bytes())?),
            None => Ok(()),
        }
    }

    /// The parameters of the kind `model` whose value is `id`.
    pub fn parameters_of_model(&self, id: &str) -> Vec<String> {
        let is_it = |setting: &&recipe::Setting| {
            let kind = setting.parameter.kind == recipe::Kind::Model;
            kind && matches!(&setting.value, recipe::Value::Text(text) if text == id)
        };
        self.run().parameters.iter().filter(is_it).map(|setting| setting.parameter.name.clone()).collect()
    }

    /// A failure without a usable device, at the native that `context` describes (exit code 6).
    pub fn device_failure(&self, context: &NativeCallContext<'_>, message: impl Into<String>) -> Failure {
        Failure::at(context, message).kind(Kind::Device)
    }
}

fn metric(name: &str, value: &rhai::Dynamic) -> Result<Json, Error> {
    if value.is_unit() {
        return Ok(Json::Null);
    }
    if let Ok(int) = value.as_int() {
        return Ok(int.into());
    }
    if let Ok(float) = value.as_float() {
        // JSON has no word for these, and `null` would hide them.
        return if float.is_finite() {
            Ok(float.into())
        } else {
            Err(Error::NotFinite { name: name.to_string(), float })
        };
    }
    if let Ok(bool) = value.as_bool() {
        return Ok(bool.into());
    }
    match value.as_immutable_string_ref() {
        Ok(text) => Ok(text.as_str().into()),
        Err(_) => {
            let kind = super::names::type_name(value.type_name());
            Err(Error::Metric { name: name.to_string(), kind: super::names::with_article(&kind) })
        }
    }
}

impl Run {
    /// Whether `path` lies in the recipe's folder, the run's, or a place that the user named; `resolved` makes the
    /// places comparable with `path`.
    fn may_read(&self, path: &Path, resolved: impl Fn(&Path) -> Option<PathBuf>) -> bool {
        let given = self.parameters.iter().filter(|setting| {
            let is_place = matches!(setting.parameter.kind, recipe::Kind::Path | recipe::Kind::Model);
            is_place && setting.origin != Origin::Default
        });
        let named = given.filter_map(|setting| match &setting.value {
            recipe::Value::Text(text) => Some(Path::new(text)).filter(|place| place.is_absolute()),
            _ => None,
        });
        let own = [Some(self.base.as_path()), self.folder.as_ref().map(run::Folder::path)];
        named.chain(own.into_iter().flatten()).filter_map(resolved).any(|place| path.starts_with(place))
    }
}

/// Relative, and never above where it starts.
fn is_inside(path: &Path) -> bool {
    path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
}

/// `path` without `.` parts.
fn plain(path: &Path) -> PathBuf {
    path.components().filter(|part| matches!(part, Component::Normal(_))).collect()
}

/// `path` with `.` and `..` worked out by name; nothing if it leads above the root.
fn tidy(path: &Path) -> Option<PathBuf> {
    let mut tidy = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => {
                if !tidy.pop() {
                    return None;
                }
            }
            other => tidy.push(other),
        }
    }
    Some(tidy)
}
