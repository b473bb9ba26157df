//! What `import` means: `std/NAME` from the binary, everything else from the recipe's folder and below.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rhai::{Engine, EvalAltResult, Module, ModuleResolver, Position, Scope, Shared};

use super::failure::{Failure, Kind, Origin};
use super::host::Host;
use super::sources::Sources;
use super::{names, stdlib};
use crate::io;

/// A recipe is text; nobody writes this much of it.
const MAX_BYTES: u64 = 4 << 20;

/// Compiles each module once and hands out the same one.
pub(super) struct Resolver {
    /// The recipe's folder.
    root: PathBuf,
    host: Host,
    sources: Sources,
    loaded: Mutex<BTreeMap<String, Shared<Module>>>,
    /// The modules being loaded now, outermost first.
    loading: Mutex<Vec<String>>,
}

impl Resolver {
    pub fn new(root: PathBuf, host: Host, sources: Sources) -> Self {
        Self { root, host, sources, loaded: Mutex::default(), loading: Mutex::default() }
    }

    /// The module's name in reports, and its text.
    fn find(&self, path: &str) -> Result<(String, String), Box<Failure>> {
        if let Some(name) = path.strip_prefix("std/") {
            let text = stdlib::text(name).ok_or_else(|| Box::new(unknown_std(path, name)))?;
            return Ok((format!("std/{name}"), text));
        }
        let outside = || {
            Failure::new(Kind::Recipe, format!("cannot import `{path}`: it leads out of the recipe's folder"))
                .hint("a recipe imports `std/…` and files beside it or below")
        };
        let wanted = Path::new(path);
        if path.trim().is_empty() || !wanted.components().all(|p| matches!(p, Component::Normal(_) | Component::CurDir))
        {
            return Err(Box::new(outside()));
        }
        let mut file: PathBuf = wanted.components().filter(|part| matches!(part, Component::Normal(_))).collect();
        if file.extension().is_none_or(|extension| extension != "rhai") {
            file.as_mut_os_string().push(".rhai");
        }
        let full = self.root.join(&file);
        let unreadable = |error: io::Error| {
            let what = match error {
                io::Error::Missing { .. } => format!("there is no file `{}`", full.display()),
                error => error.to_string(),
            };
            let failure = Failure::new(Kind::Recipe, format!("cannot import `{path}`: {what}"));
            Box::new(match wanted.components().count() == 1 && stdlib::text(path).is_some() {
                true => failure.hint(format!("did you mean `import \"std/{path}\"`?")),
                false => failure,
            })
        };
        // The links are followed before the check, so that no link leads out.
        let real = io::canonical(&full).map_err(unreadable)?;
        if !real.starts_with(io::canonical(&self.root).map_err(unreadable)?) {
            return Err(Box::new(outside()));
        }
        let text = io::read_text(&real, MAX_BYTES).map_err(unreadable)?;
        Ok((file.to_string_lossy().replace('\\', "/"), text))
    }

    fn load(&self, engine: &Engine, path: &str, position: Position) -> Result<Shared<Module>, Box<EvalAltResult>> {
        let lock = |error: Failure| -> Box<EvalAltResult> {
            let failure = Failure { origin: Origin { position: Some(position), ..Origin::default() }, ..error };
            failure.into()
        };
        let (name, text) = self.find(path).map_err(|failure| lock(*failure))?;
        if let Some(module) = self.loaded.lock().unwrap_or_else(PoisonError::into_inner).get(&name) {
            return Ok(module.clone());
        }
        {
            let mut loading = self.loading.lock().unwrap_or_else(PoisonError::into_inner);
            if loading.contains(&name) {
                let circle: Vec<&str> = loading.iter().map(String::as_str).chain([name.as_str()]).collect();
                let message = format!("`{path}` imports itself: {}", circle.join(" -> "));
                return Err(lock(Failure::new(Kind::Recipe, message)));
            }
            loading.push(name.clone());
        }
        self.sources.add(&name, &text);
        self.host.keep_import(&name, &text);
        let module = self.compile(engine, &name, &text);
        self.loading.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let module = module.map_err(|error| EvalAltResult::ErrorInModule(name.clone(), error, position))?;
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner).insert(name, module.clone());
        Ok(module)
    }

    fn compile(&self, engine: &Engine, name: &str, text: &str) -> Result<Shared<Module>, Box<EvalAltResult>> {
        let mut ast = engine.compile(text).map_err(|error| EvalAltResult::ErrorParsing(*error.0, error.1))?;
        ast.set_source(name);
        self.sources.add_closures(name, &ast);
        Module::eval_ast_as_new(Scope::new(), &ast, engine).map(Into::into)
    }
}

impl ModuleResolver for Resolver {
    fn resolve(
        &self,
        engine: &Engine,
        _: Option<&str>,
        path: &str,
        position: Position,
    ) -> Result<Shared<Module>, Box<EvalAltResult>> {
        self.load(engine, path, position)
    }
}

fn unknown_std(path: &str, name: &str) -> Failure {
    let all = stdlib::names();
    let failure = Failure::new(Kind::Recipe, format!("there is no module `{path}`"));
    let list = all.iter().map(|name| format!("std/{name}")).collect::<Vec<_>>().join(", ");
    match names::nearest(name, all.iter().map(String::as_str)) {
        Some(near) => failure.hint(format!("did you mean `std/{near}`? there are: {list}")),
        None if all.is_empty() => failure,
        None => failure.hint(format!("there are: {list}")),
    }
}
