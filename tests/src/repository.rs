//! The source tree that the tests were built from.

use std::path::{Path, PathBuf};

/// `path` below the top of the repository.
///
/// # Panics
/// When nothing is there.
pub fn file(path: &str) -> PathBuf {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests are one folder below the top");
    let file = top.join(path);
    assert!(file.exists(), "{} is missing from the source tree", file.display());
    file
}
