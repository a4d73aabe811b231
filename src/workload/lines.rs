//! A workload file as numbered lines: plain or gzip, told apart by their first bytes. Every error names the
//! file, the line and, where there is one, the column.

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::path::Path;

use flate2::bufread::MultiGzDecoder;

use crate::error::{Error, Result};

/// No workload has longer lines: ServeGen clients with their length tables reach a few megabytes.
const LINE_BYTES_MAX: usize = 64 << 20;

/// Lines of text without their ends.
pub struct Lines<'a> {
    name: String,
    reader: Box<dyn BufRead + 'a>,
    number: u64,
    bytes: Vec<u8>,
    /// The current line is handed out once more.
    again: bool,
}

impl<'a> Lines<'a> {
    pub fn open(path: &Path) -> Result<Lines<'static>> {
        let name = path.display().to_string();
        let file = File::open(path).map_err(|e| Error::user(format!("workload {name}: {e}")))?;
        Lines::new(name, BufReader::with_capacity(1 << 16, file))
    }

    pub fn new(name: impl Into<String>, mut reader: impl BufRead + 'a) -> Result<Self> {
        let name = name.into();
        let head = reader
            .fill_buf()
            .map_err(|e| Error::user(format!("workload {name}: {e}")))?;
        let packed = match head {
            [0x1f, 0x8b, ..] => true,
            [0xfd, b'7', b'z', b'X', b'Z', ..] => return Err(foreign(&name, "xz data", "xz -d")),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => return Err(foreign(&name, "zstd data", "zstd -d")),
            [b'P', b'K', 3, 4, ..] => return Err(foreign(&name, "a zip archive", "unzip")),
            [b'B', b'Z', b'h', ..] => return Err(foreign(&name, "bzip2 data", "bunzip2")),
            _ => false,
        };
        let reader: Box<dyn BufRead + 'a> = if packed {
            Box::new(BufReader::with_capacity(
                1 << 16,
                MultiGzDecoder::new(reader),
            ))
        } else {
            Box::new(reader)
        };
        Ok(Self {
            name,
            reader,
            number: 0,
            bytes: Vec::new(),
            again: false,
        })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The next line that is not blank, or `None` at the end.
    pub fn next(&mut self) -> Result<Option<&str>> {
        if !std::mem::take(&mut self.again) {
            loop {
                if !self.advance()? {
                    return Ok(None);
                }
                if !self.bytes.trim_ascii().is_empty() {
                    break;
                }
            }
        }
        match std::str::from_utf8(&self.bytes) {
            Ok(line) => Ok(Some(line)),
            Err(e) => Err(self.wrong(
                Some(e.valid_up_to() + 1),
                "not UTF-8 text: expected JSON lines or CSV",
            )),
        }
    }

    /// The next line, which a later `next` hands out again.
    pub fn peek(&mut self) -> Result<Option<&str>> {
        if self.next()?.is_none() {
            return Ok(None);
        }
        self.again = true;
        // Checked by `next`.
        Ok(std::str::from_utf8(&self.bytes).ok())
    }

    fn advance(&mut self) -> Result<bool> {
        self.bytes.clear();
        let limit = LINE_BYTES_MAX as u64 + 1;
        let read = self
            .reader
            .by_ref()
            .take(limit)
            .read_until(b'\n', &mut self.bytes);
        let n = read.map_err(|e| {
            let after = match self.number {
                0 => "before its first line ends".to_string(),
                n => format!("after line {n}"),
            };
            Error::user(match e.kind() {
                ErrorKind::UnexpectedEof => format!(
                    "{}: the gzip data stops {after}: the file is truncated",
                    self.name
                ),
                _ => format!("{}: cannot be read {after}: {e}", self.name),
            })
        })?;
        if n == 0 {
            return Ok(false);
        }
        self.number += 1;
        if n > LINE_BYTES_MAX {
            return Err(self.wrong(
                None,
                &format!(
                    "a line of more than {} MiB: expected JSON lines or CSV",
                    LINE_BYTES_MAX >> 20
                ),
            ));
        }
        while matches!(self.bytes.last(), Some(b'\n' | b'\r')) {
            self.bytes.pop();
        }
        if self.number == 1 && self.bytes.starts_with(&[0xef, 0xbb, 0xbf]) {
            self.bytes.drain(..3);
        }
        Ok(true)
    }

    /// An error at the current line.
    pub fn wrong(&self, column: Option<usize>, message: &str) -> Error {
        wrong(&self.name, self.number, column, message)
    }
}

/// An error at a line, and a column where it is known.
pub fn wrong(name: &str, line: u64, column: Option<usize>, message: &str) -> Error {
    match column {
        Some(column) => Error::user(format!("{name}:{line}:{column}: {message}")),
        None => Error::user(format!("{name}:{line}: {message}")),
    }
}

fn foreign(name: &str, what: &str, remedy: &str) -> Error {
    Error::user(format!(
        "workload {name} is {what}: expected plain text or gzip (unpack it with {remedy})"
    ))
}

/// The start of something long, for messages.
pub fn excerpt(text: &str) -> String {
    const CHARS: usize = 60;
    let mut short = String::new();
    for (n, c) in text.chars().enumerate() {
        if n == CHARS {
            short.push('…');
            break;
        }
        // What a file holds must not drive the reader's terminal.
        if c.is_control() {
            short.extend(c.escape_default());
        } else {
            short.push(c);
        }
    }
    short
}
