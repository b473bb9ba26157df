//! What a user sees when something goes wrong: a message, a place, the way there, and what to do.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use rhai::{Dynamic, EvalAltResult, NativeCallContext, Position};

use super::stop::StopReason;

/// Why a session ended without doing its work; decides the exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The recipe failed: a mistake in it, a file it cannot read, a number that is not finite.
    Recipe,
    /// What was asked for makes no sense: an unknown parameter, a recipe that is not there.
    Usage,
    /// No usable device, or not enough memory on it.
    Device,
    /// Somebody asked to stop.
    Stopped(StopReason),
    /// A mistake in unslothify itself.
    Bug,
}

/// One error as it is told to the user.
///
/// Natives make it with [`Failure::at`] and return it as the script's error; the session adds the place and the
/// frames; `Display` gives the message alone and [`Failure::render`] the whole report.
#[derive(Clone, Debug)]
pub struct Failure {
    pub kind: Kind,
    /// Lowercase, no full stop, names in backticks.
    pub message: String,
    /// Said under the caret; may be empty.
    pub label: String,
    pub hints: Vec<String>,
    /// Where it happened, in the user's text.
    pub place: Option<Place>,
    /// The calls that led there, innermost first.
    pub frames: Vec<Frame>,
    pub(crate) origin: Origin,
}

/// A stretch of one line of a script.
#[derive(Clone, Debug)]
pub struct Place {
    /// The name of the script, as the user knows it: a path, `std/report`, `stdin`.
    pub source: String,
    /// 1-based.
    pub line: usize,
    /// 1-based, in characters.
    pub column: usize,
    pub(crate) text: Arc<str>,
    pub(crate) span: Range<usize>,
}

impl Place {
    /// Column `column` of a file's line, of which only the `text` is known; nothing where there is no text to show.
    pub(crate) fn of_line(source: &str, line: usize, column: usize, text: &str) -> Option<Self> {
        if text.is_empty() {
            return None;
        }
        let at = |column: usize| text.char_indices().nth(column).map_or(text.len(), |(offset, _)| offset);
        let span = at(column.saturating_sub(1))..at(column);
        Some(Self { source: source.to_string(), line, column, text: text.into(), span })
    }
}

/// One call on the way to the failure.
#[derive(Clone, Debug)]
pub struct Frame {
    /// As it is said under the call: "in call to `schedule`".
    pub what: String,
    pub place: Place,
}

/// Where a native was called from, before the session has turned it into a [`Place`].
#[derive(Clone, Debug, Default)]
pub(crate) struct Origin {
    pub source: Option<String>,
    pub position: Option<Position>,
    /// An option of the call; the caret goes to it instead of to the function.
    pub key: Option<String>,
}

impl Failure {
    /// A failure without a place: of the command line, of a file, of the session.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            label: String::new(),
            hints: Vec::new(),
            place: None,
            frames: Vec::new(),
            origin: Origin::default(),
        }
    }

    /// A failure of the native function that `context` describes, with the place it was called from.
    pub fn at(context: &NativeCallContext<'_>, message: impl Into<String>) -> Self {
        let mut failure = Self::new(Kind::Recipe, message);
        failure.origin.source = context.call_source().map(str::to_string);
        failure.origin.position = Some(context.call_position());
        failure
    }

    /// Adds a line that says what to do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    /// Points at option `key` of the call instead of at the function's name.
    #[must_use]
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.origin.key = Some(key.into());
        self
    }

    /// Says `label` under the caret.
    #[must_use]
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = label.into();
        self
    }

    /// Another kind than [`Kind::Recipe`], and so another exit code.
    #[must_use]
    pub fn kind(mut self, kind: Kind) -> Self {
        self.kind = kind;
        self
    }

    /// The error a native returns when it has seen the cancel flag. A script cannot catch it.
    pub fn cancelled(context: &NativeCallContext<'_>) -> Box<EvalAltResult> {
        EvalAltResult::ErrorTerminated(Dynamic::UNIT, context.call_position()).into()
    }

    /// The exit code of a process that ends with this failure.
    pub fn exit_code(&self) -> u8 {
        match self.kind {
            Kind::Recipe | Kind::Bug => 1,
            Kind::Usage => 2,
            Kind::Device => 6,
            Kind::Stopped(reason) => reason.exit_code(),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

impl From<Failure> for Box<EvalAltResult> {
    fn from(failure: Failure) -> Self {
        let position = failure.origin.position.unwrap_or(Position::NONE);
        EvalAltResult::ErrorRuntime(Dynamic::from(failure), position).into()
    }
}
