//! JSON or YAML read into one generic tree, before anything is known about policies.
//!
//! The tree keeps duplicate keys (the decoder reports them with their path) and borrows its
//! strings from the input where it can. It is bounded three ways: bytes, depth and number of
//! values; YAML aliases may be replayed only as far as the number of values allows, so an alias
//! bomb ends as an error and not as memory.

use std::borrow::Cow;
use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

use crate::problem::Invalid;

/// Largest document, in bytes.
pub const MAX_DOCUMENT_BYTES: usize = 64 << 20;
/// Deepest nesting of lists and maps. The schema itself needs 11.
pub const MAX_DEPTH: usize = 32;
/// Most values (scalars, lists and maps together) in a document.
pub const MAX_VALUES: usize = 4_000_000;

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value<'de> {
    Null,
    Bool(bool),
    Int(i128),
    Float(f64),
    Str(Cow<'de, str>),
    List(Vec<Value<'de>>),
    Map(Vec<(Cow<'de, str>, Value<'de>)>),
}

impl Value<'_> {
    /// What a reader would call it.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Value::Null => "null",
            Value::Bool(_) => "a boolean",
            Value::Int(_) => "a number",
            Value::Float(_) => "a fraction",
            Value::Str(_) => "a string",
            Value::List(_) => "a list",
            Value::Map(_) => "a map",
        }
    }
}

pub(crate) fn parse_json(input: &[u8]) -> Result<Value<'_>, Invalid> {
    check_size(input)?;
    let left = Cell::new(MAX_VALUES);
    let mut deserializer = serde_json::Deserializer::from_slice(input);
    Seed::root(&left)
        .deserialize(&mut deserializer)
        .and_then(|value| deserializer.end().map(|()| value))
        .map_err(|e| Invalid::whole(format!("not readable as JSON: {e}")))
}

pub(crate) fn parse_yaml(input: &[u8]) -> Result<Value<'_>, Invalid> {
    check_size(input)?;
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_events: 4 * MAX_VALUES,
            max_nodes: 2 * MAX_VALUES,
            max_depth: MAX_DEPTH + 1,
            flow_nesting_limit: MAX_DEPTH + 1,
            max_documents: 1,
            max_aliases: 10_000,
            max_anchors: 10_000,
            max_recorded_anchor_events: 1_000_000,
            max_total_scalar_bytes: MAX_DOCUMENT_BYTES,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: 1_000_000,
            max_replay_stack_depth: MAX_DEPTH,
        },
        // The decoder reports both with their path: a duplicate as such, `<<` as an unknown key.
        duplicate_keys: serde_saphyr::options::DuplicateKeyPolicy::PassThrough,
        merge_keys: serde_saphyr::options::MergeKeyPolicy::AsOrdinary,
        strict_booleans: true,
        with_snippet: false,
    };
    let text = std::str::from_utf8(input)
        .map_err(|e| Invalid::whole(format!("not readable as YAML: {e}")))?;
    let left = Cell::new(MAX_VALUES);
    serde_saphyr::with_deserializer_from_str_with_options(text, options, |deserializer| {
        Seed::root(&left).deserialize(deserializer)
    })
    .map_err(|e| Invalid::whole(format!("not readable as YAML: {e}")))
}

fn check_size(input: &[u8]) -> Result<(), Invalid> {
    if input.len() > MAX_DOCUMENT_BYTES {
        return Err(Invalid::whole(format!(
            "{} bytes long; a document has at most {MAX_DOCUMENT_BYTES}",
            input.len()
        )));
    }
    Ok(())
}

/// Builds one value, drawing on the shared allowance of values.
#[derive(Clone, Copy)]
struct Seed<'c> {
    left: &'c Cell<usize>,
    depth: usize,
}

impl<'c> Seed<'c> {
    fn root(left: &'c Cell<usize>) -> Self {
        Self { left, depth: 0 }
    }

    fn take<E: serde::de::Error>(self) -> Result<(), E> {
        let left = self.left.get().checked_sub(1).ok_or_else(|| {
            E::custom(format_args!(
                "more than {MAX_VALUES} values in one document"
            ))
        })?;
        self.left.set(left);
        Ok(())
    }

    fn deeper<E: serde::de::Error>(self) -> Result<Self, E> {
        if self.depth == MAX_DEPTH {
            return Err(E::custom(format_args!(
                "nested deeper than {MAX_DEPTH} levels"
            )));
        }
        Ok(Self {
            depth: self.depth + 1,
            ..self
        })
    }
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Value<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value<'de>, D::Error> {
        self.take()?;
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Value<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Value<'de>, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value<'de>, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value<'de>, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_bool<E>(self, v: bool) -> Result<Value<'de>, E> {
        Ok(Value::Bool(v))
    }

    fn visit_i64<E>(self, v: i64) -> Result<Value<'de>, E> {
        Ok(Value::Int(v.into()))
    }

    fn visit_u64<E>(self, v: u64) -> Result<Value<'de>, E> {
        Ok(Value::Int(v.into()))
    }

    fn visit_i128<E>(self, v: i128) -> Result<Value<'de>, E> {
        Ok(Value::Int(v))
    }

    fn visit_f64<E>(self, v: f64) -> Result<Value<'de>, E> {
        Ok(Value::Float(v))
    }

    fn visit_borrowed_str<E>(self, v: &'de str) -> Result<Value<'de>, E> {
        Ok(Value::Str(Cow::Borrowed(v)))
    }

    fn visit_str<E>(self, v: &str) -> Result<Value<'de>, E> {
        Ok(Value::Str(Cow::Owned(v.to_owned())))
    }

    fn visit_string<E>(self, v: String) -> Result<Value<'de>, E> {
        Ok(Value::Str(Cow::Owned(v)))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value<'de>, A::Error> {
        let inner = self.deeper()?;
        let mut items = Vec::new();
        while let Some(item) = seq.next_element_seed(inner)? {
            items.push(item);
        }
        Ok(Value::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value<'de>, A::Error> {
        let inner = self.deeper()?;
        let mut entries = Vec::new();
        while let Some(key) = map.next_key_seed(KeySeed)? {
            entries.push((key, map.next_value_seed(inner)?));
        }
        Ok(Value::Map(entries))
    }
}

/// Keys are strings; YAML's other scalars are taken by their spelling.
struct KeySeed;

impl<'de> DeserializeSeed<'de> for KeySeed {
    type Value = Cow<'de, str>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for KeySeed {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string as key")
    }

    fn visit_borrowed_str<E>(self, v: &'de str) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(v))
    }

    fn visit_str<E>(self, v: &str) -> Result<Self::Value, E> {
        Ok(Cow::Owned(v.to_owned()))
    }

    fn visit_string<E>(self, v: String) -> Result<Self::Value, E> {
        Ok(Cow::Owned(v))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason<T: fmt::Debug>(result: Result<T, Invalid>) -> String {
        result.unwrap_err().to_string()
    }

    #[test]
    fn json_and_yaml_give_the_same_tree() {
        let json = br#"{"a": [1, -2, true, null, "x", 1.5], "b": {"c": "d"}}"#;
        let yaml = b"a: [1, -2, true, null, x, 1.5]\nb:\n  c: d\n";
        assert_eq!(parse_json(json).unwrap(), parse_yaml(yaml).unwrap());
        assert_eq!(parse_json(json).unwrap(), parse_yaml(json).unwrap());
    }

    #[test]
    fn duplicate_keys_stay_visible() {
        for tree in [parse_json(br#"{"a":1,"a":2}"#), parse_yaml(b"a: 1\na: 2\n")] {
            let Value::Map(entries) = tree.unwrap() else {
                panic!("a map")
            };
            assert_eq!(entries.len(), 2);
        }
    }

    #[test]
    fn depth_is_bounded() {
        let deep = |n: usize| format!("{}{}", "[".repeat(n), "]".repeat(n)).into_bytes();
        assert!(parse_json(&deep(MAX_DEPTH)).is_ok());
        assert!(reason(parse_json(&deep(MAX_DEPTH + 1))).contains("deeper than 32"));
        assert!(reason(parse_json(&deep(100_000))).contains("deeper than 32"));
        assert!(parse_yaml(&deep(MAX_DEPTH)).is_ok());
        assert!(parse_yaml(&deep(MAX_DEPTH + 1)).is_err());
        assert!(parse_yaml(&deep(100_000)).is_err());
        let block: String = (0..5_000)
            .map(|i| format!("{}a:\n", " ".repeat(i)))
            .collect();
        assert!(parse_yaml(block.as_bytes()).is_err());
    }

    #[test]
    fn alias_bombs_are_refused() {
        let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for i in 1..9 {
            let refs = vec![format!("*a{}", i - 1); 10].join(", ");
            bomb.push_str(&format!("a{i}: &a{i} [{refs}]\n"));
        }
        assert!(parse_yaml(bomb.as_bytes()).is_err());
        assert!(parse_yaml(b"a: &a [*a]").is_err());
        assert!(parse_yaml(b"a: &a [1, 2]\nb: *a").is_ok());
    }

    #[test]
    fn the_number_of_values_is_bounded() {
        let many = format!("[{}0]", "0,".repeat(MAX_VALUES));
        assert!(reason(parse_json(many.as_bytes())).contains("more than 4000000 values"));
    }

    #[test]
    fn too_long_a_document_is_not_even_read() {
        let long = vec![b' '; MAX_DOCUMENT_BYTES + 1];
        assert!(reason(parse_json(&long)).contains("bytes long"));
        assert!(reason(parse_yaml(&long)).contains("bytes long"));
    }

    #[test]
    fn what_is_no_document_says_so() {
        assert!(reason(parse_json(b"{")).starts_with("document: not readable as JSON: EOF"));
        assert!(reason(parse_json(b"{} x")).contains("trailing characters"));
        assert!(reason(parse_json(b"\xff")).contains("not readable as JSON"));
        assert!(reason(parse_yaml(b"\xff")).contains("not readable as YAML"));
        assert!(reason(parse_yaml(b"a: [")).contains("not readable as YAML"));
        assert!(parse_yaml(b"a: 1\n---\nb: 2\n").is_err());
    }
}
