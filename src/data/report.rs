//! What a data set holds: counted, and shown in a few aligned lines.

use std::collections::HashMap;
use std::fmt;

use super::tokenized::{Counts, Example, key};

/// The facts about tokenised texts; printed it is at most 80 columns wide.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Rows that became at least one example.
    pub rows: usize,
    pub examples: usize,
    pub tokens: usize,
    /// Tokens that are learned: all but the first of each example.
    pub target_tokens: usize,
    /// Tokens of the shortest example, and so on; the median and the 90th percentile are lengths that occur.
    pub shortest: usize,
    pub median: usize,
    pub p90: usize,
    pub longest: usize,
    /// Rows that repeat an earlier row's tokens exactly.
    pub duplicates: usize,
    /// Distinct texts among the rows that occur more than once.
    pub duplicated_texts: usize,
    /// Examples that end with a trained end-of-sequence token.
    pub eos_trained: usize,
    /// That token, if one was asked for.
    pub eos: Option<String>,
    /// Always 0: texts are laid end to end.
    pub padded: usize,
    /// Texts cut to `max_length`, and the tokens lost by it.
    pub cut: usize,
    pub cut_tokens: usize,
    pub dropped: usize,
    /// Texts that became several examples.
    pub split: usize,
    /// Tokens that stand for characters the vocabulary lacks.
    pub unknown: usize,
    /// In a held-out part: rows that are copies of training rows.
    pub held_out_copies: Option<usize>,
}

impl Report {
    pub(super) fn new(examples: &[Example], counts: Counts, eos: Option<&str>, copies: Option<usize>) -> Self {
        let mut lengths: Vec<usize> = examples.iter().map(|example| example.ids.len()).collect();
        lengths.sort_unstable();
        let mut seen: HashMap<Vec<&[u32]>, usize> = HashMap::new();
        let mut rows = 0;
        for row in examples.chunk_by(|a, b| a.row == b.row) {
            rows += 1;
            *seen.entry(key(row)).or_default() += 1;
        }
        Self {
            rows,
            examples: examples.len(),
            tokens: lengths.iter().sum(),
            target_tokens: examples.iter().map(Example::target_tokens).sum(),
            shortest: lengths.first().copied().unwrap_or(0),
            median: percentile(&lengths, 50),
            p90: percentile(&lengths, 90),
            longest: lengths.last().copied().unwrap_or(0),
            duplicates: rows - seen.len(),
            duplicated_texts: seen.values().filter(|count| **count > 1).count(),
            eos_trained: examples.iter().filter(|example| example.ends).count(),
            eos: eos.map(str::to_owned),
            padded: 0,
            cut: counts.cut,
            cut_tokens: counts.cut_tokens,
            dropped: counts.dropped,
            split: counts.split,
            unknown: counts.unknown,
            held_out_copies: copies,
        }
    }

    /// One line: `500 texts, 27 904 tokens; 0 duplicates, 0 padded, 500 end with a trained </s>`.
    pub fn summary(&self) -> String {
        let end = match &self.eos {
            Some(eos) => format!("{} end with a trained {eos}", grouped(self.eos_trained)),
            None => "no end trained".to_owned(),
        };
        format!(
            "{}, {}; {}, {} padded, {end}",
            count(self.rows, "text"),
            count(self.tokens, "token"),
            self.duplicates(),
            grouped(self.padded)
        )
    }

    /// `480 duplicates of 20 texts`
    fn duplicates(&self) -> String {
        let duplicates = count(self.duplicates, "duplicate");
        if self.duplicates == 0 {
            return duplicates;
        }
        format!("{duplicates} of {}", count(self.duplicated_texts, "text"))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "texts     {}", grouped(self.rows))?;
        if self.examples != self.rows {
            write!(f, ", {}", count(self.examples, "example"))?;
        }
        writeln!(f, "\ntokens    {}, {} of them targets", grouped(self.tokens), grouped(self.target_tokens))?;
        writeln!(
            f,
            "length    {} to {} tokens; median {}, 90% up to {}",
            grouped(self.shortest),
            grouped(self.longest),
            grouped(self.median),
            grouped(self.p90)
        )?;
        writeln!(f, "copies    {}", self.duplicates())?;
        match &self.eos {
            Some(eos) => {
                let (ending, all) = (grouped(self.eos_trained), grouped(self.examples));
                writeln!(f, "endings   {ending} of {all} end with a trained `{eos}`")?;
            }
            None => writeln!(f, "endings   none is trained (`add_eos` is false)")?,
        }
        write!(f, "padding   {}", count(self.padded, "token"))?;
        let (cut, dropped, split) = (grouped(self.cut), grouped(self.dropped), grouped(self.split));
        write!(f, "\nchanged   {cut} cut, {dropped} dropped, {split} split")?;
        if self.cut > 0 {
            write!(f, "\nlost      {} by cutting", count(self.cut_tokens, "token"))?;
        }
        if self.unknown > 0 {
            write!(f, "\nunknown   {} for characters the model does not know", count(self.unknown, "token"))?;
        }
        if let Some(copies) = self.held_out_copies {
            write!(f, "\nheld out  {} of {} are copies of training texts", grouped(copies), grouped(self.rows))?;
        }
        Ok(())
    }
}

/// The smallest length that at least `percent` % of the sorted lengths do not exceed.
fn percentile(sorted: &[usize], percent: usize) -> usize {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or(0)
}

/// `27 904`
pub(super) fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(' ');
        }
        out.push(digit);
    }
    out
}

/// `1 text`, `2 texts`
pub(super) fn count(number: usize, what: &str) -> String {
    format!("{} {what}{}", grouped(number), if number == 1 { "" } else { "s" })
}
