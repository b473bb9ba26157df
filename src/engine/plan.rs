//! What a training pass keeps for its backward, what it computes anew, and how many bytes that takes.
//!
//! A plan is made for a number of tokens before the first pass of that size; every buffer is then sized, so that a pass
//! which does not fit fails before it starts. Kept per token and layer, with D = hidden_size, F = intermediate_size and
//! 16-bit activations, for Mistral-7B: the input 8 KB, q|k|v and attention's output 21 KB, the stream between attention
//! and MLP 8 KB, gate|up 57 KB. What is not kept is computed again from the input; the product with `down_proj` never is.

use std::fmt;
use std::str::FromStr;

use super::{Error, Result};

/// How much memory training may take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Memory {
    /// The least there is a way to: layer inputs and the embedding in the computer's memory, the MLP in tiles.
    Lean,
    /// Layer inputs in the computer's memory once they are large; beyond that what fits into 64 bytes per token and
    /// hidden unit, but at least 512 MB.
    #[default]
    Balanced,
    /// Whatever is free: nothing is computed twice if it can be kept.
    Speed,
    /// So many bytes on the device, everything counted that is there when training starts.
    Bytes(u64),
}

impl FromStr for Memory {
    /// What it must be instead.
    type Err = &'static str;

    /// `lean`, `balanced`, `speed`, or bytes as in `7GB`, `6.5 GiB`, `900 MB`.
    fn from_str(text: &str) -> std::result::Result<Self, Self::Err> {
        let units = [("GiB", (1_u64 << 30) as f64), ("MiB", (1_u64 << 20) as f64), ("GB", 1e9), ("MB", 1e6)];
        let bytes = units.into_iter().find_map(|(unit, size)| {
            let number: f64 = text.strip_suffix(unit)?.trim_end().parse().ok()?;
            (number.is_finite() && number > 0.0).then_some(Self::Bytes((number * size) as u64))
        });
        match text {
            "lean" => Ok(Self::Lean),
            "balanced" => Ok(Self::Balanced),
            "speed" => Ok(Self::Speed),
            _ => bytes.ok_or("must be \"balanced\", \"lean\", \"speed\" or a budget like \"7GB\""),
        }
    }
}

/// What a layer keeps; each level keeps what those before it keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// The layer's input and what the adapters' first matrices made of it.
    Input,
    /// q|k|v and attention's output.
    Attention,
    /// The stream between attention and MLP.
    Middle,
    /// gate|up: nothing is computed twice.
    All,
}

/// The numbers of a model that memory depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sizes {
    pub layers: usize,
    /// Below this layer no gradient is needed, so nothing is kept.
    pub lowest: usize,
    pub hidden: usize,
    pub wide: usize,
    pub heads: usize,
    /// Columns of the queries, and of q|k|v.
    pub queries: usize,
    pub qkv: usize,
    /// Rows of logits at a time, and their columns.
    pub head_rows: usize,
    pub vocabulary: usize,
    /// Columns of the four groups' `s`, the largest of any layer.
    pub ranks: [usize; 4],
    /// Bytes attention's backward takes for every token while it runs.
    pub attention: usize,
    /// Bytes of a value of an activation, and of a statistic.
    pub act: usize,
    pub full: usize,
}

/// One line of the printed plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    pub name: &'static str,
    pub bytes: usize,
}

/// A training pass's memory, decided before it starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The most tokens of a pass.
    pub tokens: usize,
    /// Per layer.
    pub levels: Vec<Level>,
    /// Layer inputs are in the computer's memory.
    pub offload: bool,
    /// Rows the MLP computes at a time; `None` is all.
    pub tile: Option<usize>,
    /// What the pass takes on the device, beside what is there already.
    pub items: Vec<Item>,
    /// Bytes on the device when the plan was made, if the device counts them.
    pub used: Option<usize>,
}

/// Layer inputs stay on the device while one is smaller than this.
const OFFLOAD_FROM: usize = 2 << 20;
/// The fewest rows of an MLP tile worth starting a product for, and the most of the lean mode.
const LEAST_TILE: usize = 512;
const LEAN_TILE: usize = 2048;
/// What `Balanced` may take whatever the number of tokens, and per token and hidden unit.
const BALANCED_LEAST: usize = 512 << 20;
const BALANCED_PER_VALUE: usize = 64;
/// Layer inputs on the device while others travel.
pub(super) const RING: usize = 2;

impl Plan {
    /// Keeps everything, for any number of tokens: for devices that have no memory of their own.
    pub(super) fn everything(sizes: &Sizes, tokens: usize) -> Self {
        Self { levels: vec![Level::All; sizes.layers], ..Self::least(sizes, tokens, false, None) }.counted(sizes)
    }

    fn least(sizes: &Sizes, tokens: usize, offload: bool, tile: Option<usize>) -> Self {
        // below the lowest adapter nothing is kept and nothing computed again
        let mut levels = vec![Level::All; sizes.lowest.min(sizes.layers)];
        levels.resize(sizes.layers, Level::Input);
        Self { tokens, levels, offload, tile, items: Vec::new(), used: None }.counted(sizes)
    }

    /// The fastest plan within `memory`; `used` and `free` are the device's bytes now. Without them nothing is known of
    /// the device, and everything is kept unless `memory` says otherwise.
    pub(super) fn choose(
        sizes: &Sizes,
        tokens: usize,
        memory: Memory,
        device: Option<(usize, usize)>,
        has_host: bool,
    ) -> Result<Self> {
        let everything = Self::everything(sizes, tokens);
        let lean_tile = (tokens > LEAN_TILE).then_some(LEAN_TILE);
        let Some((used, free)) = device else {
            return match memory {
                Memory::Balanced | Memory::Speed => Ok(everything),
                Memory::Lean => Ok(Self::least(sizes, tokens, false, lean_tile)),
                Memory::Bytes(bytes) => Self::within(sizes, tokens, bytes as usize, false)
                    .ok_or_else(|| Self::too_small(sizes, tokens, bytes as usize, 0, false)),
            };
        };
        let has_host = has_host && tokens * sizes.hidden * sizes.act > OFFLOAD_FROM;
        // a twentieth of what is free stays free: for the driver's own rounding, and for what a script adds
        let free = free - free / 20;
        let most = match memory {
            Memory::Speed => free,
            Memory::Lean => {
                let lean = Self::least(sizes, tokens, has_host, lean_tile);
                let fits = lean.bytes() <= free;
                let plan = if fits { Some(lean) } else { Self::within(sizes, tokens, free, has_host) };
                return plan
                    .map(|plan| Self { used: Some(used), ..plan })
                    .ok_or_else(|| Self::too_small(sizes, tokens, free, used, has_host));
            }
            Memory::Balanced => free.min(BALANCED_LEAST.max(BALANCED_PER_VALUE * sizes.hidden * tokens)),
            Memory::Bytes(bytes) => free.min((bytes as usize).saturating_sub(used)),
        };
        let within = |most| Self::within(sizes, tokens, most, has_host);
        let plan = match (within(most), memory) {
            (Some(plan), _) => plan,
            // its limit is a habit, not a wish
            (None, Memory::Balanced) => match Self::within_least(sizes, tokens, free, has_host) {
                Some(plan) => plan,
                None => return Err(Self::too_small(sizes, tokens, free, used, has_host)),
            },
            (None, _) => return Err(Self::too_small(sizes, tokens, most, used, has_host)),
        };
        Ok(Self { used: Some(used), ..plan })
    }

    /// The ways to lay a pass out, from the fastest to the smallest.
    fn ways(sizes: &Sizes, tokens: usize, has_host: bool) -> Vec<Self> {
        let mut ways = Vec::new();
        for offload in [false, true] {
            if !offload || has_host {
                ways.push(Self::least(sizes, tokens, offload, None));
            }
        }
        let mut tile = tokens.div_ceil(2);
        while tile >= LEAST_TILE {
            ways.push(Self::least(sizes, tokens, has_host, Some(tile.next_multiple_of(64))));
            tile = tile.div_ceil(2);
        }
        ways
    }

    /// The first way that fits into `most`, with as much kept as there is room for.
    fn within(sizes: &Sizes, tokens: usize, most: usize, has_host: bool) -> Option<Self> {
        let everything = Self::everything(sizes, tokens);
        if everything.bytes() <= most {
            return Some(everything);
        }
        // inputs travel while the device computes, so their room is better spent on what would be computed twice
        let ways = Self::ways(sizes, tokens, has_host);
        let plan = ways.into_iter().find(|way| way.bytes() <= most && (way.offload || !has_host))?;
        Some(plan.filled(sizes, most))
    }

    /// The smallest way that fits: when even `Balanced` has to give way.
    fn within_least(sizes: &Sizes, tokens: usize, most: usize, has_host: bool) -> Option<Self> {
        Self::ways(sizes, tokens, has_host).into_iter().find(|way| way.bytes() <= most)
    }

    /// Raises levels from the last layer on: what it keeps is used first and its memory is free again soonest.
    fn filled(mut self, sizes: &Sizes, most: usize) -> Self {
        let highest = if self.tile.is_some() { Level::Middle } else { Level::All };
        // what the last layer computes is still there when its backward begins
        for layer in (sizes.lowest..sizes.layers.saturating_sub(1)).rev() {
            for level in [Level::All, Level::Middle, Level::Attention] {
                if level > highest {
                    continue;
                }
                let before = std::mem::replace(&mut self.levels[layer], level);
                self = self.counted(sizes);
                if self.bytes() <= most {
                    break;
                }
                self.levels[layer] = before;
            }
            self = self.counted(sizes);
            if self.levels[layer] < highest {
                break;
            }
        }
        self
    }

    fn too_small(sizes: &Sizes, tokens: usize, most: usize, used: usize, has_host: bool) -> Error {
        let least = Self::ways(sizes, tokens, has_host).iter().map(Self::bytes).min().unwrap_or_default();
        Error::Memory { tokens, needed: used + least, given: used + most }
    }

    /// Bytes the pass takes on the device.
    pub fn bytes(&self) -> usize {
        self.items.iter().map(|item| item.bytes).sum()
    }

    /// Bytes on the device at the worst moment, if the device counts them.
    pub fn peak(&self) -> Option<usize> {
        self.used.map(|used| used + self.bytes())
    }

    /// Layers of which the backward computes something again; the last one's state is still there when it begins.
    pub fn computed_twice(&self) -> usize {
        let last = self.levels.len().saturating_sub(1);
        let again = self.levels[..last].iter().filter(|&&level| level != Level::All).count();
        again + usize::from(self.tile.is_some())
    }

    fn counted(mut self, sizes: &Sizes) -> Self {
        let (s, t) = (sizes, self.tokens);
        let rows = self.tile.map_or(t, |tile| tile.min(t));
        let is_tiled = self.tile.is_some();
        let kept: usize = (s.lowest..s.layers).map(|layer| kept_bytes(s, t, self.levels[layer], is_tiled)).sum();
        let input = t * s.hidden * s.act;
        let inputs = if self.offload { RING.min(s.layers) * input } else { (s.layers - s.lowest) * input };
        // x, q|k|v, o, the middle, log-sum-exps, gate|up of one layer
        let layer = 2 * input + t * (s.qkv + s.queries) * s.act + t * s.heads * s.full + rows * 2 * s.wide * s.act;
        // next, normed, dx; dq|dk|dv; h; ds; D of attention
        let widest = s.ranks.iter().max().copied().unwrap_or(0);
        let head_rows = s.head_rows.min(t);
        // the logits of a chunk share h's buffer
        let h = (rows * s.wide).max(head_rows * s.vocabulary) * s.act;
        let work = 3 * input + t * ((s.qkv + widest) * s.act + (s.heads + 1) * s.full + s.attention) + h;
        let tiles = if is_tiled { rows * (3 * s.hidden + s.ranks[2] + s.ranks[3]) * s.act } else { 0 };
        let head = head_rows * 4 * s.hidden * s.act;
        // ids, targets, borders, positions and attention's tiles, and the losses of the rows
        let small = t * 40;
        self.items = [
            ("layer inputs", inputs),
            ("kept for the backward", kept),
            ("one layer's state", layer),
            ("working buffers", work + tiles + small),
            ("the head's buffers", head),
        ]
        .into_iter()
        .map(|(name, bytes)| Item { name, bytes })
        .collect();
        self
    }
}

/// What one layer keeps beside its input.
fn kept_bytes(s: &Sizes, tokens: usize, level: Level, is_tiled: bool) -> usize {
    let ranks = if is_tiled { s.ranks[0] + s.ranks[1] } else { s.ranks.iter().sum() };
    let mut per_token = ranks * s.act + 2 * s.full;
    if level >= Level::Attention {
        per_token += (s.qkv + s.queries) * s.act + s.heads * s.full;
    }
    if level >= Level::Middle {
        per_token += s.hidden * s.act;
    }
    if level >= Level::All {
        per_token += 2 * s.wide * s.act;
    }
    tokens * per_token
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gb = |bytes: usize| bytes as f64 / 1e9;
        writeln!(f, "memory for passes of up to {} tokens:", self.tokens)?;
        if let Some(used) = self.used {
            writeln!(f, "  {:<28} {:>7.3} GB", "on the device already", gb(used))?;
        }
        for item in &self.items {
            writeln!(f, "  {:<28} {:>7.3} GB", item.name, gb(item.bytes))?;
        }
        if let Some(peak) = self.peak() {
            writeln!(f, "  {:<28} {:>7.3} GB", "predicted peak", gb(peak))?;
        }
        write!(f, "  layers computed twice: {} of {}", self.computed_twice(), self.levels.len())?;
        if self.offload {
            write!(f, "; their inputs wait in the computer's memory")?;
        }
        if let Some(tile) = self.tile {
            write!(f, "; MLP in tiles of {tile} tokens")?;
        }
        Ok(())
    }
}
