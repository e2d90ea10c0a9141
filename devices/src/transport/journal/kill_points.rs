//! For tests: what has been stored when a process is killed.

use std::cell::RefCell;

thread_local! {
    static BEFORE: RefCell<Option<Box<dyn FnMut()>>> = const { RefCell::new(None) };
}

/// Called before each store to a journal, and to a ring where the order matters.
pub fn about_to_store() {
    // Taken out meanwhile: what it does may store as well.
    let before = BEFORE.with_borrow_mut(Option::take);
    if let Some(mut before) = before {
        before();
        BEFORE.with_borrow_mut(|slot| *slot = Some(before));
    }
}

/// Has `before` called before each store of this thread during `body`.
pub fn watch<T>(before: impl FnMut() + 'static, body: impl FnOnce() -> T) -> T {
    struct Restore;
    impl Drop for Restore {
        fn drop(&mut self) {
            BEFORE.with_borrow_mut(|slot| *slot = None);
        }
    }
    BEFORE.with_borrow_mut(|slot| *slot = Some(Box::new(before)));
    let _restore = Restore;
    body()
}
