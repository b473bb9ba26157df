//! The one type that the command line, notebooks and tests see of the script room.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rhai::{AST, Dynamic, Engine, Scope};

use super::engine::{self, Register, STACK_BYTES};
use super::failure::{Failure, Kind};
use super::host::{Device, Host};
use super::panics;
use super::resolver::Resolver;
use super::sources::Sources;
use super::stop::{Stop, StopReason};
use super::terminal::{Collected, Terminal};
use super::translate::Translator;
use super::unsaved;
use crate::io;
use crate::recipe::{self, Description, Given, Resolved};
use crate::run::{Folder, Journal, Record, Status};

/// A recipe is text; nobody writes this much of it.
const MAX_BYTES: u64 = 4 << 20;

/// What a session is given from outside.
#[derive(Clone)]
pub struct SessionOptions {
    /// Values for the recipe's parameters.
    pub given: Given,
    /// Where run folders are made; nothing: a run keeps no files.
    pub out: Option<PathBuf>,
    pub device: Device,
    pub threads: Option<usize>,
    pub terminal: Arc<dyn Terminal>,
    /// Set it to end whatever runs.
    pub stop: Stop,
    /// The command line, for `run.json`.
    pub argv: Vec<String>,
    /// The folder that paths from outside are relative to.
    pub shell: PathBuf,
    /// Natives of the embedder; see [`SessionOptions::with_module`].
    pub modules: Vec<Arc<Register>>,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self {
            given: Given::default(),
            out: None,
            device: Device::Auto,
            threads: None,
            terminal: Arc::new(Collected::new()),
            stop: Stop::new(),
            argv: Vec::new(),
            shell: std::env::current_dir().unwrap_or_else(|_| PathBuf::from(".")),
            modules: Vec::new(),
        }
    }
}

impl SessionOptions {
    /// Adds natives of the embedder, after unslothify's own.
    ///
    /// ```
    /// use unslothify::script::{Session, SessionOptions};
    ///
    /// let options = SessionOptions::default().with_module(|engine, _host| {
    ///     engine.register_fn("double", |x: i64| 2 * x);
    /// });
    /// let mut session = Session::new(options);
    /// assert_eq!(session.evaluate("cell 1", "double(21)")?.as_int(), Ok(42));
    /// # Ok::<(), Box<unslothify::script::Failure>>(())
    /// ```
    #[must_use]
    pub fn with_module(mut self, register: impl Fn(&mut Engine, &Host) + Send + Sync + 'static) -> Self {
        self.modules.push(Arc::new(register));
        self
    }
}

/// Runs recipes and evaluates cells, each on a thread of its own with a deep stack.
pub struct Session {
    options: SessionOptions,
    engine: Engine,
    host: Host,
    sources: Sources,
    scope: Scope<'static>,
}

impl Session {
    pub fn new(options: SessionOptions) -> Self {
        let SessionOptions { terminal, stop, device, threads, shell, .. } = &options;
        let host = Host::new(terminal.clone(), stop.clone(), *device, *threads, shell.clone());
        let sources = Sources::default();
        let mut engine = engine::build(&host, &options.modules);
        engine.set_module_resolver(Resolver::new(shell.clone(), host.clone(), sources.clone()));
        Self { options, engine, host, sources, scope: Scope::new() }
    }

    /// The handle that natives get, for embedders who want to look at the run.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Runs the recipe in the file `path`.
    pub fn run(&mut self, path: &Path) -> Result<(), Box<Failure>> {
        let text = self.open(path)?;
        let name = path.file_stem().map_or_else(|| "recipe".to_string(), |stem| stem.to_string_lossy().into_owned());
        self.run_text(&path.display().to_string(), &name, &text)
    }

    /// Runs a recipe that has no file, such as standard input; its paths are relative to the shell's folder.
    pub fn run_source(&mut self, name: &str, text: &str) -> Result<(), Box<Failure>> {
        self.base(self.options.shell.clone());
        self.run_text(name, name, text)
    }

    /// Evaluates `text` with the variables of the cells before, and gives its value.
    pub fn evaluate(&mut self, name: &str, text: &str) -> Result<Dynamic, Box<Failure>> {
        self.sources.add(name, text);
        let mut scope = std::mem::take(&mut self.scope);
        let value = self.on_thread(|this| {
            let ast = this.compile(name, text, &scope)?;
            let result = this.engine.eval_ast_with_scope::<Dynamic>(&mut scope, &ast);
            this.host.models().release();
            result.map_err(|error| this.failed(*error, name))
        });
        self.scope = scope;
        value
    }

    /// What the recipe in the file `path` tells about itself; nothing is run.
    pub fn describe(&mut self, path: &Path) -> Result<Description, Box<Failure>> {
        let text = self.open(path)?;
        let name = path.display().to_string();
        self.sources.add(&name, &text);
        self.on_thread(|this| {
            let ast = this.compile(&name, &text, &Scope::new())?;
            Description::new(&name, &ast).map_err(|error| this.declared_wrongly(&error, &name))
        })
    }

    fn run_text(&mut self, source: &str, name: &str, text: &str) -> Result<(), Box<Failure>> {
        self.host.set_recipe(source);
        self.sources.add(source, text);
        self.on_thread(|this| {
            let ast = this.compile(source, text, &Scope::new())?;
            let description = Description::new(source, &ast).map_err(|error| this.declared_wrongly(&error, source))?;
            let resolved = Resolved::new(&description.parameters, &this.options.given, this.host.shell());
            let resolved = resolved.map_err(|error| given_wrongly(&error))?;
            this.host.set_parameters(resolved.clone());
            // From here on nothing is a mistake of the command line: the run gets its folder.
            let kept = this.keep(source, name, text, &resolved)?;
            // The recipe's own variables outlive its end, so that what they hold can be kept.
            let mut scope = Scope::new();
            let result = this.interpret(&mut scope, &ast, source);
            this.host.progress_end();
            if result.is_err() {
                unsaved::keep(&this.host);
            }
            drop(scope);
            this.host.models().release();
            this.close(kept, result)
        })
    }

    /// Runs the script; a panic in it comes back as a failure, so that the run's record is still closed.
    fn interpret(&self, scope: &mut Scope<'static>, ast: &AST, source: &str) -> Result<(), Box<Failure>> {
        match panics::caught(|| self.engine.run_ast_with_scope(scope, ast)) {
            Ok(result) => result.map_err(|error| self.failed(*error, source)),
            Err(what) => Err(Box::new(self.translator().panicked(&what))),
        }
    }

    /// Runs `work` on a thread with a deep stack; a panic in it is told as a bug.
    fn on_thread<T: Send>(
        &self,
        work: impl FnOnce(&Self) -> Result<T, Box<Failure>> + Send,
    ) -> Result<T, Box<Failure>> {
        let bug = |what: &str| Err(Box::new(self.translator().panicked(what)));
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("recipe".to_string()).stack_size(STACK_BYTES);
            let started = thread.spawn_scoped(scope, || panics::caught(|| work(self)));
            match started {
                Ok(running) => match running.join() {
                    Ok(Ok(result)) => result,
                    Ok(Err(what)) => bug(&what),
                    Err(_) => bug("the recipe's thread ended without a word"),
                },
                Err(error) => {
                    Err(Box::new(Failure::new(Kind::Recipe, format!("cannot start a thread for the recipe: {error}"))))
                }
            }
        })
    }

    fn translator(&self) -> Translator<'_> {
        Translator { engine: &self.engine, sources: &self.sources, stop: &self.options.stop }
    }

    fn compile(&self, source: &str, text: &str, scope: &Scope<'_>) -> Result<AST, Box<Failure>> {
        let compiled = self.engine.compile_with_scope(scope, text);
        let mut ast = compiled.map_err(|error| Box::new(self.translator().parse(&error, source)))?;
        ast.set_source(source);
        self.translator().remember(source, &ast);
        Ok(ast)
    }

    fn failed(&self, error: rhai::EvalAltResult, source: &str) -> Box<Failure> {
        let mut failure = self.translator().run(error, source);
        // A native that was told to stop may have said so in its own words.
        if let (Some(reason), false) = (self.options.stop.reason(), matches!(failure.kind, Kind::Stopped(_))) {
            failure.kind = Kind::Stopped(reason);
        }
        Box::new(failure)
    }

    fn declared_wrongly(&self, error: &recipe::Error, source: &str) -> Box<Failure> {
        let mut failure = Failure::new(Kind::Recipe, error.to_string());
        failure.hints.extend(error.hint());
        failure.place = error.position().and_then(|position| self.sources.place(source, position, error.key()));
        Box::new(failure)
    }

    /// Reads the recipe, and takes its folder as the base of its paths and imports.
    fn open(&mut self, path: &Path) -> Result<String, Box<Failure>> {
        let told = |what: String| Failure::new(Kind::Usage, what);
        let text = io::read_text(path, MAX_BYTES).map_err(|error| match error {
            io::Error::Missing { .. } => missing(path),
            io::Error::Folder { .. } => {
                told(format!("`{}` is a folder, not a recipe", path.display())).hint("name a `.rhai` file")
            }
            error => told(format!("cannot read the recipe: {error}")),
        })?;
        let absolute = std::path::absolute(path).unwrap_or_else(|_| self.options.shell.join(path));
        let folder = absolute.parent().map_or_else(|| self.options.shell.clone(), Path::to_path_buf);
        self.base(folder);
        Ok(text)
    }

    fn base(&mut self, folder: PathBuf) {
        self.host.set_base(folder.clone());
        self.engine.set_module_resolver(Resolver::new(folder, self.host.clone(), self.sources.clone()));
    }

    /// Makes the run's folder with everything that is known before the first line runs.
    fn keep(&self, source: &str, name: &str, text: &str, resolved: &Resolved) -> Result<Option<Kept>, Box<Failure>> {
        let Some(out) = &self.options.out else { return Ok(None) };
        let SessionOptions { argv, device, threads, .. } = &self.options;
        let record = Record::new(source.to_string(), argv.clone(), device.to_string(), *threads);
        let make = || {
            let folder = Folder::create(out, name)?;
            folder.write("recipe.rhai", text.as_bytes())?;
            folder.write("config.json", resolved.config(source).as_bytes())?;
            record.write(&folder, Status::Running, None, None)?;
            let journal = Journal::open(&folder)?;
            self.host.set_folder(folder.clone(), journal);
            Ok(folder)
        };
        let told = |error: crate::run::Error| Failure::new(Kind::Recipe, error.to_string()).hint(error.hint());
        let folder = make().map_err(|error| Box::new(told(error)))?;
        Ok(Some(Kept { folder, record }))
    }

    /// Writes how the run ended.
    fn close(&self, kept: Option<Kept>, result: Result<(), Box<Failure>>) -> Result<(), Box<Failure>> {
        let Some(Kept { folder, record }) = kept else { return result };
        let (status, code) = match result.as_ref().map_err(|failure| failure.as_ref()) {
            Ok(()) => (Status::Ok, 0),
            Err(failure) => match failure.kind {
                Kind::Stopped(StopReason::Terminate) => (Status::Terminated, failure.exit_code()),
                Kind::Stopped(StopReason::Interrupt | StopReason::OutputClosed) => {
                    (Status::Interrupted, failure.exit_code())
                }
                _ => (Status::Failed, failure.exit_code()),
            },
        };
        let report = result.as_ref().err().map(|failure| failure.render(false));
        if let Some(report) = &report {
            self.host.log("error", report);
        }
        if let Err(error) = record.write(&folder, status, Some(code), report.as_deref()) {
            self.host.note(&format!("warning: {error}"));
        }
        result
    }
}

/// A run's folder and the record that is written there at its end.
struct Kept {
    folder: Folder,
    record: Record,
}

fn given_wrongly(error: &recipe::Error) -> Box<Failure> {
    let mut failure = Failure::new(Kind::Usage, error.to_string());
    failure.hints.extend(error.hint());
    Box::new(failure)
}

/// There is no such recipe; perhaps there is one like it.
fn missing(path: &Path) -> Failure {
    let failure = Failure::new(Kind::Usage, format!("there is no recipe `{}`", path.display()));
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let Some(wanted) = path.file_name().map(|name| name.to_string_lossy().into_owned()) else { return failure };
    let names = io::list(folder).unwrap_or_default();
    let recipes = names.iter().map(String::as_str).filter(|name| name.ends_with(".rhai"));
    match super::names::nearest(&wanted, recipes) {
        Some(near) => {
            let near = if path.parent() == Some(Path::new("")) { PathBuf::from(near) } else { folder.join(near) };
            failure.hint(format!("did you mean `{}`?", near.display()))
        }
        None => failure,
    }
}
