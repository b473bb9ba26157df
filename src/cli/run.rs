//! `unslothify RECIPE`: runs a recipe, or a script from standard input.

use std::io::{IsTerminal, Read};
use std::path::Path;
use std::sync::Arc;

use super::arguments::Run;
use super::terminal::Console;
use super::{describe, output};
use crate::recipe::Given;
use crate::script::{Failure, Kind, Session, SessionOptions, Stop};

/// A script is text; nobody writes this much of it.
const MAX_BYTES: u64 = 4 << 20;

pub(super) fn main(arguments: &Run, argv: Vec<String>, stop: &Stop) -> anyhow::Result<()> {
    if arguments.help {
        return describe::recipe_help(arguments);
    }
    let from_input = arguments.recipe.as_deref().is_none_or(|recipe| recipe == Path::new("-"));
    if from_input && arguments.recipe.is_none() && std::io::stdin().is_terminal() {
        describe::general_help()?;
        let failure = Failure::new(Kind::Usage, "no recipe is named, and there is no interactive session yet");
        return Err(failure.hint("try `unslothify recipes/meatballs.rhai`").into());
    }
    if let Some(threads) = arguments.threads {
        // Reading, tokenising and quantising run on rayon's own threads: a bound holds for all of them.
        let bounded = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
        bounded.map_err(|error| Failure::new(Kind::Usage, format!("cannot start {threads} threads: {error}")))?;
    }
    let console = Arc::new(Console::new(arguments.quiet));
    let options = SessionOptions {
        given: given(arguments)?,
        out: Some(arguments.out.clone()),
        device: arguments.device,
        threads: arguments.threads,
        terminal: console.clone(),
        stop: stop.clone(),
        argv,
        ..SessionOptions::default()
    };
    let mut session = Session::new(options);
    let result = match &arguments.recipe {
        Some(recipe) if !from_input => session.run(recipe),
        _ => session.run_source("stdin", &standard_input()?),
    };
    console.finish();
    if let (Some(folder), false) = (session.host().run_dir(), arguments.quiet) {
        output::error(&format!("run folder: {}", folder.display()));
    }
    result.map_err(|failure| (*failure).into())
}

/// A file of parameters beyond this is no file of parameters.
const LONGEST_PARAMETERS: u64 = 16 << 20;

/// What the user gave for the recipe's parameters.
fn given(arguments: &Run) -> anyhow::Result<Given> {
    let file = match &arguments.params {
        None => None,
        Some(path) => {
            let told = |what: String| Failure::new(Kind::Usage, what);
            let text = crate::io::read_text(path, LONGEST_PARAMETERS)
                .map_err(|error| told(format!("cannot read the parameters: {error}")))?;
            Some((path.clone(), text))
        }
    };
    let environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    Ok(Given { set: arguments.set.clone(), file, environment })
}

fn standard_input() -> anyhow::Result<String> {
    let usage = |what: &str| Failure::new(Kind::Usage, what);
    let mut bytes = Vec::new();
    std::io::stdin()
        .lock()
        .take(MAX_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| usage(&format!("cannot read the script from standard input: {error}")))?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(usage("standard input is too long for a script").into());
    }
    let text = String::from_utf8(bytes).map_err(|_| usage("standard input is not a script: it is not UTF-8 text"))?;
    if text.trim().is_empty() {
        let failure = usage("no recipe is named, and standard input is empty");
        return Err(failure.hint("try `unslothify recipes/meatballs.rhai`, or `unslothify --help`").into());
    }
    Ok(text)
}
