//! Reads sections out of a parsed file and a set of flags. It collects every problem instead of stopping at the
//! first, learns the keys as the sections ask for them, and at the end knows which parts of the file nobody asked for.

use std::collections::BTreeMap;

use serde_json::{Map, Value as Json};

use super::key::Key;
use super::value::Value;
use super::{Invalid, Problem};

/// A group of keys that becomes one struct.
pub(super) trait Section: Sized {
    /// What the group is about, for the reference page.
    const DOC: &'static str;

    /// Asks `reader` for each of its keys, which stand below `prefix`.
    fn read(reader: &mut Reader, prefix: &str) -> Self;
}

/// The heading of a group in the reference page.
#[derive(Debug, Clone)]
pub(super) struct Heading {
    pub(super) path: String,
    pub(super) doc: &'static str,
    /// How many keys came before it.
    pub(super) first_key: usize,
}

/// A value that the operator gave, and where.
struct Given {
    /// Key path or flag, as it is named in errors.
    at: String,
    raw: Json,
}

/// The state of one reading.
#[derive(Default)]
pub(super) struct Reader {
    file: Map<String, Json>,
    flags: BTreeMap<String, Json>,
    pub(super) keys: Vec<Key>,
    pub(super) headings: Vec<Heading>,
    pub(super) problems: Vec<Problem>,
    /// Keys and flags that were given, as named in errors, by key path.
    given: BTreeMap<String, String>,
    /// Their values, as one would write them, by key path.
    pub(super) shown: BTreeMap<String, String>,
    /// Keys and flags that ask for something that this release does not have.
    pub(super) without_effect: Vec<String>,
}

impl Reader {
    /// A reading of `file` (the document's top-level mapping) and of flags by key path; a flag wins.
    pub(super) fn new(file: Map<String, Json>, flags: BTreeMap<String, Json>) -> Reader {
        Reader {
            file,
            flags,
            ..Reader::default()
        }
    }

    /// Reads the group `name` below `prefix`.
    pub(super) fn section<S: Section>(&mut self, prefix: &str, name: &str) -> S {
        let path = if prefix.is_empty() {
            name.to_owned()
        } else {
            format!("{prefix}.{name}")
        };
        self.headings.push(Heading {
            path: path.clone(),
            doc: S::DOC,
            first_key: self.keys.len(),
        });
        S::read(self, &path)
    }

    /// The value of `key`: from the flag, else from the file, else `default`.
    pub(super) fn take<T: Value>(&mut self, mut key: Key, default: T) -> T {
        key.kind = T::kind();
        key.shape = T::SHAPE;
        if key.default.is_empty() {
            key.default = default.show();
        }
        let value = match self.find(&key) {
            Some(given) => {
                self.given.insert(key.path.clone(), given.at.clone());
                let value = self.read_value(&key, given, default);
                self.shown.insert(key.path.clone(), value.show());
                value
            }
            None => {
                if key.required {
                    self.problem(
                        &key.path,
                        format!("is required; set it in the file or give --{}", key.flag),
                    );
                }
                default
            }
        };
        self.keys.push(key);
        value
    }

    fn read_value<T: Value>(&mut self, key: &Key, given: Given, default: T) -> T {
        let value = match T::parse(&given.raw) {
            Ok(value) => value,
            Err(faults) => {
                for fault in faults {
                    self.problem(&format!("{}{}", given.at, fault.at), fault.reason);
                }
                return default;
            }
        };
        if let (Some(range), Some(number)) = (&key.range, value.number())
            && !range.contains(&number)
        {
            let words = key.range_in_words().unwrap_or_default();
            self.problem(
                &given.at,
                format!("{number} is out of range; it must be {words}"),
            );
            return default;
        }
        if !key.part.exists() && value != default {
            self.without_effect.push(given.at);
        }
        value
    }

    /// What was given for `key`. The file's value is taken out either way, so that what stays behind is unknown.
    fn find(&mut self, key: &Key) -> Option<Given> {
        let in_file = remove(&mut self.file, &key.path).map(|raw| Given {
            at: key.path.clone(),
            raw,
        });
        let aliased = key.file_alias.as_ref().and_then(|alias| {
            remove(&mut self.file, alias).map(|raw| Given {
                at: alias.clone(),
                raw,
            })
        });
        if let (Some(one), Some(other)) = (&in_file, &aliased) {
            let reason = format!("is another name of {}; keep one of the two", one.at);
            let at = other.at.clone();
            self.problem(&at, reason);
        }
        match self.flags.remove(&key.path) {
            Some(raw) => Some(Given {
                at: format!("--{}", key.flag),
                raw,
            }),
            // A key without a value is a key that was not given.
            None => in_file.or(aliased).filter(|given| !given.raw.is_null()),
        }
    }

    /// Whether the operator gave the key at `path`, in the file or as a flag.
    pub(super) fn was_given(&self, path: &str) -> bool {
        self.given.contains_key(path)
    }

    /// Records that what was given at `path` is refused, under the name by which it was given.
    pub(super) fn problem(&mut self, path: &str, reason: String) {
        let at = self
            .given
            .get(path)
            .cloned()
            .unwrap_or_else(|| path.to_owned());
        self.problems.push(Problem { at, reason });
    }

    /// Records that what was given at `path` asks for something that this release does not have.
    pub(super) fn has_no_effect(&mut self, path: &str) {
        let at = self
            .given
            .get(path)
            .cloned()
            .unwrap_or_else(|| path.to_owned());
        if !self.without_effect.contains(&at) {
            self.without_effect.push(at);
        }
    }

    /// Refuses what is left of the file, then says whether anything was refused.
    pub(super) fn finish(&mut self) -> Result<(), Invalid> {
        let mut left = Vec::new();
        leaves(
            &Json::Object(std::mem::take(&mut self.file)),
            String::new(),
            &mut left,
        );
        for (path, value) in left {
            // A group whose keys were all taken, or that was left empty.
            let group = self
                .keys
                .iter()
                .any(|key| key.path.starts_with(&format!("{path}.")));
            if group && (value.is_null() || value == Json::Object(Map::new())) {
                continue;
            }
            let reason = if group {
                format!("is a group of keys, not a value; write its keys below it, not {value}")
            } else {
                match nearest(&path, &self.keys) {
                    Some(near) => format!("is not a known key; did you mean {near}?"),
                    None => "is not a known key; docs/configuration.md lists all keys".into(),
                }
            };
            self.problems.push(Problem { at: path, reason });
        }
        if self.problems.is_empty() {
            Ok(())
        } else {
            Err(Invalid {
                problems: std::mem::take(&mut self.problems),
            })
        }
    }
}

/// Takes the value at a dotted path out of `map`.
fn remove(map: &mut Map<String, Json>, path: &str) -> Option<Json> {
    match path.split_once('.') {
        None => map.remove(path),
        Some((head, rest)) => remove(map.get_mut(head)?.as_object_mut()?, rest),
    }
}

/// All ends of a tree, by dotted path.
fn leaves(value: &Json, path: String, out: &mut Vec<(String, Json)>) {
    match value {
        Json::Object(map) if !map.is_empty() || path.is_empty() => {
            for (name, below) in map {
                let path = if path.is_empty() {
                    name.clone()
                } else {
                    format!("{path}.{name}")
                };
                leaves(below, path, out);
            }
        }
        other => out.push((path, other.clone())),
    }
}

/// The known key that is most like `path`: like it as a whole, or with the same last part in another group.
fn nearest<'a>(path: &str, keys: &'a [Key]) -> Option<&'a str> {
    let last = |path: &str| path.rsplit('.').next().unwrap_or_default().to_owned();
    let same_name = keys.iter().find(|key| last(&key.path) == last(path));
    let likeness = |key: &&Key| (strsim::jaro_winkler(&key.path, path) * 1000.0) as u32;
    let alike = keys
        .iter()
        .max_by_key(likeness)
        .filter(|key| likeness(key) > 880);
    match (same_name, alike) {
        (_, Some(alike)) if strsim::levenshtein(&alike.path, path) <= 3 => Some(&alike.path),
        (Some(same), _) => Some(&same.path),
        (None, alike) => alike.map(|key| key.path.as_str()),
    }
}
