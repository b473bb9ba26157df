//! From logits to the next token, by Hugging Face's rules in Hugging Face's order.

use crate::philox::Philox;

use super::{Error, Result};

/// Stream of a seed that sampling draws from, so that it shares no number with shuffles or initial weights.
const STREAM: u64 = 0x53_41_4D_50;

/// How the next token is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 takes the most likely token.
    pub temperature: f64,
    /// Keeps the k most likely tokens, and those as likely as the k-th.
    pub top_k: Option<usize>,
    /// Keeps the smallest set of most likely tokens whose probabilities reach p.
    pub top_p: Option<f64>,
    /// Divides positive and multiplies negative logits of tokens that occurred; 1 changes nothing.
    pub repetition_penalty: f64,
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 0.0, top_k: None, top_p: None, repetition_penalty: 1.0, seed: 0 }
    }
}

impl Sampling {
    /// The tokens that can follow and their probabilities, in order of token id.
    ///
    /// Order as in transformers' `generate`: repetition penalty, temperature, top_k, top_p. `seen` is the prompt and
    /// what was generated. Scores are f32 as there; the softmax sums in f64.
    pub fn distribution(&self, logits: &[f32], seen: &[u32]) -> Result<Vec<(u32, f64)>> {
        let mut scores = logits.to_vec();
        self.penalise(&mut scores, seen);
        if let Some(token) = scores.iter().position(|score| score.is_nan() || *score == f32::INFINITY) {
            return Err(Error::NotFinite { token });
        }
        if self.temperature == 0.0 {
            let token = most_likely(&scores).ok_or(Error::NoLogits)?;
            return Ok(vec![(token, 1.0)]);
        }
        // From the highest down, so that no temperature, however small, makes the likeliest score infinite.
        let highest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let scores = scores.into_iter().map(|score| (f64::from(score - highest) / self.temperature) as f32);
        let mut kept: Vec<(u32, f32)> = (0u32..).zip(scores).filter(|(_, score)| score.is_finite()).collect();
        if let Some(k) = self.top_k {
            keep_top_k(&mut kept, k.max(1));
        }
        if let Some(p) = self.top_p.filter(|p| *p < 1.0) {
            keep_top_p(&mut kept, p);
        }
        if kept.is_empty() {
            return Err(Error::NoLogits);
        }
        let probabilities = softmax(&kept);
        Ok(kept.into_iter().map(|(token, _)| token).zip(probabilities).collect())
    }

    /// The token at `position` of the generated text: a pure function of logits, history, seed and position.
    pub fn choose(&self, logits: &[f32], seen: &[u32], position: u64) -> Result<u32> {
        let kept = self.distribution(logits, seen)?;
        let mut left = Philox::new(self.seed, STREAM).uniform_at(position);
        for (token, probability) in &kept {
            left -= probability;
            if left < 0.0 {
                return Ok(*token);
            }
        }
        // Rounding can leave a sliver above the sum: the last token that can follow owns it.
        kept.last().map(|(token, _)| *token).ok_or(Error::NoLogits)
    }

    fn penalise(&self, scores: &mut [f32], seen: &[u32]) {
        if self.repetition_penalty == 1.0 {
            return;
        }
        let penalty = self.repetition_penalty as f32;
        let mut tokens = seen.to_vec();
        tokens.sort_unstable();
        tokens.dedup();
        for token in tokens {
            if let Some(score) = scores.get_mut(token as usize) {
                *score = if *score < 0.0 { *score * penalty } else { *score / penalty };
            }
        }
    }
}

/// The first of the highest scores.
fn most_likely(scores: &[f32]) -> Option<u32> {
    let mut best: Option<(u32, f32)> = None;
    for (token, score) in (0u32..).zip(scores) {
        if score.is_finite() && best.is_none_or(|(_, highest)| *score > highest) {
            best = Some((token, *score));
        }
    }
    best.map(|(token, _)| token)
}

fn keep_top_k(kept: &mut Vec<(u32, f32)>, k: usize) {
    if k >= kept.len() {
        return;
    }
    let mut scores: Vec<f32> = kept.iter().map(|(_, score)| *score).collect();
    let (_, threshold, _) = scores.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
    let threshold = *threshold;
    kept.retain(|(_, score)| *score >= threshold);
}

/// Drops the least likely tokens whose probabilities together stay at or below `1 - p`; the likeliest always stays.
fn keep_top_p(kept: &mut Vec<(u32, f32)>, p: f64) {
    let probabilities = softmax(kept);
    let mut order: Vec<usize> = (0..kept.len()).collect();
    order.sort_by(|&a, &b| kept[a].1.total_cmp(&kept[b].1));
    let mut dropped = vec![false; kept.len()];
    let mut sum = 0.0;
    for &index in order.iter().take(order.len().saturating_sub(1)) {
        sum += probabilities[index];
        if sum > 1.0 - p {
            break;
        }
        dropped[index] = true;
    }
    let mut index = 0;
    kept.retain(|_| {
        index += 1;
        !dropped[index - 1]
    });
}

fn softmax(kept: &[(u32, f32)]) -> Vec<f64> {
    let highest = kept.iter().map(|(_, score)| *score).fold(f32::NEG_INFINITY, f32::max);
    let weights: Vec<f64> = kept.iter().map(|(_, score)| f64::from(score - highest).exp()).collect();
    let sum: f64 = weights.iter().sum();
    weights.into_iter().map(|weight| weight / sum).collect()
}
