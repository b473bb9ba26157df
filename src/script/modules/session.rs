//! What belongs to no namespace: the seed, and help.

use rhai::plugin::*;
use rhai::{Engine, NativeCallContext};

use crate::script::{Failure, names};

use super::{Answer, count, host};

#[export_module]
mod functions {
    use super::*;

    /// Sets the seed for everything random that is given none of its own.
    ///
    /// ```rhai
    /// manual_seed(1337);
    /// ```
    #[rhai_fn(return_raw)]
    pub fn manual_seed(context: NativeCallContext<'_>, seed: i64) -> Answer<()> {
        let seed = count(&context, "a seed", seed)?;
        host(&context)?.set_seed(seed as u64);
        Ok(())
    }

    /// Returns how to use the function, method or module called `name`.
    ///
    /// ```rhai
    /// print(help("add_lora"));
    /// ```
    #[rhai_fn(name = "help", return_raw)]
    pub fn help(context: NativeCallContext<'_>, name: &str) -> Answer<String> {
        let all = documented(&context);
        let inside = format!("{name}::");
        let is_it = |entry: &&Entry| entry.path == name || entry.name == name || entry.path.starts_with(&inside);
        let found: Vec<String> = all.iter().filter(is_it).map(Entry::show).collect();
        if !found.is_empty() {
            return Ok(found.join("\n\n"));
        }
        let failure = Failure::at(&context, format!("there is no help on `{name}`"));
        let near = names::nearest(name, all.iter().map(|entry| entry.name.as_str()));
        let hint = near.map_or_else(String::new, |near| format!("did you mean `{near}`? "));
        Err(failure.hint(format!("{hint}`help()` lists every name")).into())
    }

    /// Returns the names of all functions and methods.
    ///
    /// ```rhai
    /// print(help());
    /// ```
    #[rhai_fn(name = "help", return_raw)]
    pub fn help_all(context: NativeCallContext<'_>) -> Answer<String> {
        let mut paths: Vec<String> = documented(&context).into_iter().map(|entry| entry.path).collect();
        paths.sort();
        paths.dedup();
        Ok(paths.join("\n"))
    }

    /// Returns how to use what `value` is.
    ///
    /// ```rhai
    /// print(help(model));
    /// ```
    #[rhai_fn(name = "help", return_raw)]
    pub fn help_value(context: NativeCallContext<'_>, value: Dynamic) -> Answer<String> {
        let kind = names::type_of(context.engine(), &value);
        let all = documented(&context);
        let methods: Vec<String> = all.iter().filter(|entry| entry.receiver == kind).map(Entry::show).collect();
        if methods.is_empty() {
            return Err(Failure::at(&context, format!("there is no help on {}", names::with_article(&kind))).into());
        }
        Ok(methods.join("\n\n"))
    }
}

/// A function with its documentation.
#[derive(Clone)]
struct Entry {
    /// `module::name`, or the name alone.
    path: String,
    name: String,
    /// The type a method belongs to; empty for functions.
    receiver: String,
    signature: String,
    documentation: String,
}

impl Entry {
    fn show(&self) -> String {
        format!("{}\n{}", self.signature, self.documentation)
    }
}

/// Every native that has documentation.
fn documented(context: &NativeCallContext<'_>) -> Vec<Entry> {
    let engine = context.engine();
    engine.collect_fn_metadata(
        Some(context),
        |info| {
            let metadata = info.metadata;
            if metadata.comments.is_empty() {
                return None;
            }
            let kind = |text: &str| names::type_name(engine.map_type_name(text.trim().trim_start_matches("&mut ")));
            // A property's getter is registered under `get$name`.
            let name = metadata.name.trim_start_matches("get$").to_string();
            let parameters: Vec<(String, String)> = metadata
                .params_info
                .iter()
                .map(|parameter| parameter.split_once(':').unwrap_or((parameter, "")))
                .map(|(name, of)| (name.trim().to_string(), of.trim().to_string()))
                .collect();
            let is_method =
                info.namespace.is_empty() && parameters.first().is_some_and(|(_, of)| of.starts_with("&mut "));
            let receiver = if is_method { kind(&parameters[0].1) } else { String::new() };
            let shown = parameters.iter().skip(usize::from(is_method)).map(|(name, of)| match kind(of).as_str() {
                "" | "any" => name.clone(),
                of => format!("{name}: {of}"),
            });
            let arguments = shown.collect::<Vec<_>>().join(", ");
            let path = if info.namespace.is_empty() { name.clone() } else { format!("{}::{name}", info.namespace) };
            let signature = match (is_method, metadata.name.starts_with("get$")) {
                (true, true) => format!("{receiver}.{name}"),
                (true, false) => format!("{receiver}.{name}({arguments})"),
                (false, _) => format!("{path}({arguments})"),
            };
            let lines = metadata.comments.iter().flat_map(|comment| comment.lines());
            let text: Vec<&str> = lines.map(|line| line.trim().trim_start_matches("///").trim_start()).collect();
            Some(Entry { path, name, receiver, signature, documentation: text.join("\n") })
        },
        false,
    )
}

pub(super) fn register(engine: &mut Engine) {
    engine.register_global_module(exported_module!(functions).into());
}
