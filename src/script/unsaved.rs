//! What a run that ends too soon leaves: adapters that were trained and that the recipe has not saved.

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::host::Host;
use crate::train::{Model, WeakModel};

/// The folder of such an adapter in the run's folder; a second one is `interrupted-2`.
const NAME: &str = "interrupted";

/// The models of a run.
#[derive(Default)]
pub(super) struct Models(Mutex<State>);

#[derive(Default)]
struct State {
    loaded: Vec<WeakModel>,
    /// Kept alive while a stopped script is taken apart.
    held: Vec<Model>,
    /// Steps left out that a row of metrics has told of.
    told: u64,
}

impl Models {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of a model, without keeping it alive.
    pub fn add(&self, model: &Model) {
        let mut state = self.state();
        state.loaded.retain(|model| model.upgrade().is_some());
        state.loaded.push(model.downgrade());
    }

    /// Keeps the models alive that are there now, until `release`.
    pub fn hold(&self) {
        let mut state = self.state();
        state.held = state.loaded.iter().filter_map(WeakModel::upgrade).collect();
    }

    pub fn release(&self) {
        self.state().held.clear();
    }

    /// Optimizer steps left out on all models that are there, and whether there are more than when this was last asked.
    pub fn skipped_steps(&self) -> (u64, bool) {
        let mut state = self.state();
        let all = state.loaded.iter().filter_map(WeakModel::upgrade).map(|model| model.skipped_steps()).sum();
        let before = std::mem::replace(&mut state.told, all);
        (all, all > before)
    }

    /// Those with optimizer steps that no folder holds.
    fn unsaved(&self) -> Vec<Model> {
        let alive = self.state().loaded.iter().filter_map(WeakModel::upgrade).collect::<Vec<_>>();
        alive.into_iter().filter(|model| model.unsaved_steps() > 0).collect()
    }
}

/// Writes every adapter whose last steps no folder holds to the run's folder, and says where it is.
///
/// An optimizer step is never cut in two, so what is written is the adapter after the last whole one.
pub(super) fn keep(host: &Host) {
    let Some(run) = host.run_dir() else { return };
    for model in host.models().unsaved() {
        let steps = match model.adapter_steps() {
            1 => "1 optimizer step".to_string(),
            steps => format!("{steps} optimizer steps"),
        };
        let name = free_name(&run);
        let shown = run.join(&name).display().to_string();
        host.doing(&format!("writing the adapter to `{shown}`"));
        let path = host.write_path(&name).map_err(|error| error.to_string());
        match path.and_then(|path| model.save_adapter(&path).map_err(|error| error.to_string())) {
            Ok(_) => host.note(&format!("the adapter after {steps}, which the recipe had not saved, is in `{shown}`")),
            Err(error) => host.note(&format!("warning: the adapter after {steps} could not be kept: {error}")),
        }
    }
}

fn free_name(run: &Path) -> String {
    let names = (2..).map(|count| format!("{NAME}-{count}"));
    let mut names = std::iter::once(NAME.to_string()).chain(names);
    names.find(|name| !crate::io::exists(&run.join(name))).unwrap_or_else(|| NAME.to_string())
}
