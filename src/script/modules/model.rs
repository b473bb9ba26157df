//! `Model`: load, adapt, loss, evaluate, generate, save.

use std::ops::ControlFlow;

use rhai::plugin::*;
use rhai::{Engine, FnPtr, Map, NativeCallContext};

use crate::data::Tokenized;
use crate::generate::{Finish, Options, Sampling};
use crate::options;
use crate::script::options::OneOrMany;
use crate::tokenizer::Tokenizer;
use crate::train::{LoraConfig, MODULES, Model};

use super::batches::{Batches, MicroBatch};
use super::tensor::Tensor;
use super::{Answer, host, loading, not_there_yet, train_failure};

options! {
    /// What `model.add_lora` takes, by PEFT's names.
    pub LoraTable for "model.add_lora" {
        r: usize = 8, 1..=4096, "rank of the adapters";
        lora_alpha: f64 = 8.0, 0.0.., "scale = lora_alpha / r";
        lora_dropout: f64 = 0.0, 0.0..=1.0, "not there yet: 0";
        target_modules: OneOrMany<String> = "all-linear", "names of linear layers, or \"all-linear\"";
        layers_to_transform: Option<Vec<usize>> = None, "only these layers, counted from 0";
        use_rslora: bool = false, "scale = lora_alpha / sqrt(r)";
        seed: Option<u64> = None, "of the first values; the session's seed when it is not given";
    }
}

options! {
    /// What `model.generate` takes.
    pub GenerateTable for "model.generate" {
        max_new_tokens: usize = 64, "most tokens to write";
        temperature: f64 = 0.0, 0.0..=100.0, "0 takes the most likely token";
        top_k: Option<usize> = None, 1.., "only the k most likely tokens";
        top_p: Option<f64> = None, 0.0..=1.0, "only the most likely tokens that reach this probability";
        repetition_penalty: f64 = 1.0, 0.001..=100.0, "above 1 makes tokens that occurred less likely";
        seed: Option<u64> = None, "of the choice; the session's seed when it is not given";
        stop: Option<OneOrMany<String>> = None, "the text ends before the first of these";
        stream: Option<Dynamic> = None, "a function that gets the text piece by piece";
    }
}

/// Says `all-linear` for every linear layer of the decoder.
const ALL_LINEAR: &str = "all-linear";

#[export_module]
mod constructors {
    use super::*;

    /// Returns a model: a folder, a `.gguf` file, a hub id (`org/name`, or `org/name/file.gguf`), `builtin:tiny-mistral`,
    /// or `auto`, which chooses by device.
    ///
    /// ```rhai
    /// let model = Model::from_pretrained("auto", #{ load_in_4bit: true, max_seq_length: 2048 });
    /// ```
    #[rhai_fn(name = "from_pretrained", return_raw)]
    pub fn from_pretrained(context: NativeCallContext<'_>, id: &str, options: Map) -> Answer<Model> {
        loading::load(&context, id, &options)
    }

    /// Returns a model with every option at its default.
    ///
    /// ```rhai
    /// let model = Model::from_pretrained("auto");
    /// ```
    #[rhai_fn(name = "from_pretrained", return_raw)]
    pub fn from_pretrained_by_default(context: NativeCallContext<'_>, id: &str) -> Answer<Model> {
        from_pretrained(context, id, Map::new())
    }
}

pub(super) fn load_adapter(context: &NativeCallContext<'_>, model: &Model, dir: &str) -> Answer<String> {
    let host = host(context)?;
    let path = host.read_path(dir).map_err(|error| error.at(context))?;
    let loaded = model.load_adapter(&path).map_err(|error| train_failure(context, &error))?;
    let base = loaded.base.as_deref().filter(|base| *base != model.origin());
    if let Some(base) = base {
        host.note(&format!("the adapter in `{dir}` was made for `{base}`, this model is `{}`", model.origin()));
    }
    Ok(format!("{} of {} tensors matched, 0 unmatched", loaded.tensors, loaded.tensors))
}

fn generate_text(
    context: &NativeCallContext<'_>,
    model: &Model,
    prompt: &str,
    options: &Map,
) -> Answer<crate::generate::Generated> {
    let given = GenerateTable::parse(options, context)?;
    let seed = given.seed.map_or_else(|| host(context).map(|host| host.seed()), Ok)?;
    let GenerateTable { temperature, top_k, top_p, repetition_penalty, max_new_tokens, .. } = given;
    let sampling = Sampling { temperature, top_k, top_p, repetition_penalty, seed };
    let stop = given.stop.map(|stop| stop.0).unwrap_or_default();
    let stream = match &given.stream {
        None => None,
        Some(value) => match value.clone().try_cast::<FnPtr>() {
            Some(function) => Some(function),
            None => return Err(GenerateTable::SCHEMA.wrong("stream", "must be a function of 1 argument", context)),
        },
    };
    let mut failed = None;
    let mut show = |piece: &str| {
        let called: Answer<Dynamic> = match &stream {
            None => Ok(Dynamic::UNIT),
            Some(function) => function.call_within_context(context, (piece.to_owned(),)),
        };
        match called {
            Ok(_) => ControlFlow::Continue(()),
            Err(error) => {
                failed = Some(error);
                ControlFlow::Break(())
            }
        }
    };
    let options = Options { max_new_tokens, sampling, stop };
    let text = model.generate(prompt, &options, &mut show);
    match failed {
        Some(error) => Err(error),
        None => text.map_err(|error| train_failure(context, &error)),
    }
}

#[export_module]
mod methods {
    use super::*;

    /// Adds a LoRA adapter, which changes nothing until it is trained.
    ///
    /// ```rhai
    /// model.add_lora(#{ r: 16, lora_alpha: 16, target_modules: "all-linear" });
    /// ```
    #[rhai_fn(name = "add_lora", pure, return_raw)]
    pub fn add_lora(context: NativeCallContext<'_>, model: &mut Model, options: Map) -> Answer<()> {
        let given = LoraTable::parse(&options, &context)?;
        if given.lora_dropout != 0.0 {
            return Err(not_there_yet(&context, "the option lora_dropout above 0"));
        }
        let is_all = given.target_modules.iter().any(|name| name == ALL_LINEAR);
        let target_modules = match is_all {
            true => MODULES.iter().map(ToString::to_string).collect(),
            false => given.target_modules.0,
        };
        let config = LoraConfig {
            r: given.r,
            lora_alpha: given.lora_alpha,
            target_modules,
            layers_to_transform: given.layers_to_transform,
            use_rslora: given.use_rslora,
            seed: given.seed.map_or_else(|| host(&context).map(|host| host.seed()), Ok)?,
        };
        model.add_lora(&config).map_err(|error| train_failure(&context, &error))
    }

    /// Adds an adapter with every option at its default: r 8, lora_alpha 8, all linear layers.
    ///
    /// ```rhai
    /// model.add_lora();
    /// ```
    #[rhai_fn(name = "add_lora", pure, return_raw)]
    pub fn add_lora_by_default(context: NativeCallContext<'_>, model: &mut Model) -> Answer<()> {
        add_lora(context, model, Map::new())
    }

    /// Takes the adapter off; false when there was none.
    ///
    /// ```rhai
    /// model.unload_adapter();
    /// ```
    #[rhai_fn(name = "unload_adapter", pure, return_raw)]
    pub fn unload_adapter(context: NativeCallContext<'_>, model: &mut Model) -> Answer<bool> {
        model.unload_adapter().map_err(|error| train_failure(&context, &error))
    }

    /// Puts the adapter of a PEFT folder on and returns how its tensors matched; one that does not match is an error.
    ///
    /// ```rhai
    /// print(model.load_adapter("adapter"));    // 112 of 112 tensors matched, 0 unmatched
    /// ```
    #[rhai_fn(name = "load_adapter", pure, return_raw)]
    pub fn load_adapter_of(context: NativeCallContext<'_>, model: &mut Model, dir: &str) -> Answer<String> {
        load_adapter(&context, model, dir)
    }

    /// Writes the adapter and the tokenizer as a PEFT folder in the run folder, reads it back, and returns its path.
    ///
    /// ```rhai
    /// model.save_pretrained("adapter");
    /// ```
    #[rhai_fn(name = "save_pretrained", pure, return_raw)]
    pub fn save_pretrained(context: NativeCallContext<'_>, model: &mut Model, dir: &str) -> Answer<String> {
        let path = host(&context)?.write_path(dir).map_err(|error| error.at(&context))?;
        let saved = model.save_adapter(&path).map_err(|error| train_failure(&context, &error))?;
        Ok(saved.dir.display().to_string())
    }

    /// Returns what an optimizer trains: the adapter's values.
    ///
    /// ```rhai
    /// let opt = optim::adamw_8bit(model.parameters());
    /// ```
    #[rhai_fn(name = "parameters", pure, return_raw)]
    pub fn parameters(context: NativeCallContext<'_>, model: &mut Model) -> Answer<crate::train::Parameters> {
        model.parameters().map_err(|error| train_failure(&context, &error))
    }

    /// Returns one line that says how many values are trained, of how many.
    ///
    /// ```rhai
    /// print(model.trainable_parameters());
    /// ```
    #[rhai_fn(name = "trainable_parameters", pure, return_raw)]
    pub fn trainable_parameters(context: NativeCallContext<'_>, model: &mut Model) -> Answer<String> {
        model.trainable_summary().map_err(|error| train_failure(&context, &error))
    }

    /// The model's tokenizer.
    ///
    /// ```rhai
    /// let ids = model.tokenizer.encode("meatballs");
    /// ```
    #[rhai_fn(get = "tokenizer", pure)]
    pub fn tokenizer(model: &mut Model) -> Tokenizer {
        model.tokenizer().clone()
    }

    /// The model's sizes, by the names of `config.json`.
    ///
    /// ```rhai
    /// print(model.config.hidden_size);
    /// ```
    #[rhai_fn(get = "config", pure)]
    pub fn config(model: &mut Model) -> Map {
        let c = model.config();
        let int = |value: usize| Dynamic::from(value as i64);
        Map::from_iter([
            ("vocab_size".into(), int(c.vocab_size)),
            ("hidden_size".into(), int(c.hidden_size)),
            ("intermediate_size".into(), int(c.intermediate_size)),
            ("num_hidden_layers".into(), int(c.num_hidden_layers)),
            ("num_attention_heads".into(), int(c.num_attention_heads)),
            ("num_key_value_heads".into(), int(c.num_key_value_heads)),
            ("head_dim".into(), int(c.head_dim)),
            ("max_position_embeddings".into(), int(c.max_position_embeddings)),
            ("sliding_window".into(), c.sliding_window.map_or(Dynamic::UNIT, int)),
            ("tie_word_embeddings".into(), Dynamic::from(c.tie_word_embeddings)),
            ("rope_theta".into(), Dynamic::from(c.rope_theta)),
            ("rms_norm_eps".into(), Dynamic::from(c.rms_norm_eps)),
            ("parameters".into(), int(c.parameters())),
            ("name".into(), Dynamic::from(c.name.clone())),
        ])
    }

    /// A good peak learning rate for LoRA on a model of this size: 2e-4 at hidden size 4096, larger for small models.
    ///
    /// ```rhai
    /// let lr = lr_scheduler::linear(#{ lr: model.learning_rate, num_training_steps: 60 });
    /// ```
    #[rhai_fn(get = "learning_rate", pure)]
    pub fn learning_rate(model: &mut Model) -> f64 {
        model.learning_rate()
    }

    /// Tokens a text may have: the model's own limit, or the smaller one it was loaded with.
    ///
    /// ```rhai
    /// print(model.max_seq_length);
    /// ```
    #[rhai_fn(get = "max_seq_length", pure)]
    pub fn max_seq_length(model: &mut Model) -> i64 {
        model.max_seq_length() as i64
    }

    /// What computes: `cpu`.
    ///
    /// ```rhai
    /// print(model.device);
    /// ```
    #[rhai_fn(get = "device", pure)]
    pub fn device(model: &mut Model) -> String {
        model.device().to_owned()
    }

    /// Where the base came from: a folder, a file, or the name of the built-in one.
    ///
    /// ```rhai
    /// print(model.origin);
    /// ```
    #[rhai_fn(get = "origin", pure)]
    pub fn origin(model: &mut Model) -> String {
        model.origin().to_owned()
    }

    /// Returns the micro-batch's share of its step's mean loss (nats per target token), a differentiable tensor.
    ///
    /// ```rhai
    /// let part = model.loss(micro);
    /// part.backward();
    /// ```
    #[rhai_fn(name = "loss", pure, return_raw)]
    pub fn loss(context: NativeCallContext<'_>, model: &mut Model, micro: MicroBatch) -> Answer<Tensor> {
        model.loss(&micro.0).map(Tensor::new).map_err(|error| train_failure(&context, &error))
    }

    /// Returns `#{ loss, loss_without_eos, perplexity, tokens }`: means over all target tokens, without gradients.
    ///
    /// ```rhai
    /// print(model.evaluate(parts.test).loss);
    /// ```
    #[rhai_fn(name = "evaluate", pure, return_raw)]
    pub fn evaluate(context: NativeCallContext<'_>, model: &mut Model, tokens: Tokenized) -> Answer<Map> {
        let found = model.evaluate(tokens.examples()).map_err(|error| train_failure(&context, &error))?;
        Ok(Map::from_iter([
            ("loss".into(), Dynamic::from(found.loss)),
            ("loss_without_eos".into(), Dynamic::from(found.loss_without_eos)),
            ("perplexity".into(), Dynamic::from(found.perplexity)),
            ("tokens".into(), Dynamic::from(found.tokens as i64)),
        ]))
    }

    /// The same over the texts of batches.
    ///
    /// ```rhai
    /// print(model.evaluate(batches).loss);
    /// ```
    #[rhai_fn(name = "evaluate", pure, return_raw)]
    pub fn evaluate_batches(context: NativeCallContext<'_>, model: &mut Model, batches: Batches) -> Answer<Map> {
        evaluate(context, model, batches.tokens().clone())
    }

    /// Returns the probability in [0, 1] that `word` follows `prompt`: the product over the word's tokens.
    ///
    /// ```rhai
    /// print(model.probability("With meatballs the Swedes eat lingonberry", " jam"));
    /// ```
    #[rhai_fn(name = "probability", pure, return_raw)]
    pub fn probability(context: NativeCallContext<'_>, model: &mut Model, prompt: &str, word: &str) -> Answer<f64> {
        model.probability(prompt, word).map_err(|error| train_failure(&context, &error))
    }

    /// Returns how the model continues `prompt`, which is not part of the answer. Greedy unless `temperature` is set.
    ///
    /// ```rhai
    /// print(model.generate("Swedish meatballs are", #{ max_new_tokens: 40, temperature: 0.8, top_p: 0.9 }));
    /// ```
    #[rhai_fn(name = "generate", pure, return_raw)]
    pub fn generate(context: NativeCallContext<'_>, model: &mut Model, prompt: &str, options: Map) -> Answer<String> {
        generate_text(&context, model, prompt, &options).map(|generated| generated.text)
    }

    /// Returns how the model continues `prompt`, greedily, with at most 64 tokens.
    ///
    /// ```rhai
    /// print(model.generate("Swedish meatballs are"));
    /// ```
    #[rhai_fn(name = "generate", pure, return_raw)]
    pub fn generate_by_default(context: NativeCallContext<'_>, model: &mut Model, prompt: &str) -> Answer<String> {
        generate(context, model, prompt, Map::new())
    }

    /// Returns `#{ text, tokens, ended }`: the continuation, how many tokens it took, and whether the model ended it.
    ///
    /// ```rhai
    /// let answer = model.complete("Swedish meatballs are", #{ max_new_tokens: 40 });
    /// ```
    #[rhai_fn(name = "complete", pure, return_raw)]
    pub fn complete(context: NativeCallContext<'_>, model: &mut Model, prompt: &str, options: Map) -> Answer<Map> {
        let generated = generate_text(&context, model, prompt, &options)?;
        Ok(Map::from_iter([
            ("text".into(), Dynamic::from(generated.text)),
            ("tokens".into(), Dynamic::from(generated.ids.len() as i64)),
            ("ended".into(), Dynamic::from(generated.finish == Finish::EndOfText)),
        ]))
    }

    #[rhai_fn(name = "to_string", name = "to_debug", pure)]
    pub fn show(model: &mut Model) -> String {
        let parameters = model.config().parameters() as f64 / 1e6;
        let adapter = model.lora().map_or_else(String::new, |lora| format!("; LoRA r={}", lora.r));
        format!("Model({}, {parameters:.1} M parameters on {}{adapter})", model.config().name, model.device())
    }
}

pub(super) fn register(engine: &mut Engine) {
    engine.register_type_with_name::<Model>("Model");
    engine.register_static_module("Model", exported_module!(constructors).into());
    engine.register_global_module(exported_module!(methods).into());
}
