//! `Tensor`: candle's tensor in a script.

use rhai::plugin::*;
use rhai::{Array, Engine, EvalAltResult, NativeCallContext};

use crate::script::Failure;
use crate::train::{self, Tensor as Inner};

use super::{Answer, train_failure};

/// Longer chains of operations would overflow the stack in candle's recursive backward.
const DEEPEST: u32 = 10_000;

/// A tensor and the length of the longest chain of operations behind it.
#[derive(Clone, Debug)]
pub struct Tensor {
    inner: Inner,
    depth: u32,
}

impl Tensor {
    pub(super) fn new(inner: Inner) -> Self {
        Self { inner, depth: 0 }
    }

    fn value(&self, context: &NativeCallContext<'_>) -> Answer<f64> {
        if self.inner.elem_count() != 1 {
            let what = format!("a tensor of shape {:?} is not one number", self.inner.dims());
            return Err(Failure::at(context, what).hint("reduce it first: `t.sum()` or `t.mean()`").into());
        }
        let read = || -> candle_core::Result<f64> {
            self.inner.flatten_all()?.to_dtype(candle_core::DType::F64)?.get(0)?.to_scalar()
        };
        read().map_err(|error| candle_failure(context, &error))
    }

    fn with(
        &self,
        context: &NativeCallContext<'_>,
        other: Option<&Self>,
        result: candle_core::Result<Inner>,
    ) -> Answer<Self> {
        let inner = result.map_err(|error| candle_failure(context, &error))?;
        let depth = self.depth.max(other.map_or(0, |other| other.depth)) + 1;
        if depth > DEEPEST {
            let what = format!("this tensor stands on a chain of more than {DEEPEST} operations");
            return Err(Failure::at(context, what)
                .hint("add up numbers instead of tensors: `total += t.item()`")
                .into());
        }
        Ok(Self { inner, depth })
    }
}

fn candle_failure(context: &NativeCallContext<'_>, error: &candle_core::Error) -> Box<EvalAltResult> {
    let text = error.to_string();
    // A backtrace may follow the message.
    Failure::at(context, text.lines().next().unwrap_or_default().to_owned()).into()
}

/// Makes the four operators of tensors and numbers.
macro_rules! arithmetic {
    ($module:ident, $symbol:tt, $tensors:ident, $right:expr, $left:expr) => {
        #[export_module]
        mod $module {
            use super::*;

            #[rhai_fn(name = $symbol, pure, return_raw)]
            pub fn tensors(context: NativeCallContext<'_>, a: &mut Tensor, b: Tensor) -> Answer<Tensor> {
                let result = a.inner.$tensors(&b.inner);
                a.with(&context, Some(&b), result)
            }

            #[rhai_fn(name = $symbol, pure, return_raw)]
            pub fn right_float(context: NativeCallContext<'_>, a: &mut Tensor, b: f64) -> Answer<Tensor> {
                let right: fn(&Inner, f64) -> candle_core::Result<Inner> = $right;
                a.with(&context, None, right(&a.inner, b))
            }

            #[rhai_fn(name = $symbol, pure, return_raw)]
            pub fn right_int(context: NativeCallContext<'_>, a: &mut Tensor, b: i64) -> Answer<Tensor> {
                right_float(context, a, b as f64)
            }

            #[rhai_fn(name = $symbol, return_raw)]
            pub fn left_float(context: NativeCallContext<'_>, a: f64, b: Tensor) -> Answer<Tensor> {
                let left: fn(f64, &Inner) -> candle_core::Result<Inner> = $left;
                b.with(&context, None, left(a, &b.inner))
            }

            #[rhai_fn(name = $symbol, return_raw)]
            pub fn left_int(context: NativeCallContext<'_>, a: i64, b: Tensor) -> Answer<Tensor> {
                left_float(context, a as f64, b)
            }
        }
    };
}

arithmetic!(plus, "+", broadcast_add, |t, x| t + x, |x, t| t + x);
arithmetic!(minus, "-", broadcast_sub, |t, x| t - x, |x, t| t.neg()? + x);
arithmetic!(times, "*", broadcast_mul, |t, x| t * x, |x, t| t * x);
arithmetic!(over, "/", broadcast_div, |t, x| t / x, |x, t| t.recip()? * x);

/// Makes one comparison: by value where both are one number, an error otherwise. Without these Rhai compares a tensor
/// with a number as unlike types, and the answer is a silent `false`.
macro_rules! comparison {
    ($module:ident, $symbol:tt, $compare:expr) => {
        #[export_module]
        mod $module {
            use super::*;

            const COMPARE: fn(f64, f64) -> bool = $compare;

            #[rhai_fn(name = $symbol, pure, return_raw)]
            pub fn tensors(context: NativeCallContext<'_>, a: &mut Tensor, b: Tensor) -> Answer<bool> {
                Ok(COMPARE(a.value(&context)?, b.value(&context)?))
            }

            #[rhai_fn(name = $symbol, pure, return_raw)]
            pub fn right_float(context: NativeCallContext<'_>, a: &mut Tensor, b: f64) -> Answer<bool> {
                Ok(COMPARE(a.value(&context)?, b))
            }

            #[rhai_fn(name = $symbol, pure, return_raw)]
            pub fn right_int(context: NativeCallContext<'_>, a: &mut Tensor, b: i64) -> Answer<bool> {
                Ok(COMPARE(a.value(&context)?, b as f64))
            }

            #[rhai_fn(name = $symbol, return_raw)]
            pub fn left_float(context: NativeCallContext<'_>, a: f64, b: Tensor) -> Answer<bool> {
                Ok(COMPARE(a, b.value(&context)?))
            }

            #[rhai_fn(name = $symbol, return_raw)]
            pub fn left_int(context: NativeCallContext<'_>, a: i64, b: Tensor) -> Answer<bool> {
                Ok(COMPARE(a as f64, b.value(&context)?))
            }
        }
    };
}

comparison!(equal, "==", |a, b| a == b);
comparison!(unequal, "!=", |a, b| a != b);
comparison!(less, "<", |a, b| a < b);
comparison!(less_or_equal, "<=", |a, b| a <= b);
comparison!(greater, ">", |a, b| a > b);
comparison!(greater_or_equal, ">=", |a, b| a >= b);

#[export_module]
mod methods {
    use super::*;

    /// Returns the one number this tensor holds.
    ///
    /// ```rhai
    /// let loss = model.loss(micro).item();
    /// ```
    #[rhai_fn(pure, return_raw)]
    pub fn item(context: NativeCallContext<'_>, tensor: &mut Tensor) -> Answer<f64> {
        tensor.value(&context)
    }

    /// Adds the gradients of this one number to every trained parameter it depends on.
    ///
    /// ```rhai
    /// (model.loss(micro) * 0.5).backward();
    /// ```
    #[rhai_fn(pure, return_raw)]
    pub fn backward(context: NativeCallContext<'_>, tensor: &mut Tensor) -> Answer<()> {
        train::backward(&tensor.inner).map_err(|error| train_failure(&context, &error))
    }

    /// Returns the sum of all elements, differentiable.
    ///
    /// ```rhai
    /// let total = t.sum();
    /// ```
    #[rhai_fn(pure, return_raw)]
    pub fn sum(context: NativeCallContext<'_>, tensor: &mut Tensor) -> Answer<Tensor> {
        tensor.with(&context, None, tensor.inner.sum_all())
    }

    /// Returns the mean of all elements, differentiable.
    ///
    /// ```rhai
    /// let average = t.mean();
    /// ```
    #[rhai_fn(pure, return_raw)]
    pub fn mean(context: NativeCallContext<'_>, tensor: &mut Tensor) -> Answer<Tensor> {
        tensor.with(&context, None, tensor.inner.mean_all())
    }

    /// The sizes of the tensor's dimensions; an empty array for one number.
    ///
    /// ```rhai
    /// print(loss.shape);    // []
    /// ```
    #[rhai_fn(get = "shape", pure)]
    pub fn shape(tensor: &mut Tensor) -> Array {
        tensor.inner.dims().iter().map(|size| Dynamic::from(*size as i64)).collect()
    }

    #[rhai_fn(name = "-", pure, return_raw)]
    pub fn negative(context: NativeCallContext<'_>, tensor: &mut Tensor) -> Answer<Tensor> {
        tensor.with(&context, None, tensor.inner.neg())
    }

    #[rhai_fn(name = "to_string", name = "to_debug", pure)]
    pub fn show(tensor: &mut Tensor) -> String {
        let kind = format!("Tensor[{:?}; {}]", tensor.inner.dims(), tensor.inner.dtype().as_str());
        let one = tensor.inner.to_dtype(candle_core::DType::F64).and_then(|t| t.to_scalar::<f64>());
        one.map_or(kind, |value| format!("Tensor({value:?})"))
    }
}

pub(super) fn register(engine: &mut Engine) {
    engine.register_type_with_name::<Tensor>("Tensor");
    engine
        .register_global_module(exported_module!(methods).into())
        .register_global_module(exported_module!(plus).into())
        .register_global_module(exported_module!(minus).into())
        .register_global_module(exported_module!(times).into())
        .register_global_module(exported_module!(over).into())
        .register_global_module(exported_module!(equal).into())
        .register_global_module(exported_module!(unequal).into())
        .register_global_module(exported_module!(less).into())
        .register_global_module(exported_module!(less_or_equal).into())
        .register_global_module(exported_module!(greater).into())
        .register_global_module(exported_module!(greater_or_equal).into());
}
