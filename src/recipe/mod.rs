//! What can be known about a recipe without running it: its parameters, what it imports, what it says about itself.

mod describe;
mod extract;
mod param;
mod settings;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

use rhai::Position;

pub use describe::Description;
pub use param::{Kind, Parameter, Value};
pub use settings::{Given, Origin, Resolved, Setting};

/// A recipe declares its parameters wrongly, or is given values that it does not take.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    #[error("`param` must stand at the top level of the recipe, not inside a block, a function or a closure")]
    Nested { position: Position },
    #[error("the {what} of a parameter must be a literal")]
    NotLiteral { what: &'static str, position: Position },
    #[error("`param` takes a name, a default and a map of options; got {given} arguments")]
    Arguments { given: usize, position: Position },
    #[error("`{name}` is not a name for a parameter")]
    Name { name: String, position: Position },
    #[error("parameter `{name}` is declared twice")]
    Twice { name: String, position: Position },
    #[error("unknown option `{key}` for `param`")]
    UnknownOption { key: String, near: Option<&'static str>, position: Position },
    #[error("option `{key}` of parameter `{name}` must be {wanted}, got {given}")]
    Option { name: String, key: &'static str, wanted: String, given: String, position: Position },
    #[error("the default of parameter `{name}` {what}")]
    Default { name: String, what: String, position: Position },
    #[error("the recipe has no parameter `{name}`")]
    Unknown { name: String, near: Option<String>, known: Vec<String> },
    #[error("parameter `{name}` {what}")]
    Value { name: String, what: String, origin: Origin, text: String },
    #[error("the recipe needs a value for parameter `{name}`")]
    Missing { name: String, kind: Kind, help: String },
    #[error("`--set {text}` lacks its value")]
    Setting { text: String },
    #[error("cannot read the parameters of `{}`: {what}", path.display())]
    File { path: PathBuf, what: String },
}

impl Error {
    /// Where in the recipe the mistake stands; nothing for the mistakes of the command line.
    pub fn position(&self) -> Option<Position> {
        match self {
            Self::Nested { position }
            | Self::NotLiteral { position, .. }
            | Self::Arguments { position, .. }
            | Self::Name { position, .. }
            | Self::Twice { position, .. }
            | Self::UnknownOption { position, .. }
            | Self::Option { position, .. }
            | Self::Default { position, .. } => Some(*position),
            _ => None,
        }
    }

    /// The option of `param` that is wrong.
    pub fn key(&self) -> Option<&str> {
        match self {
            Self::UnknownOption { key, .. } => Some(key),
            Self::Option { key, .. } => Some(key),
            _ => None,
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Nested { .. } | Self::NotLiteral { .. } => {
                Some("`--help` and `--set` read parameters without running the recipe".to_string())
            }
            Self::Arguments { .. } => {
                Some("write `param(\"learning_rate\", 2e-4, #{ min: 0.0, help: \"peak rate\" })`".to_string())
            }
            Self::Name { .. } => Some("use letters, digits and `_`, a letter first".to_string()),
            Self::Twice { .. } | Self::Option { .. } => None,
            Self::UnknownOption { near, .. } => {
                let accepted = format!("accepted: {}", extract::OPTIONS.join(", "));
                Some(match near {
                    Some(near) => format!("did you mean `{near}`? {accepted}"),
                    None => accepted,
                })
            }
            Self::Default { .. } => Some("a default must be one that `--set` could give".to_string()),
            Self::Unknown { near, known, .. } => Some(match (near, known.as_slice()) {
                (_, []) => "it has no parameters".to_string(),
                (Some(near), _) => format!("did you mean `{near}`? it has: {}", known.join(", ")),
                (None, _) => format!("it has: {}", known.join(", ")),
            }),
            Self::Value { name, origin, text, .. } => Some(format!("it was given by {}", origin.told(name, text))),
            Self::Missing { name, help, .. } if help.is_empty() => Some(format!("give it by `--set {name}=…`")),
            Self::Missing { name, help, .. } => Some(format!("give it by `--set {name}=…` ({help})")),
            Self::Setting { .. } => Some("write `--set name=value`".to_string()),
            Self::File { .. } => Some("write one JSON object: {\"learning_rate\": 1e-4}".to_string()),
        }
    }
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The candidate most like `name`, if one is like it.
fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let scored = candidates.into_iter().map(|other| (strsim::normalized_damerau_levenshtein(name, other), other));
    let best = scored.max_by(|a, b| a.0.total_cmp(&b.0))?;
    (best.0 >= 0.5).then_some(best.1)
}
