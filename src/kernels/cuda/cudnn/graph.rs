//! A graph of operations on tensors, and the plan that computes it.
#![expect(unsafe_code, reason = "starts a plan")]

use super::super::device::{Device, Pointer};
use super::super::dtype::Dtype;
use super::api::{Cudnn, Descriptor, Raw};
use crate::kernels::{Error, Result};

/// Engines tried for a graph before it counts as not supported.
const CANDIDATES: usize = 8;
/// What tensors are aligned to, in bytes: the addresses in a pass must be.
pub(crate) const ALIGNMENT: usize = 16;

// Numbers of cudnn_graph.h, the same in all of cuDNN 9: kinds of descriptors …
const POINTWISE: u32 = 0;
const ENGINE_CONFIG: u32 = 3;
const HEURISTIC: u32 = 4;
const EXECUTION_PLAN: u32 = 5;
const OPERATION_POINTWISE: u32 = 13;
const OPERATION_GRAPH: u32 = 15;
const VARIANT_PACK: u32 = 16;
const TENSOR: u32 = 17;
const MATMUL: u32 = 18;
const OPERATION_MATMUL: u32 = 19;
const REDUCTION: u32 = 21;
const OPERATION_REDUCTION: u32 = 22;
const OPERATION_RESHAPE: u32 = 31;

// … and types of attributes.
const OF_DATA_TYPE: u32 = 1;
const OF_HEURISTIC_MODE: u32 = 8;
const OF_POINTWISE_MODE: u32 = 14;
const OF_REDUCTION_OPERATOR: u32 = 18;

/// Heuristic mode A: the best that cuDNN knows.
const MODE_A: u32 = 3;

/// What the values of a tensor are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Values {
    F32 = 0,
    F16 = 2,
    I32 = 4,
    Bf16 = 9,
    Boolean = 11,
}

impl From<Dtype> for Values {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Self::F32,
            Dtype::F16 => Self::F16,
            Dtype::Bf16 => Self::Bf16,
        }
    }
}

/// Operations on every value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Pointwise {
    Add = 0,
    Mul = 1,
    Div = 6,
    Sub = 9,
    Exp = 13,
    Log = 15,
    Identity = 21,
    Greater = 302,
    GreaterOrEqual = 303,
    Less = 304,
    And = 400,
    /// The index along an axis.
    Index = 501,
    /// The first operand where the third is true, else the second.
    Select = 601,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Reduction {
    Sum = 0,
    Max = 3,
}

pub(crate) type Four = [i64; 4];

/// A tensor of a graph, by its place among the graph's tensors.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tensor {
    index: usize,
    pub dims: Four,
    pub strides: Four,
}

/// A graph that is being described.
pub(crate) struct Graph<'a> {
    cudnn: &'a Cudnn,
    /// What an error names.
    op: &'static str,
    tensors: Vec<Descriptor>,
    operations: Vec<Descriptor>,
    /// What operations are made with.
    kept: Vec<Descriptor>,
    /// Tensors that are numbers on this side, by the tensor's id.
    constants: Vec<(i64, Box<f32>)>,
}

/// Sizes of the dimensions a product really has in each text: of its result's rows and columns, and of its depth.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Lengths {
    pub rows: Option<Tensor>,
    pub columns: Option<Tensor>,
    pub depth: Option<Tensor>,
}

impl<'a> Graph<'a> {
    pub(crate) fn new(cudnn: &'a Cudnn, op: &'static str) -> Self {
        let (tensors, operations, kept, constants) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Self { cudnn, op, tensors, operations, kept, constants }
    }

    fn new_descriptor(&self, kind: u32) -> Result<Descriptor> {
        Descriptor::new(self.cudnn.api(), self.op, kind)
    }

    fn raw(&self, tensor: Tensor) -> Raw {
        self.tensors[tensor.index].raw
    }

    fn add(&mut self, dims: Four, strides: Four, values: Values, kind: Kind) -> Result<Tensor> {
        let index = self.tensors.len();
        let mut tensor = self
            .new_descriptor(TENSOR)?
            .choice(901, OF_DATA_TYPE, values as u32)?
            .numbers(902, &dims)?
            .numbers(903, &strides)?
            .numbers(906, &[id(index)])?
            .numbers(900, &[ALIGNMENT as i64])?;
        tensor = match kind {
            Kind::Given { ragged: Some(offsets) } => tensor.descriptors(913, &[self.raw(offsets)])?,
            Kind::Given { ragged: None } => tensor,
            Kind::Virtual { ragged: Some(offsets) } => tensor.yes(907)?.descriptors(913, &[self.raw(offsets)])?,
            Kind::Virtual { ragged: None } => tensor.yes(907)?,
            Kind::Constant => tensor.yes(908)?,
        };
        self.tensors.push(tensor.finish("describe a tensor")?);
        Ok(Tensor { index, dims, strides })
    }

    /// A tensor in the device's memory. With `ragged`, text `b` starts so many values in as the b-th number there.
    pub(crate) fn given(
        &mut self,
        dims: Four,
        strides: Four,
        values: Values,
        ragged: Option<Tensor>,
    ) -> Result<Tensor> {
        self.add(dims, strides, values, Kind::Given { ragged })
    }

    /// `len` numbers of 32 bits in the device's memory.
    pub(crate) fn list(&mut self, len: i64) -> Result<Tensor> {
        self.given([len, 1, 1, 1], [1; 4], Values::I32, None)
    }

    /// A tensor that exists only between two operations.
    pub(crate) fn between(&mut self, dims: Four, strides: Four, values: Values) -> Result<Tensor> {
        self.add(dims, strides, values, Kind::Virtual { ragged: None })
    }

    fn constant(&mut self, value: f32) -> Result<Tensor> {
        let tensor = self.add([1; 4], [1; 4], Values::F32, Kind::Constant)?;
        self.constants.push((id(tensor.index), Box::new(value)));
        Ok(tensor)
    }

    /// `out = left·right` in f32, for every text and head.
    pub(crate) fn matmul(&mut self, left: Tensor, right: Tensor, out: Tensor, lengths: Lengths) -> Result<Tensor> {
        let product = self.new_descriptor(MATMUL)?.choice(1500, OF_DATA_TYPE, Values::F32 as u32)?;
        let product = product.finish("describe a product")?;
        let mut operation = self
            .new_descriptor(OPERATION_MATMUL)?
            .descriptors(1520, &[self.raw(left)])?
            .descriptors(1521, &[self.raw(right)])?
            .descriptors(1522, &[self.raw(out)])?
            .descriptors(1523, &[product.raw])?;
        for (attribute, length) in [(1525, lengths.rows), (1526, lengths.columns), (1527, lengths.depth)] {
            if let Some(length) = length {
                operation = operation.descriptors(attribute, &[self.raw(length)])?;
            }
        }
        self.operations.push(operation.finish("describe a product")?);
        self.kept.push(product);
        Ok(out)
    }

    /// An operation on the values of one to three tensors, in f32, into `out`.
    pub(crate) fn pointwise(&mut self, mode: Pointwise, operands: &[Tensor], out: Tensor) -> Result<Tensor> {
        self.pointwise_in(mode, Values::F32, None, operands, out)
    }

    fn pointwise_in(
        &mut self,
        mode: Pointwise,
        precision: Values,
        axis: Option<i64>,
        operands: &[Tensor],
        out: Tensor,
    ) -> Result<Tensor> {
        let mut how = self.new_descriptor(POINTWISE)?.choice(0, OF_POINTWISE_MODE, mode as u32)?.choice(
            1,
            OF_DATA_TYPE,
            precision as u32,
        )?;
        if let Some(axis) = axis {
            how = how.numbers(9, &[axis])?;
        }
        let how = how.finish("describe an operation")?;
        let mut operation = self
            .new_descriptor(OPERATION_POINTWISE)?
            .descriptors(750, &[how.raw])?
            .descriptors(753, &[self.raw(out)])?;
        for (attribute, operand) in [751, 752, 758].into_iter().zip(operands) {
            operation = operation.descriptors(attribute, &[self.raw(*operand)])?;
        }
        self.operations.push(operation.finish("describe an operation")?);
        self.kept.push(how);
        Ok(out)
    }

    /// As `pointwise`, into a new tensor between two operations, of the first operand's shape.
    pub(crate) fn map(&mut self, mode: Pointwise, operands: &[Tensor], values: Values) -> Result<Tensor> {
        let out = self.between(operands[0].dims, operands[0].strides, values)?;
        self.pointwise(mode, operands, out)
    }

    /// `x * factor`
    pub(crate) fn scaled(&mut self, x: Tensor, factor: f32) -> Result<Tensor> {
        let out = self.between(x.dims, x.strides, Values::F32)?;
        self.scaled_into(x, factor, out)
    }

    /// As `scaled`, into `out`.
    pub(crate) fn scaled_into(&mut self, x: Tensor, factor: f32, out: Tensor) -> Result<Tensor> {
        let factor = self.constant(factor)?;
        self.pointwise(Pointwise::Mul, &[x, factor], out)
    }

    /// `x + number`, both of whole numbers, kept in f32.
    pub(crate) fn shifted(&mut self, x: Tensor, number: f32) -> Result<Tensor> {
        let number = self.constant(number)?;
        let out = self.between(x.dims, x.strides, Values::F32)?;
        self.pointwise_in(Pointwise::Add, Values::F32, Some(3), &[x, number], out)
    }

    /// The index of every value of `x` along `axis`.
    pub(crate) fn index(&mut self, x: Tensor, axis: i64, precision: Values) -> Result<Tensor> {
        let out = self.between(x.dims, x.strides, Values::I32)?;
        self.pointwise_in(Pointwise::Index, precision, Some(axis), &[x], out)
    }

    /// A comparison, or an operation on two of them.
    pub(crate) fn compare(&mut self, mode: Pointwise, left: Tensor, right: Tensor) -> Result<Tensor> {
        let out = self.between(left.dims, left.strides, Values::Boolean)?;
        self.pointwise_in(mode, Values::Boolean, None, &[left, right], out)
    }

    /// `x` where `mask` is true, else minus infinity.
    pub(crate) fn masked(&mut self, x: Tensor, mask: Tensor) -> Result<Tensor> {
        let hidden = self.constant(f32::NEG_INFINITY)?;
        self.map(Pointwise::Select, &[x, hidden, mask], Values::F32)
    }

    /// Over the dimensions in which `out` is smaller than `x`.
    pub(crate) fn reduce(&mut self, how: Reduction, x: Tensor, out: Tensor) -> Result<Tensor> {
        let reduction = self
            .new_descriptor(REDUCTION)?
            .choice(1600, OF_REDUCTION_OPERATOR, how as u32)?
            .choice(1601, OF_DATA_TYPE, Values::F32 as u32)?
            .finish("describe a sum")?;
        let operation = self
            .new_descriptor(OPERATION_REDUCTION)?
            .descriptors(1610, &[self.raw(x)])?
            .descriptors(1611, &[self.raw(out)])?
            .descriptors(1612, &[reduction.raw])?
            .finish("describe a sum")?;
        self.operations.push(operation);
        self.kept.push(reduction);
        Ok(out)
    }

    /// `x` with its last two dimensions exchanged, as `values`.
    pub(crate) fn transposed(&mut self, x: Tensor, values: Values, ragged: Option<Tensor>) -> Result<Tensor> {
        let [a, b, c, d] = x.dims;
        let [p, q, r, s] = x.strides;
        let out = self.add([a, b, d, c], [p, q, s, r], values, Kind::Virtual { ragged })?;
        let operation = self
            .new_descriptor(OPERATION_RESHAPE)?
            .descriptors(2200, &[self.raw(x)])?
            .descriptors(2201, &[self.raw(out)])?
            .finish("describe a transposition")?;
        self.operations.push(operation);
        Ok(out)
    }

    /// The plan of the first engine that takes the graph.
    pub(crate) fn plan(self) -> Result<Plan> {
        let operations: Vec<Raw> = self.operations.iter().map(|operation| operation.raw).collect();
        let cudnn = self.cudnn;
        let handle = cudnn.handle();
        let graph = self.new_descriptor(OPERATION_GRAPH)?.handle(800, &handle)?.descriptors(801, &operations)?;
        let graph = graph.finish("join the operations")?;
        let heuristic = self.new_descriptor(HEURISTIC)?.descriptors(201, &[graph.raw])?;
        let heuristic = heuristic.choice(200, OF_HEURISTIC_MODE, MODE_A)?.finish("ask for engines")?;
        let mut configs = Vec::new();
        for _ in 0..CANDIDATES {
            configs.push(self.new_descriptor(ENGINE_CONFIG)?);
        }
        let count = heuristic.fill(202, &configs)?;
        let mut refused =
            Error::Cudnn { op: self.op, step: "ask for engines", status: 0, said: "there is none for it".to_owned() };
        for config in configs.iter().take(count) {
            let plan = self.new_descriptor(EXECUTION_PLAN)?.handle(400, &handle)?.descriptors(401, &[config.raw])?;
            match plan.finish("make a plan") {
                Ok(plan) => {
                    let workspace = usize::try_from(plan.number(402)?).unwrap_or(0);
                    let kept = [self.tensors, self.kept, self.operations, configs, vec![graph, heuristic]];
                    let kept = kept.into_iter().flatten().collect();
                    return Ok(Plan { plan, workspace, constants: self.constants, _kept: kept });
                }
                Err(error) => refused = error,
            }
        }
        Err(refused)
    }
}

/// Where the values of a new tensor are.
enum Kind {
    Given { ragged: Option<Tensor> },
    Virtual { ragged: Option<Tensor> },
    Constant,
}

/// What a tensor is known by outside its graph.
fn id(index: usize) -> i64 {
    index as i64 + 1
}

/// A graph that can be computed.
pub(crate) struct Plan {
    plan: Descriptor,
    /// Bytes it needs beside its tensors.
    pub workspace: usize,
    constants: Vec<(i64, Box<f32>)>,
    _kept: Vec<Descriptor>,
}

impl Plan {
    /// Computes on the tensors in `given`, which are all that are not between operations.
    ///
    /// # Safety
    ///
    /// Each lies on `device`, is aligned to `ALIGNMENT` bytes and as large as dimensions, strides and offsets say;
    /// `workspace` has as many bytes as the plan needs.
    pub(crate) unsafe fn run(
        &self,
        cudnn: &Cudnn,
        device: &Device,
        name: &'static str,
        given: &[(Tensor, Pointer)],
        workspace: Pointer,
    ) -> Result<()> {
        let mut ids: Vec<i64> = given.iter().map(|(tensor, _)| id(tensor.index)).collect();
        let mut pointers: Vec<Raw> = given.iter().map(|(_, pointer)| pointer.0 as Raw).collect();
        for (id, value) in &self.constants {
            ids.push(*id);
            pointers.push((&raw const **value).cast_mut().cast());
        }
        let pack = Descriptor::new(cudnn.api(), name, VARIANT_PACK)?
            .numbers(1000, &ids)?
            .pointers(1001, &pointers)?
            .pointers(1003, &[workspace.0 as Raw])?
            .finish("name the tensors")?;
        device.bind()?;
        let handle = cudnn.handle();
        // SAFETY: the caller's; the constants live as long as the plan.
        device.timed(name, || unsafe { self.plan.execute(&handle, &pack) })
    }
}
