//! `Batches`, `Step`, `MicroBatch`: what a loop runs over.

use std::sync::Arc;

use rhai::plugin::*;
use rhai::{Array, Engine, Map, NativeCallContext};

use crate::data::{self, BatchOptions, Tokenized};
use crate::script::Failure;
use crate::train::Model;
use crate::{handle_option, options};

use super::{Answer, count, failure, host, train_failure};

handle_option!(Model, "Model");

options! {
    /// What `dataset.batches` takes.
    pub BatchTable for "dataset.batches" {
        batch_size: usize = 1, 1.., "texts in a micro-batch, laid end to end; with `packing` bins";
        accumulate: usize = 1, 1.., "micro-batches in an optimizer step";
        shuffle: bool = true, "a new order in every epoch";
        seed: Option<u64> = None, "of the order; the session's seed when it is not given";
        packing: bool = false, "fill bins of `max_tokens` with whole texts";
        max_tokens: Option<usize> = None, 1.., "tokens of a bin, with `packing`";
        merge: Option<Model> = None, "lets this model take a step's micro-batches as one where it has room";
    }
}

/// The steps of every epoch.
#[derive(Clone, Debug)]
pub struct Batches {
    pub(super) inner: data::Batches,
    tokens: Tokenized,
    /// Micro-batches of a step are joined up to so many tokens.
    merge: Option<usize>,
}

impl Batches {
    pub(super) fn tokens(&self) -> &Tokenized {
        &self.tokens
    }
}

/// One epoch, to loop over.
#[derive(Clone, Debug)]
pub struct Epoch {
    batches: Batches,
    number: usize,
}

/// What one optimizer step learns from.
#[derive(Clone, Debug)]
pub struct Step {
    index: usize,
    /// Steps of one epoch.
    per_epoch: usize,
    tokens: usize,
    target_tokens: usize,
    micro: Vec<MicroBatch>,
}

/// Some texts of a step.
#[derive(Clone, Debug)]
pub struct MicroBatch(pub(super) Arc<data::MicroBatch>);

impl IntoIterator for Epoch {
    type Item = Step;
    type IntoIter = Box<dyn Iterator<Item = Step>>;

    fn into_iter(self) -> Self::IntoIter {
        let merge = self.batches.merge;
        let per_epoch = self.batches.inner.steps();
        Box::new(self.batches.inner.iter(self.number).map(move |step| {
            let step = merge.map_or_else(|| step.clone(), |tokens| step.clone().merged(tokens));
            let micro = step.micro.into_iter().map(|micro| MicroBatch(Arc::new(micro))).collect();
            Step { index: step.index, per_epoch, tokens: step.tokens, target_tokens: step.target_tokens, micro }
        }))
    }
}

impl IntoIterator for Step {
    type Item = MicroBatch;
    type IntoIter = std::vec::IntoIter<MicroBatch>;

    fn into_iter(self) -> Self::IntoIter {
        self.micro.into_iter()
    }
}

#[export_module]
mod methods {
    use super::*;

    /// Returns the texts grouped into optimizer steps; a micro-batch is its texts end to end, nothing padded.
    ///
    /// ```rhai
    /// let batches = parts.train.batches(#{ batch_size: 2, accumulate: 4, shuffle: true, seed: 1337 });
    /// ```
    #[rhai_fn(name = "batches", pure, return_raw)]
    pub fn batches(context: NativeCallContext<'_>, tokens: &mut Tokenized, options: Map) -> Answer<Batches> {
        let given = BatchTable::parse(&options, &context)?;
        let seed = given.seed.map_or_else(|| host(&context).map(|host| host.seed()), Ok)?;
        let BatchTable { batch_size, accumulate, shuffle, packing, max_tokens, .. } = given;
        let options = BatchOptions { batch_size, accumulate, shuffle, seed, packing, max_tokens };
        let inner = tokens.batches(&options).map_err(|error| failure(&context, &error))?;
        let merge =
            given.merge.map(|model| model.room()).transpose().map_err(|error| train_failure(&context, &error))?;
        Ok(Batches { inner, tokens: tokens.clone(), merge })
    }

    /// Returns how many optimizer steps an epoch has; a shorter last group counts as one.
    ///
    /// ```rhai
    /// let total = batches.steps() * epochs;
    /// ```
    #[rhai_fn(name = "steps", pure)]
    pub fn steps(batches: &mut Batches) -> i64 {
        batches.inner.steps() as i64
    }

    /// Returns how many epochs `steps` optimizer steps take; the last one may be cut short.
    ///
    /// ```rhai
    /// for epoch in 0..batches.epochs(100) { print(epoch); }
    /// ```
    #[rhai_fn(name = "epochs", pure, return_raw)]
    pub fn epochs(context: NativeCallContext<'_>, batches: &mut Batches, steps: i64) -> Answer<i64> {
        Ok(batches.inner.epochs(count(&context, "the number of steps", steps)?) as i64)
    }

    /// Returns what these batches lead to: texts, steps, and with packing how full the bins are.
    ///
    /// ```rhai
    /// print(batches.report());
    /// ```
    #[rhai_fn(name = "report", pure)]
    pub fn report(batches: &mut Batches) -> String {
        batches.inner.report().to_string()
    }

    /// Decides what training on these batches keeps in memory, takes that memory, and returns it as a text.
    ///
    /// Without this the first `model.loss` decides. It says what is predicted at the worst moment, where the device
    /// counts its memory.
    ///
    /// ```rhai
    /// print(model.plan(batches));
    /// ```
    #[rhai_fn(name = "plan", pure, return_raw)]
    pub fn plan(context: NativeCallContext<'_>, model: &mut Model, batches: Batches) -> Answer<String> {
        let tokens = batches.inner.most_tokens(batches.merge);
        let plan = model.plan_for(tokens).map_err(|error| train_failure(&context, &error))?;
        Ok(plan.to_string())
    }

    /// Returns the bytes on the device at the worst moment, or `()` where the device counts none: `predicted` by the plan for
    /// training, `peak` as measured since, evaluation and generation included.
    ///
    /// ```rhai
    /// let memory = model.memory();
    /// if memory != () { print(memory.peak); }
    /// ```
    #[rhai_fn(name = "memory", pure, return_raw)]
    pub fn memory(context: NativeCallContext<'_>, model: &mut Model) -> Answer<Dynamic> {
        let found = model.memory().map_err(|error| train_failure(&context, &error))?;
        Ok(found.map_or(Dynamic::UNIT, |(predicted, peak)| {
            let entries = [("predicted", predicted), ("peak", peak)];
            Dynamic::from_map(entries.map(|(name, bytes)| (name.into(), (bytes as i64).into())).into_iter().collect())
        }))
    }

    /// Returns the steps of epoch `number` (0-based), each made when the loop comes to it.
    ///
    /// ```rhai
    /// for step in batches.epoch(0) { print(step.index); }
    /// ```
    #[rhai_fn(name = "epoch", pure, return_raw)]
    pub fn epoch(context: NativeCallContext<'_>, batches: &mut Batches, number: i64) -> Answer<Epoch> {
        let epoch = count(&context, "an epoch", number)?;
        // Steps are numbered through all epochs, in a script's whole numbers.
        let after = epoch.checked_add(1).and_then(|epochs| epochs.checked_mul(batches.inner.steps()));
        if after.is_none_or(|steps| i64::try_from(steps).is_err()) {
            return Err(
                Failure::at(&context, format!("there is no epoch {number}: its steps are beyond counting")).into()
            );
        }
        Ok(Epoch { batches: batches.clone(), number: epoch })
    }

    /// Returns how many steps this epoch has.
    ///
    /// ```rhai
    /// print(batches.epoch(0).len());
    /// ```
    #[rhai_fn(name = "len", pure)]
    pub fn epoch_len(epoch: &mut Epoch) -> i64 {
        epoch.batches.inner.steps() as i64
    }

    /// The 0-based number of this optimizer step, counted from the start of epoch 0.
    ///
    /// ```rhai
    /// opt.step(lr.at(step.index));
    /// ```
    #[rhai_fn(get = "index", pure)]
    pub fn index(step: &mut Step) -> i64 {
        step.index as i64
    }

    /// Epochs done when this step is done, as Hugging Face counts them: 0.5 in the middle of the first.
    ///
    /// ```rhai
    /// run::log(#{ step: step.index + 1, epoch: step.epoch });
    /// ```
    #[rhai_fn(get = "epoch", pure)]
    pub fn step_epoch(step: &mut Step) -> f64 {
        (step.index + 1) as f64 / step.per_epoch.max(1) as f64
    }

    /// Tokens of this step.
    ///
    /// ```rhai
    /// print(step.tokens);
    /// ```
    #[rhai_fn(get = "tokens", pure)]
    pub fn step_tokens(step: &mut Step) -> i64 {
        step.tokens as i64
    }

    /// Tokens of this step that are learned.
    ///
    /// ```rhai
    /// print(step.target_tokens);
    /// ```
    #[rhai_fn(get = "target_tokens", pure)]
    pub fn target_tokens(step: &mut Step) -> i64 {
        step.target_tokens as i64
    }

    /// Returns how many micro-batches this step has.
    ///
    /// ```rhai
    /// print(step.len());
    /// ```
    #[rhai_fn(name = "len", pure)]
    pub fn step_len(step: &mut Step) -> i64 {
        step.micro.len() as i64
    }

    /// Tokens of this micro-batch.
    ///
    /// ```rhai
    /// print(micro.tokens);
    /// ```
    #[rhai_fn(get = "tokens", pure)]
    pub fn micro_tokens(micro: &mut MicroBatch) -> i64 {
        micro.0.ids.len() as i64
    }

    /// Returns how many texts this micro-batch has.
    ///
    /// ```rhai
    /// print(micro.len());
    /// ```
    #[rhai_fn(name = "len", pure)]
    pub fn micro_len(micro: &mut MicroBatch) -> i64 {
        micro.0.len() as i64
    }

    /// Where the texts of this micro-batch come from, as file and line.
    ///
    /// ```rhai
    /// print(micro.rows);
    /// ```
    #[rhai_fn(get = "rows", pure)]
    pub fn rows(micro: &mut MicroBatch) -> Array {
        micro.0.rows.iter().map(|row| Dynamic::from(row.to_string())).collect()
    }

    #[rhai_fn(name = "to_string", name = "to_debug", pure)]
    pub fn show_batches(batches: &mut Batches) -> String {
        let options = batches.inner.options();
        format!("Batches({} steps of {} x {})", batches.inner.steps(), options.batch_size, options.accumulate)
    }

    #[rhai_fn(name = "to_string", name = "to_debug", pure)]
    pub fn show_epoch(epoch: &mut Epoch) -> String {
        format!("Epoch({}, {} steps)", epoch.number, epoch.batches.inner.steps())
    }

    #[rhai_fn(name = "to_string", name = "to_debug", pure)]
    pub fn show_step(step: &mut Step) -> String {
        format!("Step({}, {} micro-batches, {} tokens)", step.index, step.micro.len(), step.tokens)
    }

    #[rhai_fn(name = "to_string", name = "to_debug", pure)]
    pub fn show_micro(micro: &mut MicroBatch) -> String {
        format!("MicroBatch({} texts, {} tokens)", micro.0.len(), micro.0.ids.len())
    }
}

pub(super) fn register(engine: &mut Engine) {
    engine
        .register_type_with_name::<Batches>("Batches")
        .register_type_with_name::<Epoch>("Epoch")
        .register_type_with_name::<Step>("Step")
        .register_type_with_name::<MicroBatch>("MicroBatch")
        .register_iterator::<Epoch>()
        .register_iterator::<Step>()
        .register_global_module(exported_module!(methods).into());
}
