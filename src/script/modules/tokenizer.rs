//! `Tokenizer`: text to token ids and back.

use rhai::plugin::*;
use rhai::{Array, Engine, NativeCallContext};

use crate::script::{Failure, names};
use crate::tokenizer::{Special, Tokenizer};

use super::{Answer, failure, host};

#[export_module]
mod constructors {
    use super::*;

    /// Returns the tokenizer in a folder or a `tokenizer.json`.
    ///
    /// ```rhai
    /// let tokenizer = Tokenizer::from_pretrained("adapter");
    /// ```
    #[rhai_fn(return_raw)]
    pub fn from_pretrained(context: NativeCallContext<'_>, path: &str) -> Answer<Tokenizer> {
        let path = host(&context)?.read_path(path).map_err(|error| error.at(&context))?;
        Tokenizer::open(&path).map_err(|error| failure(&context, &error))
    }
}

#[export_module]
mod methods {
    use super::*;

    /// Returns the token ids of `text`, with what the model puts in front and without an end.
    ///
    /// ```rhai
    /// let ids = model.tokenizer.encode("Swedish meatballs");
    /// ```
    #[rhai_fn(pure, return_raw)]
    pub fn encode(context: NativeCallContext<'_>, tokenizer: &mut Tokenizer, text: &str) -> Answer<Array> {
        let ids = tokenizer.encode(text).map_err(|error| failure(&context, &error))?;
        Ok(ids.into_iter().map(|id| Dynamic::from(i64::from(id))).collect())
    }

    /// Returns the text of token ids, special tokens left out.
    ///
    /// ```rhai
    /// print(model.tokenizer.decode(ids));
    /// ```
    #[rhai_fn(pure, return_raw)]
    pub fn decode(context: NativeCallContext<'_>, tokenizer: &mut Tokenizer, ids: Array) -> Answer<String> {
        let read = |id: &Dynamic| -> Answer<u32> {
            let whole = id.as_int().ok().and_then(|id| u32::try_from(id).ok());
            whole.ok_or_else(|| {
                let got = names::describe(context.engine(), id);
                Failure::at(&context, format!("a token id must be a non-negative int, got {got}")).into()
            })
        };
        let ids = ids.iter().map(read).collect::<Answer<Vec<u32>>>()?;
        tokenizer.decode(&ids).map_err(|error| failure(&context, &error))
    }

    /// The text of the token that ends a text, `()` where there is none.
    ///
    /// ```rhai
    /// print(model.tokenizer.eos_token);
    /// ```
    #[rhai_fn(get = "eos_token", pure)]
    pub fn eos_token(tokenizer: &mut Tokenizer) -> Dynamic {
        text(tokenizer.eos())
    }

    /// The text of the token that begins a text, `()` where there is none.
    ///
    /// ```rhai
    /// print(model.tokenizer.bos_token);
    /// ```
    #[rhai_fn(get = "bos_token", pure)]
    pub fn bos_token(tokenizer: &mut Tokenizer) -> Dynamic {
        text(tokenizer.bos())
    }

    /// One more than the highest token id.
    ///
    /// ```rhai
    /// print(model.tokenizer.vocab_size);
    /// ```
    #[rhai_fn(get = "vocab_size", pure)]
    pub fn vocab_size(tokenizer: &mut Tokenizer) -> i64 {
        tokenizer.vocab_size() as i64
    }

    #[rhai_fn(name = "to_string", name = "to_debug", pure)]
    pub fn show(tokenizer: &mut Tokenizer) -> String {
        format!("Tokenizer({} tokens)", tokenizer.vocab_size())
    }
}

fn text(special: Option<&Special>) -> Dynamic {
    special.map_or(Dynamic::UNIT, |special| Dynamic::from(special.text.clone()))
}

pub(super) fn register(engine: &mut Engine) {
    engine.register_type_with_name::<Tokenizer>("Tokenizer");
    engine.register_static_module("Tokenizer", exported_module!(constructors).into());
    engine.register_global_module(exported_module!(methods).into());
}
