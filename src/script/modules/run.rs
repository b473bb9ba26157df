//! `run`: the folder of this run, its measurements, and how far it is.

use std::sync::{MutexGuard, PoisonError};

use rhai::plugin::*;
use rhai::{Array, Engine, Map, NativeCallContext};

use crate::io;
use crate::options;
use crate::script::{Failure, Host};
use crate::train::{Beat, Pace};

use super::text::{show_clock, show_scientific, show_thousands};
use super::{Answer, Session, count, host, session};

options! {
    /// What `run::progress` takes.
    pub ProgressOptions for "run::progress" {
        what: String, "what is being done: \"training\"";
        done: u64, "how much is done";
        total: Option<u64> = None, "how much there is in all";
        detail: String = "", "what else to say on the line";
    }
}

#[export_module]
mod functions {
    use super::*;

    /// Adds a row to `metrics.jsonl` and to the history, under Hugging Face's names; `step` counts from 1.
    ///
    /// ```rhai
    /// run::log(#{ step: 1, eval_loss: 3.21 });
    /// ```
    #[rhai_fn(return_raw)]
    pub fn log(context: NativeCallContext<'_>, row: Map) -> Answer<()> {
        let host = host(&context)?;
        host.log_metrics(&with_skipped_steps(&host, row)).map_err(|error| error.at(&context).into())
    }

    /// Returns the folder of this run.
    ///
    /// ```rhai
    /// print(`everything is in ${run::dir()}`);
    /// ```
    #[rhai_fn(return_raw)]
    pub fn dir(context: NativeCallContext<'_>) -> Answer<String> {
        match host(&context)?.run_dir() {
            Some(dir) => Ok(dir.display().to_string()),
            None => Err(Failure::at(&context, "this session has no run folder").into()),
        }
    }

    /// Returns every row logged so far, oldest first.
    ///
    /// ```rhai
    /// let rows = run::history();
    /// ```
    #[rhai_fn(return_raw)]
    pub fn history(context: NativeCallContext<'_>) -> Answer<Array> {
        Ok(host(&context)?.history().into_iter().map(Dynamic::from).collect())
    }

    /// Says something beside the results: what was chosen, cut or left out.
    ///
    /// ```rhai
    /// run::note("no probes: the table is left out");
    /// ```
    #[rhai_fn(return_raw)]
    pub fn note(context: NativeCallContext<'_>, text: &str) -> Answer<()> {
        host(&context)?.note(text);
        Ok(())
    }

    /// Shows on one line how far the work is. Call it as often as you like.
    ///
    /// ```rhai
    /// run::progress(#{ what: "training", done: 3, total: 60, detail: "loss 2.71" });
    /// ```
    #[rhai_fn(return_raw)]
    pub fn progress(context: NativeCallContext<'_>, options: Map) -> Answer<()> {
        let given = ProgressOptions::parse(&options, &context)?;
        host(&context)?.progress(&given.what, given.done, given.total, &given.detail);
        Ok(())
    }

    /// Ends the line that `run::progress` shows.
    ///
    /// ```rhai
    /// run::progress_end();
    /// ```
    #[rhai_fn(return_raw)]
    pub fn progress_end(context: NativeCallContext<'_>) -> Answer<()> {
        host(&context)?.progress_end();
        Ok(())
    }

    /// Starts the clock of a loop of `total` steps.
    ///
    /// ```rhai
    /// run::start(60);
    /// ```
    #[rhai_fn(return_raw)]
    pub fn start(context: NativeCallContext<'_>, total: i64) -> Answer<()> {
        let total = count(&context, "the number of steps", total)?;
        *lock(&session(&context)?) = Some(Pace::start(total as u64));
        Ok(())
    }

    /// Ends a step: adds `tokens_per_second` to its row, logs the row and shows it with the time left.
    ///
    /// ```rhai
    /// run::step(#{ step: 1, loss: 2.71, learning_rate: 2e-4, tokens: 480 });
    /// ```
    #[rhai_fn(return_raw)]
    pub fn step(context: NativeCallContext<'_>, row: Map) -> Answer<()> {
        let session = session(&context)?;
        let tokens = row.get("tokens").and_then(|tokens| tokens.as_int().ok()).unwrap_or(0);
        let tokens = count(&context, "`tokens`", tokens)?;
        let beat = lock(&session).get_or_insert_with(|| Pace::start(0)).step(tokens as u64);
        let mut row = with_skipped_steps(&session.host, row);
        row.insert("tokens_per_second".into(), Dynamic::from(beat.tokens_per_second));
        session.host.log_metrics(&row).map_err(|error| error.at(&context))?;
        let total = (beat.total > 0).then_some(beat.total);
        session.host.progress("training", beat.done, total, &detail(&row, &beat));
        Ok(())
    }

    /// Returns the recipe as a person would name it on the command line.
    ///
    /// ```rhai
    /// print(`unslothify ${run::recipe()} --help`);
    /// ```
    #[rhai_fn(return_raw)]
    pub fn recipe(context: NativeCallContext<'_>) -> Answer<String> {
        Ok(host(&context)?.recipe())
    }

    /// Whether the recipe may read a file or folder of this name and it is there.
    ///
    /// ```rhai
    /// let has_probes = run::has("data/meatballs.probes.jsonl");
    /// ```
    #[rhai_fn(return_raw)]
    pub fn has(context: NativeCallContext<'_>, path: &str) -> Answer<bool> {
        Ok(host(&context)?.read_path(path).is_ok_and(|path| io::is_file(&path) || io::is_folder(&path)))
    }

    /// Whether the value of parameter `name` was given by whoever started the run, and is not the recipe's own.
    ///
    /// ```rhai
    /// if run::is_set("data") { print("on your texts"); }
    /// ```
    #[rhai_fn(return_raw)]
    pub fn is_set(context: NativeCallContext<'_>, name: &str) -> Answer<bool> {
        match host(&context)?.param_origin(name) {
            Some(origin) => Ok(origin != crate::recipe::Origin::Default),
            None => Ok(false),
        }
    }

    /// Writes to `config.json` what was taken for parameter `name`, whose given value leaves the choice to the run.
    ///
    /// ```rhai
    /// run::chose("base_model", model.origin);
    /// ```
    #[rhai_fn(return_raw)]
    pub fn chose(context: NativeCallContext<'_>, name: &str, value: Dynamic) -> Answer<()> {
        host(&context)?.chose(name, &value).map_err(|error| error.at(&context).into())
    }

    /// Returns the path of `name` in the run folder as a person would type it: relative to the shell where it can be.
    ///
    /// ```rhai
    /// print(`the adapter is in ${run::path("adapter")}`);
    /// ```
    #[rhai_fn(return_raw)]
    pub fn path(context: NativeCallContext<'_>, name: &str) -> Answer<String> {
        let host = host(&context)?;
        let full = host.write_path(name).map_err(|error| error.at(&context))?;
        let shown = full.strip_prefix(host.shell()).unwrap_or(&full);
        Ok(shown.display().to_string())
    }
}

/// The row with the number of optimizer steps left out, where there are any. In the row after such a step, numbers that are
/// not finite stand for its gradients, which is said by that number: they are not kept.
fn with_skipped_steps(host: &Host, mut row: Map) -> Map {
    let (skipped, is_new) = host.models().skipped_steps();
    if is_new {
        row.retain(|_, value| value.as_float().map_or(true, f64::is_finite));
    }
    if skipped > 0 {
        row.insert("skipped_steps".into(), Dynamic::from(skipped as i64));
    }
    row
}

fn lock(session: &Session) -> MutexGuard<'_, Option<Pace>> {
    session.pace.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `loss 2.710   2 310 tokens/s   0:24 left   rate 2e-4`: the last is what a narrow terminal shows last.
fn detail(row: &Map, beat: &Beat) -> String {
    let number = |name: &str| row.get(name).and_then(|value| value.as_float().ok());
    let mut parts = Vec::new();
    parts.extend(number("loss").map(|loss| format!("loss {loss:.3}")));
    parts.push(format!("{} tokens/s", show_thousands(beat.tokens_per_second)));
    parts.push(format!("{} left", show_clock(beat.left.as_secs_f64())));
    parts.extend(number("learning_rate").map(|rate| format!("rate {}", show_scientific(rate))));
    parts.join("   ")
}

pub(super) fn register(engine: &mut Engine) {
    let mut module = exported_module!(functions);
    super::later::extend(&mut module, "run");
    engine.register_static_module("run", module.into());
}
