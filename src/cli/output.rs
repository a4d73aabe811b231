//! Writing results: to standard output, which may be closed or full, and to files.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use crate::error::{Error, Result};

/// Writes text to standard output, all of it or an error.
pub fn stdout(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(())
}

/// Says something beside the results, on standard error.
pub fn note(text: &str) {
    // Nothing can be done if standard error is gone.
    let _ = writeln!(io::stderr(), "supernode: {text}");
}

/// Writes text to a file, or to standard output for "-".
pub fn to(path: &Path, what: &str, text: &str) -> Result<()> {
    if is_stdout(path) {
        return stdout(text);
    }
    File::create(path)
        .and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.flush()
        })
        .map_err(|e| Error::failed(format!("cannot write {what} to {}: {e}", path.display())))
}

pub fn is_stdout(path: &Path) -> bool {
    path.as_os_str() == "-"
}

/// Refuses, before any work is done, a path that can never be written.
pub fn check(option: &str, path: &Path) -> Result<()> {
    if is_stdout(path) {
        return Ok(());
    }
    if path.is_dir() {
        return Err(Error::user(format!(
            "{option} {}: is a directory, expected a file",
            path.display()
        )));
    }
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    if !parent.is_dir() {
        return Err(Error::user(format!(
            "{option} {}: there is no directory {}",
            path.display(),
            parent.display()
        )));
    }
    Ok(())
}
