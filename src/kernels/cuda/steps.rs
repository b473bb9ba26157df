//! The operations of a decoding step that the GPU does in one launch each, where it has a kernel.

use std::sync::PoisonError;

use super::Cuda;
use super::buffers::{Act, Full, Segments, Shape};
use super::weight::Weight;
use crate::kernels::{
    Attention, Backend, LoraGroup, Result, StepLinear, StepScratch, attention, linear, lora, rms_norm, rope, same,
};

impl Cuda {
    /// `Backend::norm_down`.
    pub(super) fn step_norm_down(
        &self,
        x: &Act,
        (weight, eps): (&Full, f64),
        lora: Option<(&LoraGroup, &Full)>,
        y: &mut Act,
        rstd: &mut Full,
        s: &mut Act,
    ) -> Result<()> {
        if !lora::rows::fits(x, lora.map(|(group, _)| group)) {
            self.rms_norm(x, weight, eps, y, rstd)?;
            return lora.map_or(Ok(()), |(group, params)| self.lora_down(y, group, params, s));
        }
        let (mut out, mut rows) = (Shape::new(), Vec::new());
        rms_norm::prepare(&x.shape(), &weight.shape(), &mut out, &mut rows)?;
        self.fit(y, &out)?;
        let adapters = match lora {
            Some((group, params)) => {
                lora::prepare_down(&x.shape(), group, &params.shape(), &mut out)?;
                self.fit(s, &out)?;
                Some((group, params, s))
            }
            None => None,
        };
        lora::rows::down(&self.device, x, Some(lora::rows::Norm { weight, eps, y }), adapters)
    }

    /// `Backend::step_linear`: in one launch where there is a kernel, else in two.
    pub(super) fn step_whole(
        &self,
        step: &StepLinear<'_, Self>,
        scratch: &mut StepScratch<'_, Self>,
        y: &mut Act,
    ) -> Result<()> {
        let &StepLinear { x, norm, weight: w, lora, residual, is_gate_up } = step;
        let (mut s_shape, mut out) = (Shape::new(), Shape::new());
        let params = lora.map(|(_, params)| params.shape()).unwrap_or_default();
        if let Some((group, _)) = lora {
            lora::prepare_down(&x.shape(), group, &params, &mut s_shape)?;
            self.fit(scratch.s, &s_shape)?;
        }
        if let Some((weight, _)) = norm {
            same("step_linear", "the length of the norm's weight", weight.len(), x.cols)?;
        }
        let shapes = lora.map(|(group, _)| (group, params.as_slice(), &s_shape));
        if is_gate_up {
            linear::prepare_swiglu(&x.shape(), (w.rows, w.cols), shapes, &mut out)?;
        } else {
            linear::prepare(&x.shape(), (w.rows, w.cols), shapes, residual.map(Act::shape).as_ref(), &mut out)?;
        }
        self.fit(y, &out)?;
        let begin = linear::rows::Begin { norm, arrived: self.arrived.pointer() };
        let adapters = lora.map(|(group, params)| (group, params, &*scratch.s));
        let half = if is_gate_up { y.cols } else { 0 };
        if linear::rows::whole(&self.device, x, w, adapters, begin, (residual, half), y)? {
            return Ok(());
        }
        let x = match norm {
            Some((weight, eps)) => {
                self.step_norm_down(x, (weight, eps), lora, scratch.normed, scratch.rstd, scratch.s)?;
                &*scratch.normed
            }
            None => {
                if let Some((group, params)) = lora {
                    self.lora_down(x, group, params, scratch.s)?;
                }
                x
            }
        };
        let adapters = lora.map(|(group, params)| (group, params, &*scratch.s));
        match is_gate_up {
            true => self.step_swiglu(x, w, adapters, scratch.gate_up, y),
            false => self.linear(x, w, adapters, residual, y),
        }
    }

    /// gate|up and `swiglu`, in one launch where there is a kernel.
    pub(super) fn step_swiglu(
        &self,
        x: &Act,
        w: &Weight,
        adapters: Option<(&LoraGroup, &Full, &Act)>,
        gate_up: &mut Act,
        h: &mut Act,
    ) -> Result<()> {
        let mut out = Shape::new();
        let (params, s) = adapters.map(|(_, params, s)| (params.shape(), s.shape())).unwrap_or_default();
        let shapes = adapters.map(|(group, ..)| (group, params.as_slice(), &s));
        linear::prepare_swiglu(&x.shape(), (w.rows, w.cols), shapes, &mut out)?;
        self.fit(h, &out)?;
        if linear::rows::swiglu(&self.device, x, w, adapters, h)? {
            return Ok(());
        }
        self.linear(x, w, adapters, None, gate_up)?;
        self.swiglu(gate_up, h)
    }

    /// `Backend::attention_step`.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn step_attention(
        &self,
        qkv: &mut Act,
        (keys, values): (&mut Act, &mut Act),
        cached: usize,
        segments: &Segments,
        attention: &Attention,
        inverse_frequencies: &Full,
        o: &mut Act,
    ) -> Result<()> {
        rope::check(&qkv.shape(), &segments.texts, attention, &inverse_frequencies.shape())?;
        same("attention_step", "the first position", segments.texts.position_end(), cached + qkv.rows)?;
        if !attention::step::fits(qkv.rows, attention) {
            self.rope(qkv, segments, attention, inverse_frequencies, 1.0)?;
            return self.attention_cached(qkv, keys, values, cached, attention, o);
        }
        let (mut new_keys, mut new_values, mut out) = (keys.shape(), values.shape(), Shape::new());
        attention::prepare_cached(&qkv.shape(), &mut new_keys, &mut new_values, cached, attention, &mut out)?;
        self.hold((&mut *keys, &new_keys), (&mut *values, &new_values))?;
        self.fit(o, &out)?;
        let mut table = self.rotations.lock().unwrap_or_else(PoisonError::into_inner);
        let (half, positions) = (attention.head_dim / 2, keys.capacity());
        let table = rope::cuda::covering(&self.device, &mut table, inverse_frequencies, half, positions)?.pointer();
        attention::step::step(&self.device, &self.partial, table, qkv, (keys, values), segments, attention, o)
    }

    /// `Backend::append`.
    pub(super) fn append_rows(
        &self,
        qkv: &Act,
        keys: &mut Act,
        values: &mut Act,
        cached: usize,
        attention: &Attention,
    ) -> Result<()> {
        let (mut new_keys, mut new_values) = (keys.shape(), values.shape());
        attention::append("append", &qkv.shape(), &mut new_keys, &mut new_values, cached, attention)?;
        self.hold((&mut *keys, &new_keys), (&mut *values, &new_values))?;
        attention::cuda::append(&self.device, qkv, (keys, values), cached, attention)
    }

    /// `Backend::attention_cached`.
    pub(super) fn attend_cached(
        &self,
        qkv: &Act,
        (keys, values): (&mut Act, &mut Act),
        cached: usize,
        attention: &Attention,
        o: &mut Act,
    ) -> Result<()> {
        attention::cuda::check(attention)?;
        self.append_rows(qkv, keys, values, cached, attention)?;
        o.fit(&self.device, qkv.rows, attention.heads * attention.head_dim)?;
        attention::cuda::cached(&self.device, qkv, (keys, values), cached, attention, o)
    }

    /// Gives the caches the room for their new shapes.
    fn hold(&self, keys: (&mut Act, &Shape), values: (&mut Act, &Shape)) -> Result<()> {
        for (cache, shape) in [keys, values] {
            cache.reserve(&self.device, shape.rows, shape.cols)?;
        }
        Ok(())
    }
}
