//! Where there is unsafe code: blocks, functions and implementations, by file and lines.
//!
//! Read by letters, not by meaning: strings and comments are passed over, braces are counted. Test modules at the end of
//! a file are left out.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// What is unsafe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Instructions: a block, or a function's body.
    Code,
    /// A promise to the compiler, or a list of foreign functions: nothing that runs.
    Declaration,
}

/// One place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Site {
    /// From the workspace's root on.
    pub(super) file: PathBuf,
    /// First and last line, from 1.
    pub(super) lines: (usize, usize),
    pub(super) kind: Kind,
}

impl std::fmt::Display for Site {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.lines.0)
    }
}

/// All sites below a directory.
pub(super) fn of_directory(root: &Path, directory: &str) -> Result<Vec<Site>> {
    let mut sites = Vec::new();
    let mut left = vec![root.join(directory)];
    while let Some(directory) = left.pop() {
        let entries = directory
            .read_dir()
            .with_context(|| format!("cannot read {}", directory.display()))?;
        for entry in entries {
            let path = entry?.path();
            if path.is_dir() {
                left.push(path);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                let text = std::fs::read_to_string(&path)?;
                let file = path.strip_prefix(root)?.to_owned();
                let found = of_text(&text).with_context(|| file.display().to_string())?;
                sites.extend(found.into_iter().map(|(lines, kind)| Site {
                    file: file.clone(),
                    lines,
                    kind,
                }));
            }
        }
    }
    sites.sort_by(|a, b| (&a.file, a.lines).cmp(&(&b.file, b.lines)));
    Ok(sites)
}

/// The lines and the kind of each site of a file.
fn of_text(text: &str) -> Result<Vec<((usize, usize), Kind)>> {
    let text = text
        .split("#[cfg(test)]\nmod tests {")
        .next()
        .unwrap_or(text);
    let code = only_code(text);
    let line_of = |at: usize| code[..at].iter().filter(|byte| **byte == b'\n').count() + 1;
    let mut sites = Vec::new();
    let mut from = 0;
    while let Some(at) = find(&code, b"unsafe", from) {
        from = at + b"unsafe".len();
        let is_word =
            |byte: Option<&u8>| byte.is_some_and(|b| b.is_ascii_alphanumeric() || *b == b'_');
        if is_word(code.get(from)) || (at > 0 && is_word(code.get(at - 1))) {
            continue;
        }
        let rest = &code[from..];
        let next = rest.iter().position(|byte| !byte.is_ascii_whitespace());
        let rest = &rest[next.unwrap_or(rest.len())..];
        // An attribute: `#[unsafe(no_mangle)]`.
        if rest.starts_with(b"(") {
            sites.push(((line_of(at), line_of(at)), Kind::Declaration));
            continue;
        }
        let is_code = rest.starts_with(b"{") || starts_with_word(rest, b"fn");
        // `unsafe extern "C" fn` has a body, or is a type; `unsafe extern "C" {` is a list.
        let open = code[from..]
            .iter()
            .position(|byte| matches!(byte, b'{' | b';' | b','));
        let Some(open) = open.map(|open| from + open) else {
            continue;
        };
        if code[open] != b'{' {
            sites.push(((line_of(at), line_of(open)), Kind::Declaration));
            continue;
        }
        let close = closing(&code, open).context("a brace is not closed")?;
        let kind = if is_code {
            Kind::Code
        } else {
            Kind::Declaration
        };
        sites.push(((line_of(at), line_of(close)), kind));
        if kind == Kind::Declaration && starts_with_word(rest, b"extern") {
            from = close;
        }
    }
    Ok(sites)
}

fn starts_with_word(text: &[u8], word: &[u8]) -> bool {
    text.starts_with(word) && text.get(word.len()).is_some_and(u8::is_ascii_whitespace)
}

fn find(text: &[u8], word: &[u8], from: usize) -> Option<usize> {
    let found = text[from..].windows(word.len()).position(|at| at == word);
    found.map(|at| from + at)
}

/// The brace that closes the one at `open`.
fn closing(code: &[u8], open: usize) -> Option<usize> {
    let mut depth = 0usize;
    for (at, byte) in code.iter().enumerate().skip(open) {
        match byte {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(at);
        }
    }
    None
}

/// The same text with blanks in place of comments, strings and characters.
fn only_code(text: &str) -> Vec<u8> {
    let text = text.as_bytes();
    let mut code = text.to_vec();
    let mut at = 0;
    while at < text.len() {
        let end = match &text[at..] {
            [b'/', b'/', ..] => end_of(text, at, b"\n"),
            [b'/', b'*', ..] => end_of(text, at + 2, b"*/"),
            [b'r', b'#', b'"', ..] => end_of(text, at + 3, b"\"#"),
            [b'"', ..] => end_of_string(text, at + 1),
            [b'\'', b'\\', ..] => end_of(text, at + 3, b"'"),
            [b'\'', _, b'\'', ..] => at + 3,
            _ => {
                at += 1;
                continue;
            }
        };
        for byte in &mut code[at..end] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
        at = end;
    }
    code
}

fn end_of(text: &[u8], from: usize, what: &[u8]) -> usize {
    find(text, what, from.min(text.len())).map_or(text.len(), |at| at + what.len())
}

fn end_of_string(text: &[u8], mut at: usize) -> usize {
    while at < text.len() && text[at] != b'"' {
        at += if text[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(text.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sites_are_found_with_all_their_lines() {
        let text = r##"// unsafe { in a comment }
const WORDS: &str = "unsafe { in a string }";
unsafe impl Send for X {}
#[unsafe(no_mangle)]
fn f(c: char) {
    let brace = '{';
    unsafe { g() };
    if unsafe {
        h("}", '\'')
    } {
        unsafe_sounding();
    }
}
unsafe extern "C" {
    fn foreign(at: *const u8);
}
pub unsafe fn k() {
    unsafe { g() }
}
type Callback = unsafe extern "C" fn(u32);
#[cfg(test)]
mod tests {
    fn t() {
        unsafe { g() }
    }
}
"##;
        use Kind::{Code, Declaration};
        assert_eq!(
            of_text(text).unwrap(),
            [
                ((3, 3), Declaration),
                ((4, 4), Declaration),
                ((7, 7), Code),
                ((8, 10), Code),
                ((14, 16), Declaration),
                ((17, 19), Code),
                ((18, 18), Code),
                ((20, 20), Declaration),
            ]
        );
    }
}
