//! A few new tokens of one text: the same layers as a pass, on buffers that stay where they are from step to step.

use crate::kernels::{Backend, LoraGroup, StepLinear, StepScratch};

use super::Result;
use super::layer::Layer;
use super::net::Net;

/// Tokens up to which a text goes on in steps: so many rows a device multiplies with at the cost of one.
pub(super) const MOST_TOKENS: usize = 8;

/// The buffers of the steps of one text, and the recording of the last.
#[derive(Debug)]
pub(super) struct Step<B: Backend> {
    x: B::Act,
    middle: B::Act,
    normed: B::Act,
    qkv: B::Act,
    o: B::Act,
    gate_up: B::Act,
    h: B::Act,
    s: B::Act,
    last: B::Act,
    logits: B::Act,
    rstd: B::Full,
    place: Option<Place<B>>,
    recording: B::Recording,
}

/// The tokens of a step, where they are in their text, and which row is the last.
#[derive(Debug)]
struct Place<B: Backend> {
    tokens: usize,
    ids: B::Index,
    segments: B::Segments,
    last: B::Index,
}

/// The keys and values of one layer.
pub(super) type Caches<B> = (<B as Backend>::Act, <B as Backend>::Act);

impl<B: Backend> Step<B> {
    pub fn new(backend: &B) -> Result<Self> {
        let act = || backend.act();
        Ok(Self {
            x: act(),
            middle: act(),
            normed: act(),
            qkv: act(),
            o: act(),
            gate_up: act(),
            h: act(),
            s: act(),
            last: act(),
            logits: act(),
            rstd: backend.full(0)?,
            place: None,
            recording: B::Recording::default(),
        })
    }

    /// Reads `ids` behind the `cached` rows of `layers` and returns the logits (V) that follow the last of them.
    pub fn read(&mut self, net: &Net<B>, ids: &[u32], layers: &mut [Caches<B>], cached: usize) -> Result<Vec<f32>> {
        net.cancel.check()?;
        let (b, width) = (&*net.backend, net.attention.kv_heads * net.attention.head_dim);
        let mut room = usize::MAX;
        for (keys, values) in &mut *layers {
            for cache in [keys, values] {
                room = room.min(b.reserve(cache, cached + ids.len(), width)?);
            }
        }
        let mut place = match self.place.take().filter(|place| place.tokens == ids.len()) {
            Some(mut place) => {
                b.rewrite(&mut place.ids, ids)?;
                b.shift(&mut place.segments, cached)?;
                place
            }
            None => Place {
                tokens: ids.len(),
                ids: b.index(ids)?,
                segments: b.segments(&[0, ids.len() as u32], cached)?,
                last: b.index(&[ids.len() as u32 - 1])?,
            },
        };
        let mut recording = std::mem::take(&mut self.recording);
        let params = net.lora.as_ref().filter(|_| net.adapter_enabled).map(|lora| &lora.params);
        let done = b.repeat(&mut recording, [ids.len(), room], params, || self.pass(net, &mut place, layers, cached));
        self.recording = recording;
        self.place = Some(place);
        done?;
        Ok(b.read_act(&self.logits)?)
    }

    fn pass(&mut self, net: &Net<B>, place: &mut Place<B>, layers: &mut [Caches<B>], cached: usize) -> Result<()> {
        let b = &*net.backend;
        b.embed(&net.frozen.embedding, &place.ids, &mut self.x)?;
        for (index, caches) in layers.iter_mut().enumerate() {
            self.layer(&net.layer(index, None)?, &place.segments, caches, cached)?;
        }
        let head = net.head();
        let last = match place.tokens {
            1 => &self.x,
            _ => {
                b.gather_rows(&self.x, &place.last, &mut self.last)?;
                &self.last
            }
        };
        b.norm_down(last, head.norm, head.eps, None, &mut self.normed, &mut self.rstd, &mut self.s)?;
        Ok(b.linear(&self.normed, head.weight, None, None, &mut self.logits)?)
    }

    /// `x` through one layer.
    fn layer(
        &mut self,
        layer: &Layer<'_, B>,
        segments: &B::Segments,
        (keys, values): &mut Caches<B>,
        cached: usize,
    ) -> Result<()> {
        let (b, w, eps) = (layer.backend, layer.weights, layer.eps);
        let adapters = |group: usize| -> Option<(&LoraGroup, &B::Full)> {
            let (groups, params) = layer.lora?;
            groups[group].as_ref().map(|group| (group, params))
        };
        let Self { x, middle, normed, qkv, o, gate_up, h, s, rstd, .. } = self;
        let mut scratch = StepScratch { normed, rstd, s, gate_up };
        let plain = |weight, group: usize| Parts::<B> { norm: None, weight, lora: adapters(group) };
        let normed = |weight, norm, group: usize| Parts::<B> { norm: Some((norm, eps)), ..plain(weight, group) };
        b.step_linear(&normed(&w.qkv, &w.input_norm, 0).of(x, None), &mut scratch, qkv)?;
        let frequencies = layer.inverse_frequencies;
        b.attention_step(qkv, (keys, values), cached, segments, layer.attention, frequencies, o)?;
        b.step_linear(&plain(&w.o, 1).of(o, Some(x)), &mut scratch, middle)?;
        let gate_up = StepLinear { is_gate_up: true, ..normed(&w.gate_up, &w.post_attention_norm, 2).of(middle, None) };
        b.step_linear(&gate_up, &mut scratch, h)?;
        Ok(b.step_linear(&plain(&w.down, 3).of(h, Some(middle)), &mut scratch, x)?)
    }
}

/// What a linear layer is made of, apart from what it is given.
struct Parts<'a, B: Backend> {
    norm: Option<(&'a B::Full, f64)>,
    weight: &'a B::Weight,
    lora: Option<(&'a LoraGroup, &'a B::Full)>,
}

impl<'a, B: Backend> Parts<'a, B> {
    fn of<'b>(self, x: &'b B::Act, residual: Option<&'b B::Act>) -> StepLinear<'b, B>
    where
        'a: 'b,
    {
        let Self { norm, weight, lora } = self;
        StepLinear { x, norm, weight, lora, residual, is_gate_up: false }
    }
}
