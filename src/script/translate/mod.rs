//! Rhai's errors in the words of unslothify.

mod functions;
mod habits;
mod syntax;

use rhai::{AST, Engine, EvalAltResult, ParseError, Position};

use super::engine::MAX_CALLS;
use super::failure::{Failure, Frame, Kind};
use super::names;
use super::sources::{Sources, is_closure};
use super::stop::{Stop, StopReason};

/// What is known when something goes wrong.
pub(super) struct Translator<'a> {
    pub engine: &'a Engine,
    pub sources: &'a Sources,
    pub stop: &'a Stop,
}

/// The place of an error: the script and the point in it.
struct At<'a> {
    source: &'a str,
    position: Position,
}

impl Translator<'_> {
    /// The failure of compiling the script `source`.
    pub fn parse(&self, error: &ParseError, source: &str) -> Failure {
        let at = At { source, position: error.1 };
        self.placed(self.syntax(&error.0, &at), &at, None)
    }

    /// The failure of running the script `source`.
    pub fn run(&self, error: EvalAltResult, source: &str) -> Failure {
        let mut frames = Vec::new();
        let mut source = source.to_string();
        let mut error = error;
        loop {
            error = match error {
                EvalAltResult::ErrorInFunctionCall(name, called, inner, position) => {
                    let closure = is_closure(&name);
                    let what =
                        if closure { "in a closure called here".to_string() } else { format!("in call to `{name}`") };
                    self.frame(&mut frames, what, &source, position);
                    // Rhai gives the native's module for a closure that stands elsewhere.
                    source = match self.sources.of_closure(&name) {
                        Some(own) if closure => own,
                        _ if called.is_empty() => source,
                        _ => called,
                    };
                    *inner
                }
                EvalAltResult::ErrorInModule(name, inner, position) => {
                    self.frame(&mut frames, "imported here".to_string(), &source, position);
                    source = name;
                    *inner
                }
                leaf => {
                    let mut failure = self.leaf(leaf, &source);
                    frames.reverse();
                    failure.frames.extend(frames);
                    return failure;
                }
            }
        }
    }

    fn frame(&self, frames: &mut Vec<Frame>, what: String, source: &str, position: Position) {
        let Some(place) = self.sources.place(source, position, None) else { return };
        // A native that calls a closure gives two frames for one place in the text.
        let same = |last: &Frame| last.place.source == place.source && last.place.span == place.span;
        if !frames.last().is_some_and(same) {
            frames.push(Frame { what, place });
        }
    }

    fn placed(&self, mut failure: Failure, at: &At<'_>, key: Option<&str>) -> Failure {
        if failure.place.is_none() {
            failure.place = self.sources.place(at.source, at.position, key);
        }
        failure
    }

    fn leaf(&self, error: EvalAltResult, source: &str) -> Failure {
        let at = At { source, position: error.position() };
        match error {
            EvalAltResult::ErrorRuntime(value, position) => match value.try_cast_result::<Failure>() {
                Ok(failure) => self.raised(failure, &at),
                Err(value) => {
                    let message = match value.to_string() {
                        _ if value.is_unit() => "the recipe failed without saying why".to_string(),
                        text if text.is_empty() => "the recipe failed without saying why".to_string(),
                        text => text,
                    };
                    self.placed(Failure::new(Kind::Recipe, message), &At { source, position }, None)
                }
            },
            EvalAltResult::ErrorTerminated(..) => {
                let reason = self.stop.reason().unwrap_or(StopReason::Interrupt);
                let what = match reason {
                    StopReason::Interrupt => "interrupted",
                    StopReason::Terminate => "terminated",
                    StopReason::OutputClosed => "nobody reads the output",
                    StopReason::OutputFailed => "standard output cannot be written",
                };
                self.placed(Failure::new(Kind::Stopped(reason), what), &at, None)
            }
            EvalAltResult::ErrorParsing(error, position) => {
                let at = At { source, position };
                self.placed(self.syntax(&error, &at), &at, None)
            }
            EvalAltResult::ErrorFunctionNotFound(signature, _) => {
                self.placed(self.function_not_found(&signature, &at), &at, None)
            }
            EvalAltResult::ErrorDotExpr(text, _) => self.placed(self.property(&text), &at, None),
            error => self.placed(self.simple(error, &at), &at, None),
        }
    }

    /// A failure that a native made.
    fn raised(&self, failure: Failure, at: &At<'_>) -> Failure {
        let key = failure.origin.key.clone();
        let own = failure.origin.position;
        // Caught and thrown again: the place of the first time says more than that of `throw`.
        let again = own.is_some_and(|own| !own.is_none() && own != at.position);
        let mut failure = failure;
        if failure.place.is_some() {
            // The mistake stands in a file that the script reads: its own place is the way there.
            let reader = self.sources.place(at.source, at.position, None);
            failure.frames.extend(reader.map(|place| Frame { what: "read here".to_string(), place }));
        }
        match (again, failure.origin.source.clone(), own) {
            (true, Some(source), Some(position)) => {
                let first = At { source: &source, position };
                self.placed(failure, &first, key.as_deref())
            }
            _ => self.placed(failure, at, key.as_deref()),
        }
    }

    /// The word at the place of an error.
    fn word(&self, at: &At<'_>) -> String {
        let place = self.sources.place(at.source, at.position, None);
        place.and_then(|place| place.text.get(place.span).map(str::to_string)).unwrap_or_default()
    }

    fn simple(&self, error: EvalAltResult, at: &At<'_>) -> Failure {
        let told = |message: String| Failure::new(Kind::Recipe, message);
        let kind = |name: &str| names::with_article(&names::type_name(name));
        match error {
            EvalAltResult::ErrorVariableNotFound(name, _) => self.unknown_variable(&name, at),
            EvalAltResult::ErrorModuleNotFound(name, _) => self.unknown_module(&name, at),
            EvalAltResult::ErrorPropertyNotFound(name, _) => told(format!("the map has no key `{name}`"))
                .hint(format!("`map.get(\"{name}\") ?? value` gives `value` when the key is not there")),
            EvalAltResult::ErrorIndexNotFound(index, _) => told(format!("there is no element `{index}`")),
            EvalAltResult::ErrorUnboundThis(_) => told("`this` is bound in methods alone".to_string())
                .hint("call the function on a value: `value.function()`"),
            EvalAltResult::ErrorMismatchDataType(wanted, given, _) if given.is_empty() => {
                told(format!("{} is wanted here", kind(&wanted)))
            }
            EvalAltResult::ErrorMismatchDataType(wanted, given, _) => {
                told(format!("{} is wanted here, got {}", kind(&wanted), kind(&given)))
            }
            EvalAltResult::ErrorMismatchOutputType(wanted, given, _) => {
                told(format!("the function must return {}, got {}", kind(&wanted), kind(&given)))
            }
            EvalAltResult::ErrorIndexingType(types, _) => {
                let (object, index) = types.split_once(" [").unwrap_or((&types, ""));
                let index = index.split(']').next().unwrap_or(index);
                told(format!("{} cannot be indexed by {}", kind(object), kind(index)))
            }
            EvalAltResult::ErrorArrayBounds(length, index, _) => told(out_of_bounds("array", length, index, "element")),
            EvalAltResult::ErrorStringBounds(length, index, _) => {
                told(out_of_bounds("string", length, index, "character"))
            }
            EvalAltResult::ErrorBitFieldBounds(length, index, _) => {
                told(out_of_bounds("bit field", length, index, "bit"))
            }
            EvalAltResult::ErrorFor(_) => told("`for` cannot go through this value".to_string())
                .hint("it goes through ranges (`0..n`), arrays, strings and the handles that say so"),
            EvalAltResult::ErrorDataRace(what, _) => {
                let mut failure = data_race(&what);
                // Rhai gives no position; the call can be told from its name if it stands there once.
                let function = what.split('\'').nth(1).unwrap_or("");
                failure.place = self.sources.only_call(at.source, function);
                failure
            }
            EvalAltResult::ErrorNonPureMethodCallOnConstant(name, _) => {
                told(format!("`{}` would change a constant", name.rsplit('$').next().unwrap_or(&name)))
                    .hint("declare it with `let` instead of `const`")
            }
            EvalAltResult::ErrorAssignmentToConstant(name, _) => {
                told(format!("cannot assign to the constant `{name}`")).hint("declare it with `let` instead of `const`")
            }
            EvalAltResult::ErrorArithmetic(text, _) => arithmetic(&text),
            EvalAltResult::ErrorStackOverflow(_) => {
                let word = self.word(at);
                let name = if word.is_empty() { "a function".to_string() } else { format!("`{word}`") };
                told(format!("calls go more than {MAX_CALLS} deep"))
                    .label("the first of them")
                    .hint(format!("does {name} call itself without end?"))
            }
            EvalAltResult::ErrorTooManyVariables(_) => told("the recipe has too many variables".to_string()),
            EvalAltResult::ErrorTooManyModules(_) => told("the recipe imports too many modules".to_string()),
            EvalAltResult::ErrorTooManyOperations(_) => told("the recipe computes for too long".to_string()),
            EvalAltResult::ErrorDataTooLarge(what, _) => {
                told(format!("{} is over the limit of the language", lowercase(&what)))
                    .hint("keep large data in datasets and tensors, not in arrays and strings of the recipe")
            }
            EvalAltResult::ErrorSystem(text, inner) if text.is_empty() => told(lowercase(&inner.to_string())),
            EvalAltResult::ErrorSystem(text, inner) => told(format!("{}: {inner}", lowercase(&text))),
            mut other => {
                other.clear_position();
                told(lowercase(&other.to_string()))
            }
        }
    }

    /// The failure of a native that panicked: a bug of ours, at the call that led there.
    pub fn panicked(&self, what: &str) -> Failure {
        Failure::new(Kind::Bug, format!("unslothify has a bug: {what}"))
            .hint("please report it with the recipe; what was saved before is intact")
    }

    /// What Rhai knows of `ast`, for later reports.
    pub fn remember(&self, source: &str, ast: &AST) {
        self.sources.add_closures(source, ast);
    }
}

fn out_of_bounds(what: &str, length: usize, index: i64, element: &str) -> String {
    match length {
        0 => format!("index {index} is out of bounds: the {what} is empty"),
        1 => format!("index {index} is out of bounds: the {what} has 1 {element}"),
        _ => format!("index {index} is out of bounds: the {what} has {length} {element}s"),
    }
}

fn data_race(what: &str) -> Failure {
    // Rhai's text: "argument #1 of function 'apart'", or the name of a variable.
    let message = match what.split('\'').nth(1) {
        Some(function) if what.contains("function") => {
            format!("a closure uses the value that `{function}` is at work on")
        }
        _ => "a value is used while a call on it is still at work".to_string(),
    };
    Failure::new(Kind::Recipe, message)
        .hint("a closure must not name the value whose method runs it: take it as an argument, `model.f(|m| m.g())`")
}

fn arithmetic(text: &str) -> Failure {
    let failure = Failure::new(Kind::Recipe, lowercase(text));
    let lower = text.to_lowercase();
    if lower.contains("division by zero") || lower.contains("modulo") {
        failure.hint("a quotient of ints is an int: `1 / 2` is 0; write `1.0 * a / b` for a float")
    } else if lower.contains("power") || lower.contains("exponent") {
        failure.hint("an int has no negative powers: write `10.0 ** -4`, or `1e-4`")
    } else {
        failure.hint("ints have 64 bits; floats go further")
    }
}

/// `text` with a small first letter, unless its first word is an acronym.
fn lowercase(text: &str) -> String {
    let mut letters = text.chars();
    match (letters.next(), letters.clone().next()) {
        (Some(first), second) if first.is_uppercase() && !second.is_some_and(char::is_uppercase) => {
            first.to_lowercase().chain(letters).collect::<String>().trim_end_matches('.').to_string()
        }
        _ => text.trim_end_matches('.').to_string(),
    }
}
