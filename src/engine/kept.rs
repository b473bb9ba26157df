//! What a training pass keeps until its backward, layer by layer, as the plan says.

use crate::kernels::Backend;

use super::Result;
use super::layer::Saved;
use super::plan::{Plan, RING, Sizes};

/// The layers' state between forward and backward.
#[derive(Debug)]
pub(super) struct Kept<B: Backend> {
    layers: Vec<Saved<B>>,
    inputs: Option<Offloaded<B>>,
}

/// Layer inputs outside the device, and the few that are on it.
#[derive(Debug)]
struct Offloaded<B: Backend> {
    /// Of the layers from `lowest` on.
    hosts: Vec<B::Host>,
    lowest: usize,
    /// Layer `index` uses slot `index % RING`.
    ring: Vec<Slot<B>>,
}

#[derive(Debug)]
struct Slot<B: Backend> {
    act: B::Act,
    /// The layer whose input is in it.
    layer: Option<usize>,
}

impl<B: Backend> Kept<B> {
    pub fn new() -> Self {
        Self { layers: Vec::new(), inputs: None }
    }

    pub fn layers(&self) -> &[Saved<B>] {
        &self.layers
    }

    /// Makes room for what `plan` keeps. On a device with memory of its own every buffer gets its size now.
    pub fn prepare(&mut self, backend: &B, sizes: &Sizes, plan: &Plan, is_reserved: bool) -> Result<()> {
        while self.layers.len() < sizes.layers {
            self.layers.push(Saved::new(backend)?);
        }
        if !plan.offload {
            self.inputs = None;
        } else if self.inputs.is_none() {
            let hosts = (sizes.lowest..sizes.layers).map(|_| backend.host(plan.tokens, sizes.hidden));
            let hosts = hosts.collect::<std::result::Result<_, _>>()?;
            let ring = (0..RING).map(|_| Slot { act: backend.act(), layer: None }).collect();
            self.inputs = Some(Offloaded { hosts, lowest: sizes.lowest, ring });
        }
        if !is_reserved {
            return Ok(());
        }
        if let Some(inputs) = &mut self.inputs {
            for slot in &mut inputs.ring {
                backend.resize(&mut slot.act, plan.tokens, sizes.hidden)?;
            }
        }
        for (saved, &level) in self.layers.iter_mut().zip(&plan.levels).skip(sizes.lowest) {
            if !plan.offload {
                backend.resize(&mut saved.x, plan.tokens, sizes.hidden)?;
            }
            saved.reserve(backend, sizes, plan, level)?;
        }
        Ok(())
    }

    /// Before the forward of layer `index`, whose input is in `next`: gives `scratch` the buffers that will be kept and
    /// that input, and `next` a buffer to write to.
    pub fn begin(
        &mut self,
        backend: &B,
        index: usize,
        plan: &Plan,
        scratch: &mut Saved<B>,
        next: &mut B::Act,
    ) -> Result<()> {
        self.exchange(index, plan, scratch);
        let Some(inputs) = &mut self.inputs else {
            std::mem::swap(&mut scratch.x, next);
            return Ok(());
        };
        // `scratch.x` holds an earlier layer's input, which must have left before it is written over
        if let Some(layer) = inputs.ring[index % RING].layer.replace(index) {
            backend.arrive(&inputs.hosts[layer - inputs.lowest])?;
        }
        std::mem::swap(&mut scratch.x, next);
        Ok(backend.offload(&scratch.x, &mut inputs.hosts[index - inputs.lowest])?)
    }

    /// After the forward, and after the backward: takes the buffers back.
    pub fn end(&mut self, index: usize, plan: &Plan, scratch: &mut Saved<B>) {
        self.exchange(index, plan, scratch);
    }

    /// Before the backward of layer `index`: gives `scratch` what was kept, and sends for the input of the layer before.
    pub fn recall(&mut self, backend: &B, index: usize, plan: &Plan, scratch: &mut Saved<B>) -> Result<()> {
        if let Some(inputs) = &mut self.inputs {
            inputs.fetch(backend, index)?;
            backend.arrive(&inputs.hosts[index - inputs.lowest])?;
            if index > inputs.lowest {
                inputs.fetch(backend, index - 1)?;
            }
        }
        self.exchange(index, plan, scratch);
        Ok(())
    }

    fn exchange(&mut self, index: usize, plan: &Plan, scratch: &mut Saved<B>) {
        let saved = &mut self.layers[index];
        saved.swap(scratch, plan.levels[index]);
        let x = match &mut self.inputs {
            Some(inputs) => &mut inputs.ring[index % RING].act,
            None => &mut saved.x,
        };
        std::mem::swap(x, &mut scratch.x);
    }
}

impl<B: Backend> Offloaded<B> {
    /// Has the input of layer `index` in its slot, or on the way there.
    fn fetch(&mut self, backend: &B, index: usize) -> Result<()> {
        let slot = &mut self.ring[index % RING];
        if slot.layer != Some(index) {
            slot.layer = Some(index);
            backend.fetch(&mut self.hosts[index - self.lowest], &mut slot.act)?;
        }
        Ok(())
    }
}
