//! Examples to optimizer steps: micro-batches of texts laid end to end, nothing padded.

use std::fmt;
use std::sync::Arc;

use super::dataset::RowId;
use super::error::{Error, Long, Result};
use super::report::count;
use super::tokenized::{Example, Tokenized};
use super::{packing, stream};
use crate::philox::Philox;

/// Over-long texts an error names.
const NAMED: usize = 3;

/// How texts are grouped into steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchOptions {
    /// Texts (with `packing`: bins) in a micro-batch.
    pub batch_size: usize,
    /// Micro-batches in an optimizer step.
    pub accumulate: usize,
    /// A new order in every epoch.
    pub shuffle: bool,
    pub seed: u64,
    /// Fill bins of `max_tokens` with as many whole texts as fit.
    pub packing: bool,
    pub max_tokens: Option<usize>,
}

impl Default for BatchOptions {
    fn default() -> Self {
        Self { batch_size: 1, accumulate: 1, shuffle: true, seed: 0, packing: false, max_tokens: None }
    }
}

/// Some texts end to end; text `i` is `ids[cu_seqlens[i] .. cu_seqlens[i + 1]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MicroBatch {
    pub ids: Vec<u32>,
    /// Prefix sums of the texts' lengths, from 0 to the number of tokens.
    pub cu_seqlens: Vec<u32>,
    /// What each token must predict; -100 is nothing.
    pub targets: Vec<i32>,
    /// Target tokens of the whole step: the loss of a micro-batch is its sum divided by this.
    pub step_targets: usize,
    /// Where each text comes from.
    pub rows: Vec<RowId>,
}

/// What one optimizer step learns from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// 0-based, counted since the start of epoch 0.
    pub index: usize,
    pub micro: Vec<MicroBatch>,
    pub tokens: usize,
    pub target_tokens: usize,
}

impl Step {
    /// The same step with neighbouring micro-batches joined as long as they stay within `max_tokens`. The gradient is
    /// the same; a model with room does more at a time.
    pub fn merged(self, max_tokens: usize) -> Self {
        let mut micro: Vec<MicroBatch> = Vec::with_capacity(self.micro.len());
        for next in self.micro {
            match micro.last_mut() {
                Some(last) if last.ids.len() + next.ids.len() <= max_tokens => last.append(next),
                _ => micro.push(next),
            }
        }
        Self { micro, ..self }
    }
}

impl MicroBatch {
    /// Texts in here.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    fn append(&mut self, next: Self) {
        let start = self.ids.len() as u32;
        self.cu_seqlens.extend(next.cu_seqlens.iter().skip(1).map(|end| start + end));
        self.ids.extend(next.ids);
        self.targets.extend(next.targets);
        self.rows.extend(next.rows);
    }
}

/// The steps of every epoch: a pure function of the examples, the options and the epoch.
#[derive(Clone, Debug)]
pub struct Batches {
    examples: Arc<Vec<Example>>,
    options: BatchOptions,
    /// Texts or bins in an epoch.
    units: usize,
}

impl Tokenized {
    /// Groups the examples into optimizer steps.
    pub fn batches(&self, options: &BatchOptions) -> Result<Batches> {
        for (option, got) in [("batch_size", options.batch_size), ("accumulate", options.accumulate)] {
            if got == 0 {
                return Err(Error::Batch { option, got: got.to_string(), wanted: "at least 1" });
            }
        }
        if self.is_empty() {
            return Err(Error::NoRows { why: " to make batches of" });
        }
        let limit = match (options.packing, options.max_tokens) {
            (false, None) => None,
            (true, Some(limit)) if limit > 0 => Some(limit),
            (true, got) => {
                let got = got.map_or("not given".to_owned(), |got| got.to_string());
                return Err(Error::Batch { option: "max_tokens", got, wanted: "the tokens of a bin, for `packing`" });
            }
            (false, Some(got)) => {
                let wanted = "no value without `packing: true`";
                return Err(Error::Batch { option: "max_tokens", got: got.to_string(), wanted });
            }
        };
        if let Some(limit) = limit {
            let long = || self.examples().iter().filter(|example| example.ids.len() > limit);
            let first: Vec<Long> = long()
                .take(NAMED)
                .map(|example| Long { row: example.row.clone(), tokens: example.ids.len() })
                .collect();
            if !first.is_empty() {
                return Err(Error::TooLongToPack { limit, count: long().count(), first });
            }
        }
        let mut batches = Batches { examples: self.examples().clone(), options: *options, units: self.len() };
        if limit.is_some() {
            batches.units = batches.order(0).len();
        }
        Ok(batches)
    }
}

impl Batches {
    /// The most tokens a micro-batch can have in any epoch, when micro-batches of a step are merged up to `merge` tokens.
    pub fn most_tokens(&self, merge: Option<usize>) -> usize {
        let mut lengths: Vec<usize> = self.examples.iter().map(|example| example.ids.len()).collect();
        lengths.sort_unstable_by(|a, b| b.cmp(a));
        let most = |units: usize| match self.options.max_tokens.filter(|_| self.options.packing) {
            Some(bin) => units.saturating_mul(bin).min(lengths.iter().sum()),
            None => lengths.iter().take(units).sum::<usize>(),
        };
        let micro = most(self.options.batch_size);
        let step = most(self.options.batch_size.saturating_mul(self.options.accumulate));
        merge.map_or(micro, |limit| step.min(limit.max(micro)))
    }

    /// Optimizer steps in an epoch; the last one may be shorter.
    pub fn steps(&self) -> usize {
        self.units.div_ceil(self.options.batch_size).div_ceil(self.options.accumulate)
    }

    /// Epochs that `steps` optimizer steps take, the last of them perhaps cut short.
    pub fn epochs(&self, steps: usize) -> usize {
        steps.div_ceil(self.steps().max(1))
    }

    pub fn options(&self) -> &BatchOptions {
        &self.options
    }

    /// The examples' indices in the order of an epoch, a list for each text or bin.
    pub fn order(&self, epoch: usize) -> Vec<Vec<usize>> {
        let generator = Philox::new(self.options.seed, stream::EPOCH ^ epoch as u64);
        let texts = self.examples.len();
        let order = if self.options.shuffle { generator.permutation(texts) } else { (0..texts).collect() };
        let Some(capacity) = self.options.max_tokens.filter(|_| self.options.packing) else {
            return order.into_iter().map(|text| vec![text]).collect();
        };
        let lengths: Vec<usize> = self.examples.iter().map(|example| example.ids.len()).collect();
        let mut bins = packing::best_fit_decreasing(&lengths, &order, capacity);
        if self.options.shuffle {
            // Bins come out longest text first; a second, independent order mixes them.
            let again = Philox::new(self.options.seed, stream::BINS ^ epoch as u64).permutation(bins.len());
            bins = again.into_iter().filter_map(|bin| bins.get_mut(bin).map(std::mem::take)).collect();
        }
        bins
    }

    /// All steps of one epoch, in order.
    pub fn epoch(&self, epoch: usize) -> Vec<Step> {
        self.iter(epoch).collect()
    }

    /// The steps of one epoch, each made when it is asked for.
    pub fn iter(&self, epoch: usize) -> impl Iterator<Item = Step> + use<> {
        let batches = self.clone();
        let order = batches.order(epoch);
        let per_step = batches.options.batch_size.saturating_mul(batches.options.accumulate);
        let first = epoch.saturating_mul(batches.steps());
        (0..batches.steps()).map(move |step| {
            let start = step.saturating_mul(per_step);
            let end = start.saturating_add(per_step).min(order.len());
            batches.step(first.saturating_add(step), order.get(start..end).unwrap_or_default())
        })
    }

    fn step(&self, index: usize, units: &[Vec<usize>]) -> Step {
        let examples = units.iter().flatten().filter_map(|text| self.examples.get(*text));
        let step_targets = examples.map(Example::target_tokens).sum();
        let micro: Vec<MicroBatch> =
            units.chunks(self.options.batch_size).map(|units| self.micro(units, step_targets)).collect();
        let tokens = micro.iter().map(|micro| micro.ids.len()).sum();
        Step { index, micro, tokens, target_tokens: step_targets }
    }

    fn micro(&self, units: &[Vec<usize>], step_targets: usize) -> MicroBatch {
        let mut micro =
            MicroBatch { ids: Vec::new(), cu_seqlens: vec![0], targets: Vec::new(), step_targets, rows: Vec::new() };
        for example in units.iter().flatten().filter_map(|text| self.examples.get(*text)) {
            micro.ids.extend_from_slice(&example.ids);
            micro.targets.extend_from_slice(&example.targets);
            micro.cu_seqlens.push(micro.ids.len() as u32);
            micro.rows.push(example.row.clone());
        }
        micro
    }

    /// How many steps these options lead to.
    pub fn report(&self) -> BatchReport {
        let per_step = self.options.batch_size.saturating_mul(self.options.accumulate);
        BatchReport {
            texts: self.examples.len(),
            tokens: self.examples.iter().map(|example| example.ids.len()).sum(),
            steps: self.steps(),
            batch_size: self.options.batch_size,
            accumulate: self.options.accumulate,
            bins: self.options.packing.then_some(self.units),
            max_tokens: self.options.max_tokens.filter(|_| self.options.packing),
            steps_unpacked: self.examples.len().div_ceil(per_step.max(1)),
        }
    }
}

/// What a choice of batches means; printed it is at most 80 columns wide.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchReport {
    pub texts: usize,
    pub tokens: usize,
    /// In an epoch.
    pub steps: usize,
    pub batch_size: usize,
    pub accumulate: usize,
    /// With packing: the bins of an epoch and their size.
    pub bins: Option<usize>,
    pub max_tokens: Option<usize>,
    /// The steps there would be without packing.
    pub steps_unpacked: usize,
}

impl fmt::Display for BatchReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (texts, steps) = (count(self.texts, "text"), count(self.steps, "step"));
        let unit = if self.bins.is_some() { "bins" } else { "texts" };
        write!(f, "batches   {texts} in {steps} of {} x {} {unit}", self.batch_size, self.accumulate)?;
        if let (Some(bins), Some(max_tokens)) = (self.bins, self.max_tokens) {
            let room = (bins as f64 * max_tokens as f64).max(1.0);
            let full = 100.0 * self.tokens as f64 / room;
            write!(f, "\npacking   {} of {}, {full:.0}% full", count(bins, "bin"), count(max_tokens, "token"))?;
            write!(f, "; unpacked it would be {}", count(self.steps_unpacked, "step"))?;
        }
        Ok(())
    }
}
