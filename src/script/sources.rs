//! The texts of all scripts of a session, so that a report can show the line it speaks of.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use rhai::{AST, Expr, Position, Stmt};

use super::failure::Place;
use super::text;

/// Shared by the session, the resolver and the renderer; cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Sources(Arc<RwLock<BTreeMap<String, Source>>>);

#[derive(Default)]
struct Source {
    text: Arc<str>,
    /// What the file defines: name and parameters. Closures are in it by Rhai's names: while a native of one module
    /// calls a closure of another file, Rhai reports the module as the closure's source; this tells where it stands.
    functions: Vec<(String, Vec<String>)>,
    /// The aliases of its imports, and what they import.
    imports: Vec<(String, String)>,
}

impl Sources {
    pub fn add(&self, name: &str, text: &str) {
        let source = Source { text: text.into(), ..Source::default() };
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(name.to_string(), source);
    }

    /// Remembers what `ast` defines.
    pub fn add_closures(&self, name: &str, ast: &AST) {
        let functions =
            ast.iter_functions().map(|f| (f.name.to_string(), f.params.iter().map(ToString::to_string).collect()));
        let imports = ast.statements().iter().filter_map(|stmt| match stmt {
            Stmt::Import(import, _) => match &import.0 {
                Expr::StringConstant(path, _) => Some((import.1.name.to_string(), path.to_string())),
                _ => None,
            },
            _ => None,
        });
        if let Some(source) = self.0.write().unwrap_or_else(PoisonError::into_inner).get_mut(name) {
            source.functions = functions.collect();
            source.imports = imports.collect();
        }
    }

    pub fn text(&self, name: &str) -> Option<Arc<str>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(name).map(|source| source.text.clone())
    }

    pub fn of_closure(&self, function: &str) -> Option<String> {
        let sources = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let defines = |source: &Source| source.functions.iter().any(|(name, _)| name == function);
        sources.iter().find(|(_, source)| defines(source)).map(|(name, _)| name.clone())
    }

    /// The script's own functions, as `(namespace, name, parameters)`: those of imports under their aliases.
    pub fn functions(&self) -> Vec<(String, String, Vec<String>)> {
        let sources = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let mut found = Vec::new();
        let named = |source: &Source, namespace: &str| {
            let own = source.functions.iter().filter(|(name, _)| !is_closure(name));
            own.map(|(name, parameters)| (namespace.to_string(), name.clone(), parameters.clone())).collect::<Vec<_>>()
        };
        for source in sources.values() {
            found.extend(named(source, ""));
            for (alias, path) in &source.imports {
                let name = path.strip_prefix("./").unwrap_or(path);
                let module = sources.get(name).or_else(|| sources.get(&format!("{name}.rhai")));
                found.extend(module.into_iter().flat_map(|module| named(module, alias)));
            }
        }
        found
    }

    /// The names by which `name` knows its imports; read off the text, which need not compile.
    pub fn aliases(&self, name: &str) -> Vec<String> {
        let Some(text) = self.text(name) else { return Vec::new() };
        let words: Vec<_> = text::lexemes(&text).into_iter().map(|(_, span)| &text[span]).collect();
        words.windows(2).filter(|pair| pair[0] == "as").map(|pair| pair[1].to_string()).collect()
    }

    /// The call `.function(…)`, if `name` has exactly one.
    pub fn only_call(&self, name: &str, function: &str) -> Option<Place> {
        let text = self.text(name)?;
        let tokens = text::lexemes(&text);
        let is_dot = |lexeme| matches!(lexeme, text::Lexeme::Symbol('.'));
        let mut calls = tokens.windows(2).filter(|pair| is_dot(pair[0].0) && text[pair[1].1.clone()] == *function);
        let span = calls.next()?[1].1.clone();
        if calls.next().is_some() {
            return None;
        }
        let (line, column) = text::line_column(&text, span.start);
        Some(Place { source: name.to_string(), line, column, text: text.clone(), span })
    }

    /// The word at `position`, or the option `key` of the call there.
    pub fn place(&self, name: &str, position: Position, key: Option<&str>) -> Option<Place> {
        let text = self.text(name)?;
        let line = position.line()?;
        let start = text::offset(&text, line, position.position().unwrap_or(1))?;
        let span =
            key.and_then(|key| text::option_key(&text, start, key)).unwrap_or_else(|| text::word_at(&text, start));
        let (line, column) = text::line_column(&text, span.start);
        Some(Place { source: name.to_string(), line, column, text, span })
    }
}

/// Is `function` Rhai's own name for a closure?
pub(crate) fn is_closure(function: &str) -> bool {
    function.starts_with("anon$")
}
