//! One parameter: its type, its range, and how a text becomes its value.

use std::fmt;

use rhai::{Dynamic, Position};

/// What a parameter's values are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Int,
    Float,
    Bool,
    String,
    /// A file or folder. A default is relative to the recipe, a value from outside to the shell's folder.
    Path,
    /// A model: a hub id, a folder, a `.gguf` file, `auto`.
    Model,
}

impl Kind {
    pub const NAMES: [&'static str; 6] = ["int", "float", "bool", "string", "path", "model"];

    pub(super) fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "int" => Self::Int,
            "float" => Self::Float,
            "bool" => Self::Bool,
            "string" => Self::String,
            "path" => Self::Path,
            "model" => Self::Model,
            _ => return None,
        })
    }

    pub(super) fn is_number(self) -> bool {
        matches!(self, Self::Int | Self::Float)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Int => "int",
            Self::Float => "float",
            Self::Bool => "bool",
            Self::String => "string",
            Self::Path => "path",
            Self::Model => "model",
        })
    }
}

/// A parameter's value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Int(i64),
    Float(f64),
    Bool(bool),
    Text(String),
}

impl Value {
    /// The literal `value`, if it is of a type that parameters have.
    pub(super) fn from_literal(value: &Dynamic) -> Option<Self> {
        if let Ok(int) = value.as_int() {
            return Some(Self::Int(int));
        }
        if let Ok(float) = value.as_float() {
            return Some(Self::Float(float));
        }
        if let Ok(bool) = value.as_bool() {
            return Some(Self::Bool(bool));
        }
        value.as_immutable_string_ref().ok().map(|text| Self::Text(text.to_string()))
    }

    pub(super) fn from_json(value: &serde_json::Value) -> Option<Self> {
        match value {
            serde_json::Value::Bool(bool) => Some(Self::Bool(*bool)),
            serde_json::Value::Number(number) => match number.as_i64() {
                Some(int) => Some(Self::Int(int)),
                None => number.as_f64().map(Self::Float),
            },
            serde_json::Value::String(text) => Some(Self::Text(text.clone())),
            _ => None,
        }
    }

    pub fn to_json(&self) -> serde_json::Value {
        match self {
            Self::Int(int) => (*int).into(),
            Self::Float(float) => (*float).into(),
            Self::Bool(bool) => (*bool).into(),
            Self::Text(text) => text.clone().into(),
        }
    }

    /// The value as the script sees it.
    pub fn to_script(&self) -> Dynamic {
        match self {
            Self::Int(int) => (*int).into(),
            Self::Float(float) => (*float).into(),
            Self::Bool(bool) => (*bool).into(),
            Self::Text(text) => text.clone().into(),
        }
    }

    fn number(&self) -> Option<f64> {
        match self {
            Self::Int(int) => Some(*int as f64),
            Self::Float(float) => Some(*float),
            _ => None,
        }
    }
}

/// As one would type it after `--set name=`.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Int(int) => write!(f, "{int}"),
            Self::Float(float) => write!(f, "{}", short(*float)),
            Self::Bool(bool) => write!(f, "{bool}"),
            Self::Text(text) => f.write_str(text),
        }
    }
}

/// `2e-4` rather than `0.0002`, `0.5` rather than `5e-1`.
pub(super) fn short(number: f64) -> String {
    let plain = format!("{number:?}");
    let exponential = format!("{number:e}");
    if exponential.len() + 1 < plain.len() { exponential } else { plain }
}

/// One `param(…)` of a recipe.
#[derive(Clone, Debug)]
pub struct Parameter {
    pub name: String,
    pub kind: Kind,
    /// Nothing: the value must be given.
    pub default: Option<Value>,
    pub help: String,
    pub unit: String,
    pub min: Option<f64>,
    pub max: Option<f64>,
    pub above: Option<f64>,
    pub below: Option<f64>,
    pub choices: Vec<Value>,
    pub position: Position,
}

impl Parameter {
    /// The value that `text` means, as typed after `--set name=`; or what is wrong with it.
    pub fn parse(&self, text: &str) -> Result<Value, String> {
        let trimmed = text.trim();
        let value = match self.kind {
            Kind::Int => trimmed.replace('_', "").parse().ok().map(Value::Int),
            Kind::Float => trimmed.replace('_', "").parse().ok().map(Value::Float),
            Kind::Bool => match trimmed {
                "true" => Some(Value::Bool(true)),
                "false" => Some(Value::Bool(false)),
                _ => None,
            },
            Kind::String | Kind::Path | Kind::Model => Some(Value::Text(text.to_string())),
        };
        self.check(value.ok_or_else(|| self.refusal(&format!("`{text}`")))?)
    }

    /// `value` in the parameter's own type, if it will do; or what is wrong with it.
    pub fn check(&self, value: Value) -> Result<Value, String> {
        let value = match (self.kind, value) {
            (Kind::Float, Value::Int(int)) => Value::Float(int as f64),
            (_, other) => other,
        };
        let fits = match (self.kind, &value) {
            (Kind::Int, Value::Int(_)) | (Kind::Bool, Value::Bool(_)) => true,
            (Kind::Float, Value::Float(float)) => float.is_finite(),
            (Kind::String, Value::Text(_)) => true,
            (Kind::Path | Kind::Model, Value::Text(text)) => !text.trim().is_empty(),
            _ => false,
        };
        let in_range = value.number().is_none_or(|number| {
            self.min.is_none_or(|min| number >= min)
                && self.max.is_none_or(|max| number <= max)
                && self.above.is_none_or(|above| number > above)
                && self.below.is_none_or(|below| number < below)
        });
        let chosen = self.choices.is_empty() || self.choices.contains(&value);
        if fits && in_range && chosen { Ok(value) } else { Err(self.refusal(&format!("`{value}`"))) }
    }

    fn refusal(&self, given: &str) -> String {
        if !self.choices.is_empty() {
            let near = super::nearest(given.trim_matches('`'), self.choices_text().iter().map(String::as_str))
                .map_or_else(String::new, |near| format!("; did you mean `{near}`?"));
            return format!("must be one of {}, got {given}{near}", self.choices_text().join(", "));
        }
        let kind = match self.kind {
            Kind::Int => "an int",
            Kind::Float => "a number",
            Kind::Bool => "true or false",
            Kind::String => "a string",
            Kind::Path => "a path",
            Kind::Model => "a model",
        };
        match self.range_text() {
            range if range.is_empty() => format!("must be {kind}, got {given}"),
            range => format!("must be {kind} in {range}, got {given}"),
        }
    }

    fn choices_text(&self) -> Vec<String> {
        self.choices.iter().map(ToString::to_string).collect()
    }

    /// `[0, 0.01]`, `(0, inf)`, `linear | cosine`; empty when everything will do.
    pub fn range_text(&self) -> String {
        if !self.choices.is_empty() {
            return self.choices_text().join(" | ");
        }
        let text = |number: f64| short(number).trim_end_matches(".0").to_string();
        let low = match (self.above, self.min) {
            (Some(above), min) if min.is_none_or(|min| above >= min) => Some(format!("({}", text(above))),
            (_, min) => min.map(|min| format!("[{}", text(min))),
        };
        let high = match (self.below, self.max) {
            (Some(below), max) if max.is_none_or(|max| below <= max) => Some(format!("{})", text(below))),
            (_, max) => max.map(|max| format!("{}]", text(max))),
        };
        match (low, high) {
            (None, None) => String::new(),
            (low, high) => {
                format!(
                    "{}, {}",
                    low.unwrap_or_else(|| "(-inf".to_string()),
                    high.unwrap_or_else(|| "inf)".to_string())
                )
            }
        }
    }
}
