//! Panics of a model become errors of the run. The default report on stderr is left out for them, and only for them:
//! the error says the same, with the actor and the virtual time.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind, set_hook, take_hook};
use std::sync::Once;

thread_local! {
    static CATCHING: Cell<bool> = const { Cell::new(false) };
    static PLACE: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Installs the hook, once per process; other panics go on to the hook that was there before.
pub(super) fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let previous = take_hook();
        set_hook(Box::new(move |info: &PanicHookInfo<'_>| {
            if CATCHING.try_with(Cell::get).unwrap_or(false) {
                let place = info
                    .location()
                    .map(|l| format!("{}:{}", l.file(), l.line()))
                    .unwrap_or_default();
                let _ = PLACE.try_with(|p| p.replace(place));
            } else {
                previous(info);
            }
        }));
    });
}

/// Runs `f`; a panic becomes its text and place.
pub(super) fn catch<R>(f: impl FnOnce() -> R) -> Result<R, String> {
    let outer = CATCHING.replace(true);
    let result = catch_unwind(AssertUnwindSafe(f));
    CATCHING.set(outer);
    result.map_err(|payload| {
        let text = text(payload.as_ref());
        match PLACE.take() {
            place if place.is_empty() => text,
            place => format!("{text} ({place})"),
        }
    })
}

fn text(payload: &(dyn Any + Send)) -> String {
    if let Some(s) = payload.downcast_ref::<&str>() {
        (*s).to_string()
    } else if let Some(s) = payload.downcast_ref::<String>() {
        s.clone()
    } else {
        "a panic without text".to_string()
    }
}
