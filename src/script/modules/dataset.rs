//! `Dataset`: rows, and rows as tokens.

use rhai::plugin::*;
use rhai::{Array, Engine, FnPtr, Map, NativeCallContext};
use serde_json::{Map as Json, Value};

use crate::data::{self, Overflow, TestSize, TokenizeOptions, Tokenized};
use crate::options;
use crate::script::{Failure, Place, names};
use crate::tokenizer::Tokenizer;

use super::{Answer, cancelled, count, failure, host, not_there_yet, number};

pub(super) use crate::data::Dataset;

options! {
    /// What `dataset.tokenize` takes.
    pub TokenizeTable for "dataset.tokenize" {
        text: String = "text", "field that holds the text";
        max_length: Option<usize> = None, 4.., "longest text in tokens, its begin and end counted";
        overflow: String = "error", ["error", "truncate", "drop", "split"], "what happens to longer texts";
        add_eos: bool = true, "whether each text ends with a trained end-of-sequence token";
    }
}

options! {
    /// What `dataset.split` takes.
    pub SplitTable for "dataset.split" {
        test_size: Dynamic, "share of the rows to hold out, or a whole number of rows";
        seed: Option<u64> = None, "which rows; the session's seed when it is not given";
    }
}

#[export_module]
mod constructors {
    use super::*;

    /// Returns the rows of a JSON lines file: one object on each line.
    ///
    /// ```rhai
    /// let dataset = Dataset::from_json("data/meatballs.jsonl");
    /// ```
    #[rhai_fn(return_raw)]
    pub fn from_json(context: NativeCallContext<'_>, path: &str) -> Answer<Dataset> {
        let path = host(&context)?.read_path(path).map_err(|error| error.at(&context))?;
        Dataset::from_json(&path).map_err(|error| unreadable(&context, &error))
    }

    /// Returns one row with the field `text` for each string.
    ///
    /// ```rhai
    /// let dataset = Dataset::from_texts(["one text", "another"]);
    /// ```
    #[rhai_fn(return_raw)]
    pub fn from_texts(context: NativeCallContext<'_>, texts: Array) -> Answer<Dataset> {
        let read = |text: &Dynamic| -> Answer<String> {
            let wrong = |_| -> Box<EvalAltResult> {
                let got = names::describe(context.engine(), text);
                Failure::at(&context, format!("every text must be a string, got {got}")).into()
            };
            text.clone().into_string().map_err(wrong)
        };
        Ok(Dataset::from_texts(texts.iter().map(read).collect::<Answer<_>>()?))
    }
}

#[export_module]
mod rows {
    use super::*;

    /// Returns how many rows there are.
    ///
    /// ```rhai
    /// print(dataset.len());
    /// ```
    #[rhai_fn(name = "len", pure)]
    pub fn len(dataset: &mut Dataset) -> i64 {
        dataset.len() as i64
    }

    /// Returns row `index` as a map, counted from 0, or from the end when negative.
    ///
    /// ```rhai
    /// print(dataset[0].text);
    /// ```
    #[rhai_fn(index_get, pure, return_raw)]
    pub fn row(context: NativeCallContext<'_>, dataset: &mut Dataset, index: i64) -> Answer<Map> {
        let len = dataset.len();
        let place = if index < 0 { index.checked_add(len as i64) } else { Some(index) };
        let row = place.and_then(|place| usize::try_from(place).ok()).and_then(|place| dataset.get(place));
        let outside = || Failure::at(&context, format!("there is no row {index}: the dataset has {len}"));
        Ok(to_map(&row.ok_or_else(outside)?.values))
    }

    /// Returns the first `count` rows.
    ///
    /// ```rhai
    /// let few = dataset.take(20);
    /// ```
    #[rhai_fn(name = "take", pure, return_raw)]
    pub fn take(context: NativeCallContext<'_>, dataset: &mut Dataset, rows: i64) -> Answer<Dataset> {
        Ok(dataset.take(count(&context, "the number of rows", rows)?))
    }

    /// Returns the rows in an order that depends on `seed` alone.
    ///
    /// ```rhai
    /// let mixed = dataset.shuffle(1337);
    /// ```
    #[rhai_fn(name = "shuffle", pure, return_raw)]
    pub fn shuffle(context: NativeCallContext<'_>, dataset: &mut Dataset, seed: i64) -> Answer<Dataset> {
        Ok(dataset.shuffle(count(&context, "a seed", seed)? as u64))
    }

    /// Returns the rows in an order that depends on the session's seed.
    ///
    /// ```rhai
    /// let mixed = dataset.shuffle();
    /// ```
    #[rhai_fn(name = "shuffle", pure, return_raw)]
    pub fn shuffle_by_session(context: NativeCallContext<'_>, dataset: &mut Dataset) -> Answer<Dataset> {
        Ok(dataset.shuffle(host(&context)?.seed()))
    }

    /// Returns the rows as the closure changes them: it gets a row's map and returns a map.
    ///
    /// ```rhai
    /// let dataset = dataset.map(|row| #{ text: `About ${row.topic}: ${row.text}` });
    /// ```
    #[rhai_fn(name = "map", pure, return_raw)]
    pub fn map(context: NativeCallContext<'_>, dataset: &mut Dataset, change: FnPtr) -> Answer<Dataset> {
        dataset.map(|row| -> Answer<Json<String, Value>> {
            let changed: Dynamic = change.call_within_context(&context, (to_map(&row.values),))?;
            let got = names::describe(context.engine(), &changed);
            let wrong = |_| Failure::at(&context, format!("the closure of `map` must return a map, got {got}"));
            to_json(&context, &changed.try_cast_result::<Map>().map_err(wrong)?)
        })
    }

    /// Returns the rows for which the closure returns true.
    ///
    /// ```rhai
    /// let long = dataset.filter(|row| row.text.len() > 100);
    /// ```
    #[rhai_fn(name = "filter", pure, return_raw)]
    pub fn filter(context: NativeCallContext<'_>, dataset: &mut Dataset, keep: FnPtr) -> Answer<Dataset> {
        dataset.filter(|row| -> Answer<bool> {
            let kept: Dynamic = keep.call_within_context(&context, (to_map(&row.values),))?;
            let got = names::describe(context.engine(), &kept);
            kept.as_bool().map_err(|_| {
                Failure::at(&context, format!("the closure of `filter` must return a bool, got {got}")).into()
            })
        })
    }

    /// Returns the rows' texts as tokens; too long a text is an error unless `overflow` says what to do with it.
    ///
    /// ```rhai
    /// let tokens = dataset.tokenize(model.tokenizer, #{ text: "text", max_length: 512 });
    /// ```
    #[rhai_fn(name = "tokenize", pure, return_raw)]
    pub fn tokenize(
        context: NativeCallContext<'_>,
        dataset: &mut Dataset,
        tokenizer: Tokenizer,
        options: Map,
    ) -> Answer<Tokenized> {
        if let Some(later) = ["prompt", "completion", "messages"].into_iter().find(|key| options.contains_key(*key)) {
            return Err(not_there_yet(&context, &format!("dataset.tokenize(…, #{{ {later}: … }})")));
        }
        let given = TokenizeTable::parse(&options, &context)?;
        let overflow = match given.overflow.as_str() {
            "truncate" => Overflow::Truncate,
            "drop" => Overflow::Drop,
            "split" => Overflow::Split,
            _ => Overflow::Error,
        };
        let TokenizeTable { text, max_length, add_eos, .. } = given;
        let options = TokenizeOptions { text, max_length, overflow, add_eos };
        let cancel = host(&context)?.cancel();
        let mut go_on = |_| !cancel.load(std::sync::atomic::Ordering::Relaxed);
        dataset.tokenize_with(&tokenizer, &options, &mut go_on).map_err(|error| match error {
            data::Error::Cancelled { .. } => cancelled(&context),
            error => failure(&context, &error),
        })
    }

    /// Returns the field `text` of the rows as tokens.
    ///
    /// ```rhai
    /// let tokens = dataset.tokenize(model.tokenizer);
    /// ```
    #[rhai_fn(name = "tokenize", pure, return_raw)]
    pub fn tokenize_by_default(
        context: NativeCallContext<'_>,
        dataset: &mut Dataset,
        tokenizer: Tokenizer,
    ) -> Answer<Tokenized> {
        tokenize(context, dataset, tokenizer, Map::new())
    }

    #[rhai_fn(name = "split", name = "batches", pure, return_raw)]
    pub fn needs_tokens(context: NativeCallContext<'_>, _dataset: &mut Dataset, _options: Map) -> Answer<Dynamic> {
        Err(tokenize_first(&context))
    }

    #[rhai_fn(name = "report", pure, return_raw)]
    pub fn report_needs_tokens(context: NativeCallContext<'_>, _dataset: &mut Dataset) -> Answer<Dynamic> {
        Err(tokenize_first(&context))
    }

    #[rhai_fn(name = "to_string", name = "to_debug", pure)]
    pub fn show(dataset: &mut Dataset) -> String {
        format!("Dataset({} rows)", dataset.len())
    }
}

#[export_module]
mod tokens {
    use super::*;

    /// Returns how many examples there are.
    ///
    /// ```rhai
    /// print(tokens.len());
    /// ```
    #[rhai_fn(name = "len", pure)]
    pub fn len(tokens: &mut Tokenized) -> i64 {
        tokens.len() as i64
    }

    /// Returns what is in the texts and what was done to them: tokens, lengths, copies, endings, cuts.
    ///
    /// ```rhai
    /// print(tokens.report());
    /// ```
    #[rhai_fn(name = "report", pure)]
    pub fn report(tokens: &mut Tokenized) -> String {
        tokens.report().to_string()
    }

    /// Returns the same facts on one line.
    ///
    /// ```rhai
    /// print(tokens.summary());
    /// ```
    #[rhai_fn(name = "summary", pure)]
    pub fn summary(tokens: &mut Tokenized) -> String {
        tokens.report().summary()
    }

    /// How many rows of a held-out part are copies of training rows; `()` where nothing was held out.
    ///
    /// ```rhai
    /// print(parts.test.copies);
    /// ```
    #[rhai_fn(get = "copies", pure)]
    pub fn copies(tokens: &mut Tokenized) -> Dynamic {
        tokens.report().held_out_copies.map_or(Dynamic::UNIT, |copies| Dynamic::from(copies as i64))
    }

    /// Returns the token ids of example `index`, counted from 0, with its begin and end.
    ///
    /// ```rhai
    /// print(model.tokenizer.decode(tokens.ids(0)));
    /// ```
    #[rhai_fn(name = "ids", pure, return_raw)]
    pub fn ids(context: NativeCallContext<'_>, tokens: &mut Tokenized, index: i64) -> Answer<Array> {
        let example = tokens.get(count(&context, "an example's number", index)?);
        let outside = || Failure::at(&context, format!("there is no example {index}: there are {}", tokens.len()));
        Ok(example.ok_or_else(outside)?.ids.iter().map(|id| Dynamic::from(i64::from(*id))).collect())
    }

    /// Returns the first `count` examples.
    ///
    /// ```rhai
    /// let few = tokens.take(20);
    /// ```
    #[rhai_fn(name = "take", pure, return_raw)]
    pub fn take(context: NativeCallContext<'_>, tokens: &mut Tokenized, rows: i64) -> Answer<Tokenized> {
        Ok(tokens.take(count(&context, "the number of examples", rows)?))
    }

    /// Returns `#{ train, test }`: a part to train on and a part held out.
    ///
    /// ```rhai
    /// let parts = tokens.split(#{ test_size: 0.05, seed: 1337 });
    /// ```
    #[rhai_fn(name = "split", pure, return_raw)]
    pub fn split(context: NativeCallContext<'_>, tokens: &mut Tokenized, options: Map) -> Answer<Map> {
        let given = SplitTable::parse(&options, &context)?;
        let size = match given.test_size.as_int() {
            Ok(rows) => TestSize::Rows(count(&context, "`test_size`", rows)?),
            Err(_) => TestSize::Share(number(&context, "`test_size`", &given.test_size)?),
        };
        let seed = given.seed.map_or_else(|| host(&context).map(|host| host.seed()), Ok)?;
        let (train, test) = tokens.split(size, seed).map_err(|error| failure(&context, &error))?;
        Ok(Map::from_iter([("train".into(), Dynamic::from(train)), ("test".into(), Dynamic::from(test))]))
    }

    #[rhai_fn(name = "to_string", name = "to_debug", pure)]
    pub fn show(tokens: &mut Tokenized) -> String {
        format!("TokenizedDataset({} examples, {} tokens)", tokens.len(), tokens.tokens())
    }
}

/// The failure of reading a file; one line of it that is wrong in itself is shown.
fn unreadable(context: &NativeCallContext<'_>, error: &data::Error) -> Box<EvalAltResult> {
    let mut failure = Failure::at(context, error.to_string());
    failure.hints.extend(error.hint().map(str::to_owned));
    if let Some((row, column, line)) = error.line() {
        failure.place = Place::of_line(&row.file, row.line, column, line);
    }
    failure.into()
}

fn tokenize_first(context: &NativeCallContext<'_>) -> Box<EvalAltResult> {
    Failure::at(context, "these rows are text still")
        .hint("turn them into tokens first: `dataset.tokenize(model.tokenizer, #{ text: \"text\" })`")
        .into()
}

/// A row as a script's map.
fn to_map(row: &Json<String, Value>) -> Map {
    row.iter().map(|(name, value)| (name.as_str().into(), to_dynamic(value))).collect()
}

fn to_dynamic(value: &Value) -> Dynamic {
    match value {
        Value::Null => Dynamic::UNIT,
        Value::Bool(value) => Dynamic::from(*value),
        Value::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(whole), _) => Dynamic::from(whole),
            (None, Some(float)) => Dynamic::from(float),
            (None, None) => Dynamic::UNIT,
        },
        Value::String(text) => Dynamic::from(text.clone()),
        Value::Array(values) => Dynamic::from(values.iter().map(to_dynamic).collect::<Array>()),
        Value::Object(values) => Dynamic::from(to_map(values)),
    }
}

fn to_json(context: &NativeCallContext<'_>, map: &Map) -> Answer<Json<String, Value>> {
    map.iter().map(|(name, value)| Ok((name.to_string(), to_value(context, value)?))).collect()
}

fn to_value(context: &NativeCallContext<'_>, value: &Dynamic) -> Answer<Value> {
    if value.is_unit() {
        return Ok(Value::Null);
    }
    if let Ok(value) = value.as_bool() {
        return Ok(Value::Bool(value));
    }
    if let Ok(value) = value.as_int() {
        return Ok(value.into());
    }
    if let Ok(value) = value.as_float() {
        return Ok(value.into());
    }
    if let Ok(text) = value.clone().into_string() {
        return Ok(Value::String(text));
    }
    if let Some(values) = value.read_lock::<Array>() {
        return values.iter().map(|value| to_value(context, value)).collect::<Answer<Vec<_>>>().map(Value::Array);
    }
    if let Some(map) = value.read_lock::<Map>() {
        return Ok(Value::Object(to_json(context, &map)?));
    }
    let got = names::describe(context.engine(), value);
    Err(Failure::at(context, format!("a row cannot hold {}", names::with_article(&got))).into())
}

pub(super) fn register(engine: &mut Engine) {
    engine.register_type_with_name::<Dataset>("Dataset").register_type_with_name::<Tokenized>("TokenizedDataset");
    let mut module = exported_module!(constructors);
    super::later::extend(&mut module, "Dataset");
    engine.register_static_module("Dataset", module.into());
    engine.register_global_module(exported_module!(rows).into());
    engine.register_global_module(exported_module!(tokens).into());
}
