//! How `Model::from_pretrained` loads, and what it says of the model it has loaded.

use std::path::{Component, Path};

use rhai::{Dynamic, Map, NativeCallContext};

use crate::script::{Device as Choice, Host};
use crate::train::{AttentionKind, Device, Dtype, Listener, LoadSettings, Model, Unpacked};
use crate::{io, options};

use super::model::load_adapter;
use super::{Answer, Failure, host, not_there_yet, train_failure};

options! {
    /// What `Model::from_pretrained` takes.
    pub LoadTable for "Model::from_pretrained" {
        load_in_4bit: bool = false, "keep the frozen linears in NF4; what a file has quantised stays as it is";
        max_seq_length: Option<usize> = None, 1.., "longest text in tokens; the model's own limit when not given";
        adapter: Option<String> = None, "folder of an adapter to put on";
        dtype: Option<String> = None, "what a GPU computes in: \"bf16\", \"f16\" or \"f32\"; the best it has when not given";
        attention: String = "auto", "which kernels compute attention on a GPU: \"own\", \"cudnn\", or \"auto\" for the faster that is there; only \"own\" gives the same bits every time";
        memory: String = "balanced", "for training: \"lean\", \"balanced\", \"speed\", or a budget like \"7GB\"";
        revision: Option<String> = None, "not there yet";
    }
}

/// A megabyte, which the progress of a download counts in.
const MB: u64 = 1_000_000;

/// What is heard of a download goes to the session's terminal and log.
struct Downloads<'a>(&'a Host);

impl Listener for Downloads<'_> {
    fn note(&self, text: &str) {
        self.0.note(text);
    }

    fn progress(&self, done: u64, total: u64, detail: &str) {
        self.0.progress("fetching", done / MB, Some(total.div_ceil(MB)), &format!("MB   {detail}"));
    }

    fn progress_end(&self) {
        self.0.progress_end();
    }
}

/// Loads the model that `id` names and says what a user should know of it.
pub(super) fn load(context: &NativeCallContext<'_>, id: &str, options: &Map) -> Answer<Model> {
    let given = LoadTable::parse(options, context)?;
    if given.revision.is_some() {
        return Err(not_there_yet(context, "the option revision"));
    }
    let host = host(context)?;
    let settings = LoadSettings {
        load_in_4bit: given.load_in_4bit,
        max_seq_length: given.max_seq_length,
        device: match host.device() {
            Choice::Auto => Device::Auto { threads: host.threads() },
            Choice::Cpu => Device::Cpu { threads: host.threads() },
            Choice::Cuda(index) => Device::Cuda { index },
        },
        unpacked_bytes: None,
        loss_scale: None,
        dtype: given.dtype.as_deref().map(|name| dtype(context, name)).transpose()?,
        attention: attention(context, &given.attention)?,
        memory: given.memory.parse().map_err(|wanted| LoadTable::SCHEMA.wrong("memory", wanted, context))?,
        cancel: host.cancel(),
    };
    let place = place(context, id)?;
    host.doing(&format!("loading `{id}`"));
    let named = place.as_deref().unwrap_or(id);
    let loaded = Model::from_pretrained_told(named, &host.base(), &settings, &Downloads(&host));
    host.doing("");
    let model = loaded.map_err(|error| train_failure(context, &error))?;
    host.models().add(&model);
    if model.unpacked().is_short() {
        host.note(&short_of_memory(id, &model));
    }
    if let Some(remark) = model.remark() {
        host.note(remark);
    }
    if id == "auto" {
        for name in host.parameters_of_model(id) {
            host.chose(&name, &Dynamic::from(model.origin().to_owned())).map_err(|error| error.at(context))?;
        }
    }
    if !model.defaulted().is_empty() {
        host.note(&defaulted(&model));
    }
    if let Some(dir) = &given.adapter {
        load_adapter(context, &model, dir)?;
    }
    Ok(model)
}

/// The file or folder that `id` means, where it means one: what this run has written, else what lies in the recipe's
/// folder. A place that the recipe may not read is refused before anybody looks whether it is there.
fn place(context: &NativeCallContext<'_>, id: &str) -> Answer<Option<String>> {
    let host = host(context)?;
    let mut parts = Path::new(id).components();
    let is_plain = parts.clone().all(|part| matches!(part, Component::Normal(_)));
    // `owner/name/file.gguf` is a file on the hub where no folder `owner` is here.
    let owner = parts.next().map(|part| host.base().join(part)).filter(|_| parts.count() >= 2);
    let is_on_hub = is_plain && owner.is_some_and(|owner| !io::exists(&owner));
    let is_path = !is_plain || id.ends_with(".gguf") && !is_on_hub;
    if id.is_empty() || !(is_path || io::exists(&host.base().join(id)) || host.has_written(id)) {
        return Ok(None);
    }
    let path = host.read_path(id).map_err(|error| error.at(context))?;
    match path.to_str() {
        Some(path) => Ok(Some(path.to_owned())),
        None => Err(Failure::at(context, format!("`{}` is not UTF-8", path.display())).into()),
    }
}

/// What the model's file leaves out, and what was taken for it: every one of these changes what is computed.
fn defaulted(model: &Model) -> String {
    let (origin, taken) = (model.origin(), model.defaulted().join(", "));
    format!("`{origin}` says nothing of some keys; taken as transformers takes them: {taken}")
}

/// Why steps are slower than they could be, and what it would take.
fn short_of_memory(id: &str, model: &Model) -> String {
    let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
    let Unpacked { wanted, limit } = model.unpacked();
    format!(
        "`{id}` would take {:.1} GiB to keep its weights ready for the product, half of the free memory is {:.1} GiB: \
         the rest is unpacked anew at every step, which is slower and gives the same numbers",
        gib(wanted),
        gib(limit)
    )
}

fn dtype(context: &NativeCallContext<'_>, name: &str) -> Answer<Dtype> {
    let all = [(Dtype::Bf16, "bfloat16"), (Dtype::F16, "float16"), (Dtype::F32, "float32")];
    let found = all.into_iter().find(|(dtype, torch)| [dtype.name(), torch].contains(&name)).map(|(dtype, _)| dtype);
    found.ok_or_else(|| LoadTable::SCHEMA.wrong("dtype", "must be \"bf16\", \"f16\" or \"f32\"", context))
}

fn attention(context: &NativeCallContext<'_>, name: &str) -> Answer<AttentionKind> {
    let found = AttentionKind::ALL.into_iter().find(|kind| kind.name() == name);
    found.ok_or_else(|| LoadTable::SCHEMA.wrong("attention", "must be \"auto\", \"own\" or \"cudnn\"", context))
}
