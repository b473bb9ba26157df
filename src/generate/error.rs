//! Why no text came.

/// Why generation refused or ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Tokenizer(#[from] crate::tokenizer::Error),
    /// What the model itself answered; whoever implements `Decoder` knows the type.
    #[error("{0}")]
    Model(Box<dyn std::error::Error + Send + Sync>),
    #[error("the prompt is empty and this model's texts have no first token to begin from: give a prompt")]
    EmptyPrompt,
    #[error(
        "the prompt has {prompt} tokens and `max_new_tokens` is {new}, the model reads {context}: {}",
        remedy(*prompt, *context)
    )]
    Context { prompt: usize, new: usize, context: usize },
    #[error("the logit of token {token} is not a finite number: the model's weights or its adapter are broken")]
    NotFinite { token: usize },
    #[error("the model gave no logits to choose a token from")]
    NoLogits,
}

fn remedy(prompt: usize, context: usize) -> String {
    match context.checked_sub(prompt) {
        Some(left) if left > 0 => format!("ask for at most {left} new tokens"),
        _ => "give a shorter prompt".to_owned(),
    }
}

pub type Result<T> = std::result::Result<T, Error>;
