//! Functions, methods, modules and variables that are not there.

use std::collections::BTreeSet;

use super::{At, Translator, habits};
use crate::script::failure::{Failure, Kind};
use crate::script::names;
use crate::script::sources::is_closure;
use crate::script::text::{self, Lexeme};

/// One function that could have been meant.
struct Known {
    namespace: String,
    name: String,
    /// Type names in the script's words; `any` for the parameters of script functions.
    types: Vec<String>,
    /// `name: type`, as it is told.
    parameters: Vec<String>,
}

impl Known {
    fn told(&self, method: bool) -> String {
        let prefix = if self.namespace.is_empty() { String::new() } else { format!("{}::", self.namespace) };
        match (method, self.types.split_first()) {
            (true, Some((first, _))) => {
                format!("{first}.{}({})", self.name, self.parameters.get(1..).unwrap_or_default().join(", "))
            }
            _ => format!("{prefix}{}({})", self.name, self.parameters.join(", ")),
        }
    }

    /// A name a user could type.
    fn is_callable(&self) -> bool {
        self.name.starts_with(|c: char| c.is_alphabetic() || c == '_') && !self.name.contains('$')
    }
}

impl Translator<'_> {
    fn known(&self) -> Vec<Known> {
        let collect = |info: rhai::FuncInfo<'_>| {
            let metadata = info.metadata;
            let told: Vec<String> = match info.script {
                Some(_) => metadata.params_info.iter().map(|name| name.to_string()).collect(),
                None => metadata.params_info.iter().map(|info| parameter(info)).collect(),
            };
            let types = match info.script {
                Some(_) => vec!["any".to_string(); metadata.num_params],
                None => metadata
                    .params_info
                    .iter()
                    .map(|info| names::type_name(info.split_once(": ").map_or(info.as_str(), |(_, kind)| kind)))
                    .collect(),
            };
            // Natives registered without their metadata tell only how many parameters they have.
            let fill = |mut list: Vec<String>| {
                list.resize(metadata.num_params, "any".to_string());
                list
            };
            let (told, types) = (fill(told), fill(types));
            let namespace = info.namespace.to_string();
            Some(Known { namespace, name: metadata.name.to_string(), types, parameters: told })
        };
        let mut known = self.engine.collect_fn_metadata(None, collect, true);
        for (namespace, name, parameters) in self.sources.functions() {
            let types = vec!["any".to_string(); parameters.len()];
            known.push(Known { namespace, name, types, parameters });
        }
        known
    }

    /// A call that fits nothing. `signature` is Rhai's: `optim::adamw (i64, map)`.
    pub(super) fn function_not_found(&self, signature: &str, at: &At<'_>) -> Failure {
        let (path, types) = signature.split_once(" (").unwrap_or((signature, ")"));
        let types = types.strip_suffix(')').unwrap_or(types);
        let types: Vec<String> = match types {
            "" => Vec::new(),
            _ => types.split(", ").map(names::type_name).collect(),
        };
        if is_closure(path) {
            return wrong_closure(&types);
        }
        let (namespace, name) = path.rsplit_once("::").unwrap_or(("", path));
        if !name.starts_with(|c: char| c.is_alphabetic() || c == '_') {
            return operator(name, &types);
        }
        if name == "contains" && self.word(at) == "in" {
            return operator("in", &types.into_iter().rev().collect::<Vec<_>>());
        }
        let method = namespace.is_empty() && self.is_method(at);
        let known = self.known();
        let same: Vec<&Known> = known
            .iter()
            .filter(|f| f.namespace == namespace && f.name == name)
            .filter(|f| !method || f.types.first().is_none_or(|first| *first == "any" || Some(first) == types.first()))
            .collect();
        let habit = habits::call(name, &types, method);
        let failure = match (method, types.split_first()) {
            (true, Some((object, _))) if same.is_empty() => {
                Failure::new(Kind::Recipe, format!("{} has no method `{name}`", names::with_article(object)))
            }
            (true, Some((object, rest))) => {
                Failure::new(Kind::Recipe, format!("`{object}.{name}` does not take {}", list(rest)))
            }
            _ if same.is_empty() && !namespace.is_empty() => {
                Failure::new(Kind::Recipe, format!("module `{namespace}` has no function `{name}`"))
            }
            _ if same.is_empty() => Failure::new(Kind::Recipe, format!("there is no function `{name}`")),
            _ => Failure::new(Kind::Recipe, format!("`{path}` does not take {}", list(&types))),
        };
        if let Some(habit) = habit {
            return failure.hint(habit);
        }
        if !same.is_empty() {
            let told: BTreeSet<String> = same.iter().map(|f| f.told(method)).collect();
            return failure.hint(format!("it is {}", told.into_iter().take(6).collect::<Vec<_>>().join(" or ")));
        }
        let near = |f: &&Known| match method {
            true => f.types.first().is_some_and(|first| Some(first) == types.first()),
            false => f.namespace == namespace,
        };
        let candidates: BTreeSet<&str> =
            known.iter().filter(|f| f.is_callable()).filter(near).map(|f| f.name.as_str()).collect();
        // `adamw(…)` for `optim::adamw(…)`.
        let elsewhere = known.iter().find(|f| f.name == name && !f.namespace.is_empty());
        if let (Some(other), false, true) = (elsewhere, method, namespace.is_empty()) {
            return failure.hint(format!("did you mean `{}::{name}`?", other.namespace));
        }
        match names::nearest(name, candidates.iter().copied()) {
            Some(near) => failure.hint(format!("did you mean `{near}`?")),
            None if (method || !namespace.is_empty()) && !candidates.is_empty() => {
                failure.hint(format!("it has: {}", candidates.into_iter().take(40).collect::<Vec<_>>().join(", ")))
            }
            None => failure,
        }
    }

    /// Does the name at `at` follow a dot?
    fn is_method(&self, at: &At<'_>) -> bool {
        let Some(place) = self.sources.place(at.source, at.position, None) else { return false };
        matches!(text::before(&place.text, place.span.start), Some((Lexeme::Symbol('.'), _)))
    }

    /// Rhai's text: "Unknown property 'x' - a getter is not registered for type 'Model'".
    pub(super) fn property(&self, text: &str) -> Failure {
        let mut quoted = text.split('\'').skip(1).step_by(2);
        let (Some(name), Some(kind)) = (quoted.next(), quoted.next()) else {
            return Failure::new(Kind::Recipe, super::lowercase(text));
        };
        let kind = names::type_name(kind);
        let prefix = if text.starts_with("Unknown") { "get$" } else { "set$" };
        let known = self.known();
        let of_type = |f: &&Known| f.types.first().is_some_and(|first| *first == kind);
        let properties: BTreeSet<&str> =
            known.iter().filter(of_type).filter_map(|f| f.name.strip_prefix(prefix)).collect();
        let what = match (prefix, kind.as_str()) {
            ("get$", _) => format!("{} has no property `{name}`", names::with_article(&kind)),
            _ => format!("property `{name}` of {} cannot be set", names::with_article(&kind)),
        };
        let failure = Failure::new(Kind::Recipe, what);
        if prefix == "get$" && known.iter().filter(of_type).any(|f| f.name == name) {
            return failure.hint(format!("it is a method: write `.{name}()`"));
        }
        match names::nearest(name, properties.iter().copied()) {
            Some(near) => failure.hint(format!("did you mean `{near}`?")),
            None if properties.is_empty() => failure,
            None => failure.hint(format!("it has: {}", properties.into_iter().collect::<Vec<_>>().join(", "))),
        }
    }

    pub(super) fn unknown_module(&self, name: &str, at: &At<'_>) -> Failure {
        let failure = Failure::new(Kind::Recipe, format!("there is no module `{name}`"));
        let mut modules: BTreeSet<String> =
            self.known().into_iter().map(|f| f.namespace).filter(|n| !n.is_empty()).collect();
        modules.extend(self.sources.aliases(at.source));
        if let Some(near) = names::nearest(name, modules.iter().map(String::as_str)) {
            return failure.hint(format!("did you mean `{near}`?"));
        }
        if crate::script::stdlib::text(name).is_some() {
            return failure.hint(format!("write `import \"std/{name}\" as {name};` first"));
        }
        failure.hint(format!("there are: {}", modules.into_iter().collect::<Vec<_>>().join(", ")))
    }

    pub(super) fn unknown_variable(&self, name: &str, at: &At<'_>) -> Failure {
        let failure = Failure::new(Kind::Recipe, format!("there is no variable `{name}`"));
        if let Some(habit) = habits::variable(name) {
            return failure.hint(habit);
        }
        let Some(place) = self.sources.place(at.source, at.position, None) else { return failure };
        let declared = habits::declared(&place.text, place.span.start);
        if let Some(function) = &declared.function
            && declared.outside.iter().any(|outer| outer == name)
        {
            return failure.hint(format!(
                "functions do not see outer variables: pass `{name}` to `{function}` as an argument, make `{function}` \
                 a closure (`let {function} = |…| …`), or write `const {name} = …` and use `global::{name}`"
            ));
        }
        match names::nearest(name, declared.inside.iter().map(String::as_str)) {
            Some(near) => failure.hint(format!("did you mean `{near}`?")),
            None if declared.inside.iter().any(|inside| inside == name) => {
                failure.hint(format!("`let {name}` stands inside a block that has ended"))
            }
            None if declared.later.iter().any(|later| later == name) => {
                failure.hint(format!("`let {name}` stands further down, or inside a block that has ended"))
            }
            None => failure,
        }
    }
}

fn parameter(info: &str) -> String {
    match info.split_once(": ") {
        Some((name, kind)) if name != "_" => format!("{name}: {}", names::type_name(kind)),
        Some((_, kind)) => names::type_name(kind),
        None => names::type_name(info),
    }
}

/// "(int, map)", "no arguments".
fn list(types: &[String]) -> String {
    if types.is_empty() { "no arguments".to_string() } else { format!("({})", types.join(", ")) }
}

fn wrong_closure(types: &[String]) -> Failure {
    let count = match types.len() {
        0 => "no arguments".to_string(),
        1 => format!("1 argument ({})", types.join(", ")),
        n => format!("{n} arguments ({})", types.join(", ")),
    };
    Failure::new(Kind::Recipe, format!("a closure is called with {count}, but takes another number of them"))
        .hint("the arguments stand between the bars: `|| …`, `|a| …`, `|a, b| …`")
}

fn operator(name: &str, types: &[String]) -> Failure {
    match types {
        [one] => Failure::new(Kind::Recipe, format!("`{name}` cannot be applied to {}", names::with_article(one))),
        [left, right] => {
            let between = format!(
                "`{name}` does not work between {} and {}",
                names::with_article(left),
                names::with_article(right)
            );
            let failure = Failure::new(Kind::Recipe, between);
            if name == "+" && (left == "string" || right == "string") {
                failure.hint("put values into a text by back quotes: `` `loss ${loss}` ``")
            } else {
                failure
            }
        }
        _ => Failure::new(Kind::Recipe, format!("`{name}` cannot be used here")),
    }
}
