//! Calls into the engine that a damaged file may break: it is made for files that it wrote itself, and meets others
//! with assertions.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

thread_local! {
    /// Whether this thread is in a guarded call: a panic there is an answer, not a report for standard error.
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}
static HOOK: Once = Once::new();

/// Calls, and has a panic come back as an error that says what the engine said.
pub(crate) fn guarded<T>(call: impl FnOnce() -> Result<T, redb::Error>) -> Result<T, redb::Error> {
    HOOK.call_once(|| {
        let others = take_hook();
        set_hook(Box::new(move |panic| {
            if !GUARDED.get() {
                others(panic);
            }
        }));
    });
    let outer = GUARDED.replace(true);
    let result = catch_unwind(AssertUnwindSafe(call));
    GUARDED.set(outer);
    result.unwrap_or_else(|panic| Err(redb::Error::Corrupted(said(&*panic))))
}

fn said(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    // One line: it becomes a part of a sentence.
    let line = text.and_then(|text| text.lines().next()).unwrap_or("it does not say why");
    format!("the engine gave up on it: {line}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_of_the_engine_is_one_line_of_an_error_a10() {
        let refused = guarded::<()>(|| panic!("page {} is nobody's\nsecond line", 7)).unwrap_err().to_string();
        assert!(refused.contains("the engine gave up on it: page 7 is nobody's"), "{refused}");
        assert!(!refused.contains('\n'), "{refused}");
        assert!(!GUARDED.get());
        assert_eq!(guarded(|| guarded(|| Ok(3))).unwrap(), 3);
    }
}
