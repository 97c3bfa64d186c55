//! How one value is read from the file or from a flag, and shown in the reference page.
//!
//! The file gives typed YAML scalars and lists, a flag gives text; both arrive here as JSON values, and a text that
//! spells a number or a truth value is taken as such.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use ipnet::IpNet;
use serde_json::Value as Json;

use super::key::Shape;

/// Why a value was refused: a sentence that names the value and what to write instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    /// Which element of a list, as `[2]`; empty for the value itself.
    pub(super) at: String,
    pub(super) reason: String,
}

/// A type that a key may have.
pub(super) trait Value: Sized + PartialEq {
    /// How its flag takes values.
    const SHAPE: Shape = Shape::Single;

    /// The type in words, for the reference page.
    fn kind() -> String;

    /// Reads it, or says everything that is wrong with it.
    fn parse(raw: &Json) -> Result<Self, Vec<Fault>>;

    /// How it would be written in the file.
    fn show(&self) -> String;

    /// The number whose range is checked, if it is one.
    fn number(&self) -> Option<u64> {
        None
    }
}

/// A refusal of the whole value.
pub(super) fn refuse<T>(reason: String) -> Result<T, Vec<Fault>> {
    Err(vec![Fault {
        at: String::new(),
        reason,
    }])
}

/// The value as it is named in an error.
pub(super) fn shown(raw: &Json) -> String {
    match raw {
        Json::Object(_) => "a mapping".into(),
        Json::Array(_) => "a list".into(),
        other => other.to_string(),
    }
}

/// A scalar's text. Lists, mappings and nulls have none.
pub(super) fn text(raw: &Json) -> Option<String> {
    match raw {
        Json::String(s) => Some(s.trim().to_owned()),
        Json::Number(n) => Some(n.to_string()),
        Json::Bool(b) => Some(b.to_string()),
        _ => None,
    }
}

/// Implements [`Value`] for a type that is read from its text.
macro_rules! text_value {
    ($type:ty, $kind:expr, $example:expr, |$text:ident| $parse:expr) => {
        impl $crate::config::value::Value for $type {
            fn kind() -> String {
                $kind.into()
            }

            fn parse(raw: &serde_json::Value) -> Result<Self, Vec<$crate::config::value::Fault>> {
                use $crate::config::value::{refuse, shown, text};
                let parsed: Option<$type> = text(raw).and_then(|$text: String| $parse);
                match parsed {
                    Some(value) => Ok(value),
                    None => refuse(format!(
                        "{} is not {}; write for example {}",
                        shown(raw),
                        $kind,
                        $example
                    )),
                }
            }

            fn show(&self) -> String {
                self.to_string()
            }
        }
    };
}
pub(super) use text_value;

text_value!(IpAddr, "an IP address", "10.0.0.53 or fd00::53", |text| {
    text.parse().ok()
});
text_value!(
    SocketAddr,
    "an address with a port",
    "10.0.0.1:9600 or [fd00::1]:9600",
    |text| text.parse().ok()
);
text_value!(
    IpNet,
    "an address with a prefix length",
    "10.0.0.0/8 or fd00::/8",
    |text| text.parse().ok()
);
text_value!(String, "a text", "eu-central-1", |text| (!text.is_empty())
    .then_some(text));

impl Value for PathBuf {
    fn kind() -> String {
        "an absolute path".into()
    }

    fn parse(raw: &Json) -> Result<Self, Vec<Fault>> {
        match raw {
            Json::String(path) if path.starts_with('/') => Ok(path.into()),
            _ => refuse(format!(
                "{} is not an absolute path; write for example /var/lib/neuwerk",
                shown(raw)
            )),
        }
    }

    fn show(&self) -> String {
        self.display().to_string()
    }
}

impl Value for bool {
    const SHAPE: Shape = Shape::Switch;

    fn kind() -> String {
        "true or false".into()
    }

    fn parse(raw: &Json) -> Result<Self, Vec<Fault>> {
        match raw {
            Json::Bool(value) => Ok(*value),
            Json::String(text) if text == "true" => Ok(true),
            Json::String(text) if text == "false" => Ok(false),
            _ => refuse(format!("{} is neither true nor false", shown(raw))),
        }
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

macro_rules! number_value {
    ($($type:ty),*) => {$(
        impl Value for $type {
            fn kind() -> String {
                "a whole number".into()
            }

            fn parse(raw: &Json) -> Result<Self, Vec<Fault>> {
                let number = match raw {
                    Json::Number(number) => number.as_u64(),
                    Json::String(text) => text.trim().parse().ok(),
                    _ => None,
                };
                match number {
                    Some(number) => <$type>::try_from(number).or_else(|_| {
                        refuse(format!("{number} is too large; at most {} fits", <$type>::MAX))
                    }),
                    None => refuse(format!("{} is not a whole number from 0 up", shown(raw))),
                }
            }

            fn show(&self) -> String {
                self.to_string()
            }

            fn number(&self) -> Option<u64> {
                Some(u64::from(*self))
            }
        }
    )*};
}
number_value!(u8, u16, u32, u64);

impl<T: Value> Value for Option<T> {
    const SHAPE: Shape = T::SHAPE;

    fn kind() -> String {
        T::kind()
    }

    fn parse(raw: &Json) -> Result<Self, Vec<Fault>> {
        T::parse(raw).map(Some)
    }

    fn show(&self) -> String {
        self.as_ref().map_or_else(|| "unset".into(), T::show)
    }

    fn number(&self) -> Option<u64> {
        self.as_ref().and_then(T::number)
    }
}

impl<T: Value> Value for Vec<T> {
    const SHAPE: Shape = Shape::List;

    fn kind() -> String {
        format!(
            "list of {}",
            T::kind().trim_start_matches("an ").trim_start_matches("a ")
        )
    }

    /// A single value is a list of one.
    fn parse(raw: &Json) -> Result<Self, Vec<Fault>> {
        let Json::Array(elements) = raw else {
            return T::parse(raw).map(|value| vec![value]);
        };
        let (mut values, mut faults) = (Vec::with_capacity(elements.len()), Vec::new());
        for (index, element) in elements.iter().enumerate() {
            match T::parse(element) {
                Ok(value) => values.push(value),
                Err(found) => faults.extend(found.into_iter().map(|fault| Fault {
                    at: format!("[{index}]{}", fault.at),
                    ..fault
                })),
            }
        }
        if faults.is_empty() {
            Ok(values)
        } else {
            Err(faults)
        }
    }

    fn show(&self) -> String {
        if self.is_empty() {
            return "none".into();
        }
        self.iter().map(T::show).collect::<Vec<_>>().join(", ")
    }
}

/// Either what the node finds out by itself, written `auto`, or a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Auto<T> {
    /// The node decides.
    Auto,
    /// The operator has decided.
    Fixed(T),
}

impl<T: Value> Value for Auto<T> {
    fn kind() -> String {
        format!("auto, or {}", T::kind())
    }

    fn parse(raw: &Json) -> Result<Self, Vec<Fault>> {
        match raw {
            Json::String(text) if text == "auto" => Ok(Auto::Auto),
            _ => T::parse(raw).map(Auto::Fixed),
        }
    }

    fn show(&self) -> String {
        match self {
            Auto::Auto => "auto".into(),
            Auto::Fixed(value) => value.show(),
        }
    }

    fn number(&self) -> Option<u64> {
        match self {
            Auto::Auto => None,
            Auto::Fixed(value) => value.number(),
        }
    }
}

/// Declares a type with a closed set of spellings; the first spelling of a variant is the one that is shown.
macro_rules! choice {
    (
        $(#[doc = $doc:literal])+
        $name:ident { $($(#[doc = $variant_doc:literal])+ $variant:ident = $spelling:literal $(| $other:literal)*,)+ }
    ) => {
        $(#[doc = $doc])+
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name {
            $($(#[doc = $variant_doc])+ $variant,)+
        }

        impl $name {
            /// The value as it is written in the file.
            pub fn as_str(self) -> &'static str {
                match self { $($name::$variant => $spelling,)+ }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl $crate::config::value::Value for $name {
            fn kind() -> String {
                [$($spelling),+].join(", ")
            }

            fn parse(raw: &serde_json::Value) -> Result<Self, Vec<$crate::config::value::Fault>> {
                use $crate::config::value::{refuse, shown, text};
                match text(raw).map(|text| text.to_ascii_lowercase()).as_deref() {
                    $(Some($spelling $(| $other)*) => Ok($name::$variant),)+
                    _ => refuse(format!("{} is not one of {}", shown(raw), Self::kind())),
                }
            }

            fn show(&self) -> String {
                self.as_str().into()
            }
        }
    };
}
pub(super) use choice;

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[track_caller]
    fn reads<T: Value + std::fmt::Debug>(raw: Json, expected: T) {
        assert_eq!(T::parse(&raw), Ok(expected));
    }

    #[track_caller]
    fn refuses<T: Value + std::fmt::Debug>(raw: Json, at: &str, words: &str) {
        let faults = T::parse(&raw).unwrap_err();
        assert!(
            faults
                .iter()
                .any(|f| f.at == at && f.reason.contains(words)),
            "{faults:?}"
        );
    }

    #[test]
    fn a_flags_text_reads_like_the_files_scalar() {
        reads(json!(300), 300_u32);
        reads(json!("300"), 300_u32);
        reads(json!(true), true);
        reads(json!("false"), false);
        reads(json!("fd00::1"), "fd00::1".parse::<IpAddr>().unwrap());
        reads(
            json!("[fd00::1]:53"),
            "[fd00::1]:53".parse::<SocketAddr>().unwrap(),
        );
        reads(json!("auto"), Auto::<u32>::Auto);
        reads(json!(4), Auto::Fixed(4_u32));
    }

    #[test]
    fn a_refusal_names_the_value_and_what_to_write() {
        refuses::<u16>(json!(70000), "", "70000 is too large; at most 65535");
        refuses::<u32>(json!(-1), "", "-1 is not a whole number");
        refuses::<u32>(json!(1.5), "", "1.5 is not a whole number");
        refuses::<bool>(json!("yes"), "", "\"yes\" is neither true nor false");
        refuses::<SocketAddr>(json!("10.0.0.1"), "", "write for example 10.0.0.1:9600");
        refuses::<PathBuf>(json!("tls"), "", "absolute path");
        refuses::<String>(json!(["a"]), "", "a list is not a text");
    }

    #[test]
    fn every_bad_element_of_a_list_is_named() {
        let raw = json!(["10.0.0.1", "x", "10.0.0.2", 5]);
        refuses::<Vec<IpAddr>>(raw.clone(), "[1]", "\"x\"");
        refuses::<Vec<IpAddr>>(raw, "[3]", "5");
    }
}
