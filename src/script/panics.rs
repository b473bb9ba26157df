//! A panic in a native is a bug of ours: it is told as one, without the noise of Rust's own report.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::sync::Once;

thread_local! {
    /// `Some` while this thread runs a script: what the last panic said, and where.
    static TOLD: RefCell<Option<String>> = const { RefCell::new(None) };
}

static HOOK: Once = Once::new();

/// Runs `work`; a panic in it comes back as what it said and where it stood in our sources. Calls may nest.
pub(super) fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !record(info) {
                before(info);
            }
        }));
    });
    let outer = TOLD.replace(Some(String::new()));
    let result = catch_unwind(AssertUnwindSafe(work));
    let told = TOLD.replace(outer).unwrap_or_default();
    result.map_err(|payload| if told.is_empty() { message(payload.as_ref()) } else { told })
}

/// Notes the panic if this thread runs a script.
fn record(info: &PanicHookInfo<'_>) -> bool {
    let place = info.location().map_or_else(String::new, |at| format!(" ({}:{})", at.file(), at.line()));
    let text = format!("{}{place}", message(info.payload()));
    let note = |told: &RefCell<Option<String>>| match told.try_borrow_mut() {
        Ok(mut told) if told.is_some() => {
            *told = Some(text);
            true
        }
        _ => false,
    };
    TOLD.try_with(note).unwrap_or(false)
}

fn message(payload: &(dyn std::any::Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a message".to_string())
}
