//! How well a model predicts texts it does not train on.

use crate::data::Example;
use crate::engine::{Batch, IGNORE};

use super::{Error, Model, Result};

/// Tokens of one pass; a longer text goes alone.
const PASS_TOKENS: usize = 1024;

/// Means over all target tokens of a set of texts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Evaluation {
    /// Mean cross entropy in nats, every target counted once.
    pub loss: f64,
    /// The same without the targets that end a text: about a third of an early fall is learning to stop.
    pub loss_without_eos: f64,
    /// `exp(loss)`
    pub perplexity: f64,
    /// Target tokens.
    pub tokens: usize,
}

#[derive(Default)]
struct Sums {
    loss: f64,
    tokens: usize,
    end_loss: f64,
    ends: usize,
}

impl Model {
    /// Evaluates `examples` without gradients. Allowed while a loss waits for its backward, and leaves it alone.
    pub fn evaluate(&self, examples: &[Example]) -> Result<Evaluation> {
        let ends = self.tokenizer().eos_ids();
        let mut sums = Sums::default();
        let mut pass = Pass::default();
        for example in examples {
            if !pass.ids.is_empty() && pass.ids.len() + example.ids.len() > PASS_TOKENS {
                pass.run(self, ends, &mut sums)?;
            }
            pass.add(example);
        }
        pass.run(self, ends, &mut sums)?;
        let others = sums.tokens - sums.ends;
        if others == 0 {
            return Err(Error::NothingToEvaluate);
        }
        let loss = sums.loss / sums.tokens as f64;
        let loss_without_eos = (sums.loss - sums.end_loss) / others as f64;
        Ok(Evaluation { loss, loss_without_eos, perplexity: loss.exp(), tokens: sums.tokens })
    }
}

/// Texts laid end to end.
#[derive(Default)]
struct Pass {
    ids: Vec<u32>,
    targets: Vec<i32>,
    cu_seqlens: Vec<u32>,
}

impl Pass {
    fn add(&mut self, example: &Example) {
        if example.ids.is_empty() {
            return;
        }
        if self.cu_seqlens.is_empty() {
            self.cu_seqlens.push(0);
        }
        self.ids.extend_from_slice(&example.ids);
        self.targets.extend_from_slice(&example.targets);
        self.cu_seqlens.push(self.ids.len() as u32);
    }

    fn run(&mut self, model: &Model, ends: &[u32], sums: &mut Sums) -> Result<()> {
        if self.targets.iter().all(|target| *target == IGNORE) {
            *self = Self::default();
            return Ok(());
        }
        let batch = Batch { ids: &self.ids, cu_seqlens: &self.cu_seqlens, targets: &self.targets };
        let log_probs = model.log_probs(&batch)?;
        let targets = self.targets.iter().filter(|target| **target != IGNORE);
        for (target, log_prob) in targets.zip(log_probs) {
            sums.loss -= log_prob;
            sums.tokens += 1;
            if ends.iter().any(|end| i64::from(*end) == i64::from(*target)) {
                sums.end_loss -= log_prob;
                sums.ends += 1;
            }
        }
        *self = Self::default();
        Ok(())
    }
}
