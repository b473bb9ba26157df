//! Which value each parameter has in this run, and where it came from.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use super::param::{Kind, Parameter, Value};
use super::{Error, Result, nearest};
use crate::io;

/// The environment variable of parameter `learning_rate` is `UNSLOTHIFY_PARAM_LEARNING_RATE`.
const VARIABLE: &str = "UNSLOTHIFY_PARAM_";

/// Where a value came from; later ones win over earlier ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    Default,
    /// `--params FILE`.
    File(PathBuf),
    /// `UNSLOTHIFY_PARAM_NAME`.
    Environment,
    /// `--set name=value`.
    Set,
}

impl Origin {
    /// How the user gave the value `text` to `name`.
    pub(super) fn told(&self, name: &str, text: &str) -> String {
        match self {
            Self::Default => "the recipe".to_string(),
            Self::File(path) => format!("`--params {}`", path.display()),
            Self::Environment => format!("the environment, {VARIABLE}{}={text}", name.to_uppercase()),
            Self::Set => format!("`--set {name}={text}`"),
        }
    }
}

/// As `config.json` says it.
impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path) => write!(f, "params file {}", path.display()),
            Self::Environment => f.write_str("environment"),
            Self::Set => f.write_str("--set"),
        }
    }
}

/// What the user gave, unread.
#[derive(Clone, Debug, Default)]
pub struct Given {
    /// `name=value`, in order; the last of a name wins.
    pub set: Vec<String>,
    /// The file of `--params` and its text.
    pub file: Option<(PathBuf, String)>,
    /// The environment; only names with the prefix are looked at.
    pub environment: Vec<(String, String)>,
}

/// One parameter with its value.
#[derive(Clone, Debug)]
pub struct Setting {
    pub parameter: Parameter,
    pub value: Value,
    pub origin: Origin,
}

/// Every parameter of the recipe with its value.
#[derive(Clone, Debug, Default)]
pub struct Resolved {
    settings: Vec<Setting>,
    /// What the run took where a value leaves the choice to it.
    chosen: BTreeMap<String, serde_json::Value>,
}

impl Resolved {
    /// Settles every parameter, or tells the first mistake. Paths from outside are made absolute from `shell`.
    pub fn new(parameters: &[Parameter], given: &Given, shell: &Path) -> Result<Self> {
        let find = |name: &str| {
            let known = || parameters.iter().map(|parameter| parameter.name.clone()).collect::<Vec<_>>();
            let near = || nearest(name, parameters.iter().map(|parameter| parameter.name.as_str())).map(str::to_string);
            let found = parameters.iter().position(|parameter| parameter.name == name);
            found.ok_or_else(|| Error::Unknown { name: name.to_string(), near: near(), known: known() })
        };
        let mut chosen: Vec<Option<(Value, Origin)>> =
            parameters.iter().map(|p| p.default.clone().map(|value| (value, Origin::Default))).collect();
        let mut choose = |at: usize, read: Result<Value, String>, text: &str, origin: Origin| {
            let Some((parameter, slot)) = parameters.get(at).zip(chosen.get_mut(at)) else { return Ok(()) };
            let name = parameter.name.clone();
            let value =
                read.map_err(|what| Error::Value { name, what, origin: origin.clone(), text: text.to_string() })?;
            *slot = Some((from_outside(parameter.kind, value, shell), origin));
            Ok(())
        };
        if let Some((path, text)) = &given.file {
            let wrong = |what: String| Error::File { path: path.clone(), what };
            let file: serde_json::Map<String, serde_json::Value> =
                serde_json::from_str(text).map_err(|error| wrong(error.to_string()))?;
            for (name, json) in &file {
                let at = find(name)?;
                let value = Value::from_json(json)
                    .ok_or_else(|| wrong(format!("`{name}` must be a number, a bool or a string, got {json}")))?;
                let read = parameters.get(at).map_or(Err(String::new()), |parameter| parameter.check(value));
                choose(at, read, &json.to_string(), Origin::File(path.clone()))?;
            }
        }
        for (at, parameter) in parameters.iter().enumerate() {
            let variable = format!("{VARIABLE}{}", parameter.name.to_uppercase());
            if let Some((_, text)) = given.environment.iter().find(|(name, _)| *name == variable) {
                choose(at, parameter.parse(text), text, Origin::Environment)?;
            }
        }
        for setting in &given.set {
            let (name, text) = setting.split_once('=').ok_or_else(|| Error::Setting { text: setting.clone() })?;
            let at = find(name.trim())?;
            let read = parameters.get(at).map_or(Err(String::new()), |parameter| parameter.parse(text));
            choose(at, read, text, Origin::Set)?;
        }
        let settle = |(parameter, chosen): (&Parameter, Option<(Value, Origin)>)| match chosen {
            Some((value, origin)) => Ok(Setting { parameter: parameter.clone(), value, origin }),
            None => {
                Err(Error::Missing { name: parameter.name.clone(), kind: parameter.kind, help: parameter.help.clone() })
            }
        };
        let settings = parameters.iter().zip(chosen).map(settle).collect::<Result<_>>()?;
        Ok(Self { settings, chosen: BTreeMap::new() })
    }

    pub fn get(&self, name: &str) -> Option<&Setting> {
        self.settings.iter().find(|setting| setting.parameter.name == name)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Setting> {
        self.settings.iter()
    }

    /// The text of `config.json` for the recipe that was named `recipe`.
    pub fn config(&self, recipe: &str) -> String {
        format!("{:#}\n", serde_json::json!({ "recipe": recipe, "parameters": self.to_json() }))
    }

    /// Takes note of what the run took for `name`, a parameter or anything else that it had to choose.
    pub fn chose(&mut self, name: &str, value: serde_json::Value) {
        self.chosen.insert(name.to_string(), value);
    }

    /// The `parameters` of `config.json`: value and origin of each, and what was chosen where the value left that open.
    pub fn to_json(&self) -> serde_json::Value {
        let one = |setting: &Setting| {
            let name = &setting.parameter.name;
            let mut told =
                serde_json::json!({ "value": setting.value.to_json(), "origin": setting.origin.to_string() });
            if let (Some(told), Some(chosen)) = (told.as_object_mut(), self.chosen.get(name)) {
                told.insert("chosen".to_string(), chosen.clone());
            }
            (name.clone(), told)
        };
        let others = self.chosen.iter().filter(|(name, _)| self.get(name).is_none());
        let others = others.map(|(name, value)| (name.clone(), serde_json::json!({ "chosen": value })));
        serde_json::Value::Object(self.settings.iter().map(one).chain(others).collect())
    }
}

/// Makes a path from outside absolute; a model may also be a hub id, which stays as it is.
fn from_outside(kind: Kind, value: Value, shell: &Path) -> Value {
    let Value::Text(text) = &value else { return value };
    let path = shell.join(text);
    let is_path = match kind {
        Kind::Path => true,
        Kind::Model => looks_like_path(text, shell) || io::exists(&path),
        _ => false,
    };
    if is_path { Value::Text(path.to_string_lossy().into_owned()) } else { value }
}

/// `./x`, `../x`, `/x`, `x.gguf`: surely not the id of a model on the hub.
fn looks_like_path(text: &str, shell: &Path) -> bool {
    // `owner/name/file.gguf` is a file on the hub where there is no folder `owner`.
    let mut parts = text.split('/');
    let is_here = parts.next().is_some_and(|owner| io::exists(&shell.join(owner)));
    let is_file = text.ends_with(".gguf") && (is_here || parts.count() < 2);
    text.starts_with("./") || text.starts_with("../") || Path::new(text).is_absolute() || is_file
}
