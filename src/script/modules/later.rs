//! Names that are promised and not built: each says so, instead of "function not found".

use rhai::{Dynamic, Engine, FuncRegistration, Module, NativeCallContext};

use crate::tokenizer::Tokenizer;
use crate::train::{Model, Optimizer};

use super::lr_scheduler::Scheduler;
use super::tensor::Tensor;
use super::{Answer, not_there_yet};

/// Qualified functions, in namespaces of their own or beside what is built.
pub(super) const FUNCTIONS: &[(&str, &[&str])] = &[
    ("Dataset", &["from_csv", "from_parquet", "from_hub"]),
    ("optim", &["sgd", "lion"]),
    ("run", &["checkpoint", "resume"]),
    ("cuda", &["memory"]),
    (
        "F",
        &[
            "softmax",
            "log_softmax",
            "cross_entropy",
            "silu",
            "gelu",
            "relu",
            "sigmoid",
            "logsigmoid",
            "softplus",
            "mse_loss",
        ],
    ),
    ("nn", &["linear", "embedding", "rms_norm", "layer_norm", "dropout"]),
];

/// Functions without a namespace.
const GLOBAL: &[&str] = &[
    "tensor",
    "zeros",
    "ones",
    "randn",
    "rand",
    "arange",
    "cat",
    "stack",
    "param_tensor",
    "no_grad",
    "check_grad",
    "permissions",
];

const MODEL: &[&str] = &[
    "merge_adapter",
    "without_adapter",
    "logprobs",
    "hidden",
    "logits",
    "chat",
    "save_merged",
    "save_gguf",
    "save_gguf_adapter",
];
const TOKENIZER: &[&str] = &["apply_chat_template"];
const OPTIMIZER: &[&str] = &["state", "load_state"];
const SCHEDULER: &[&str] = &["plot"];
const TENSOR: &[&str] = &[
    "matmul",
    "reshape",
    "transpose",
    "t",
    "squeeze",
    "unsqueeze",
    "exp",
    "log",
    "sqrt",
    "sqr",
    "pow",
    "abs",
    "tanh",
    "clamp",
    "max",
    "min",
    "argmax",
    "to_array",
    "detach",
    "softmax",
    "log_softmax",
    "index_select",
    "gather",
];

/// Adds to `module` the functions of `namespace` that are not built.
pub(super) fn extend(module: &mut Module, namespace: &str) {
    for (_, names) in FUNCTIONS.iter().filter(|(of, _)| *of == namespace) {
        for name in *names {
            function(module, format!("{namespace}::{name}"), name);
        }
    }
}

/// Answers for `name` with none to three arguments of any type.
fn function(module: &mut Module, shown: String, name: &'static str) {
    let own = shown.clone();
    FuncRegistration::new(name).set_into_module(module, move |context: NativeCallContext<'_>| -> Answer<Dynamic> {
        Err(not_there_yet(&context, &own))
    });
    let own = shown.clone();
    FuncRegistration::new(name)
        .set_into_module(module, move |context: NativeCallContext<'_>, _: Dynamic| -> Answer<Dynamic> {
            Err(not_there_yet(&context, &own))
        });
    let own = shown.clone();
    FuncRegistration::new(name).set_into_module(
        module,
        move |context: NativeCallContext<'_>, _: Dynamic, _: Dynamic| -> Answer<Dynamic> {
            Err(not_there_yet(&context, &own))
        },
    );
    FuncRegistration::new(name).set_into_module(
        module,
        move |context: NativeCallContext<'_>, _: Dynamic, _: Dynamic, _: Dynamic| -> Answer<Dynamic> {
            Err(not_there_yet(&context, &shown))
        },
    );
}

/// Answers for methods of `T` with none to two arguments.
fn methods<T: Clone + Send + Sync + 'static>(module: &mut Module, shown: &str, names: &[&'static str]) {
    for name in names {
        let shown = format!("{shown}.{name}");
        let own = shown.clone();
        FuncRegistration::new(*name)
            .with_purity(true)
            .set_into_module(module, move |context: NativeCallContext<'_>, _: &mut T| -> Answer<Dynamic> {
                Err(not_there_yet(&context, &own))
            });
        let own = shown.clone();
        FuncRegistration::new(*name).with_purity(true).set_into_module(
            module,
            move |context: NativeCallContext<'_>, _: &mut T, _: Dynamic| -> Answer<Dynamic> {
                Err(not_there_yet(&context, &own))
            },
        );
        FuncRegistration::new(*name).with_purity(true).set_into_module(
            module,
            move |context: NativeCallContext<'_>, _: &mut T, _: Dynamic, _: Dynamic| -> Answer<Dynamic> {
                Err(not_there_yet(&context, &shown))
            },
        );
    }
}

pub(super) fn register(engine: &mut Engine) {
    for namespace in ["F", "nn"] {
        let mut module = Module::new();
        extend(&mut module, namespace);
        engine.register_static_module(namespace, module.into());
    }
    let mut global = Module::new();
    for name in GLOBAL {
        function(&mut global, (*name).to_owned(), name);
    }
    methods::<Model>(&mut global, "model", MODEL);
    methods::<Tokenizer>(&mut global, "tokenizer", TOKENIZER);
    methods::<Optimizer>(&mut global, "optimizer", OPTIMIZER);
    methods::<Scheduler>(&mut global, "scheduler", SCHEDULER);
    methods::<Tensor>(&mut global, "tensor", TENSOR);
    engine.register_global_module(global.into());
}
