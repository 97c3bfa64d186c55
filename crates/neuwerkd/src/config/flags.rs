//! The flags of `neuwerk run`, made from the keys: one flag for each key, the same value as in the file.

use std::collections::BTreeMap;

use clap::{Arg, ArgAction, ArgMatches};
use serde_json::Value as Json;

use super::Config;
use super::key::{Key, Shape};

/// What was given on the command line, by key path.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Flags(BTreeMap<String, Json>);

impl Flags {
    /// The arguments to add to a command; [`Flags::from_matches`] reads them back.
    pub fn args() -> Vec<Arg> {
        Config::keys().iter().map(arg).collect()
    }

    /// What was given of [`Flags::args`]. Values are text here; they are judged together with the file's.
    pub fn from_matches(matches: &ArgMatches) -> Flags {
        let mut flags = BTreeMap::new();
        for key in Config::keys() {
            let Ok(Some(values)) = matches.try_get_many::<String>(&key.path) else {
                continue;
            };
            let mut values: Vec<Json> = values.map(|text| Json::String(text.clone())).collect();
            let value = match key.shape {
                Shape::List => Json::Array(values),
                Shape::Single | Shape::Switch => values.pop().unwrap_or_default(),
            };
            flags.insert(key.path.clone(), value);
        }
        Flags(flags)
    }

    pub(super) fn by_path(&self) -> BTreeMap<String, Json> {
        self.0.clone()
    }
}

fn arg(key: &'static Key) -> Arg {
    let heading = key.path.split('.').next().unwrap_or_default();
    let mut help = key.doc.clone();
    if key.required {
        help.push_str(" [required, here or in the file]");
    } else {
        help.push_str(&format!(" [default: {}]", key.default));
    }
    let arg = Arg::new(key.path.as_str())
        .long(key.flag.as_str())
        .visible_aliases(key.flag_aliases.iter().copied())
        .help_heading(heading)
        .value_name(value_name(&key.kind))
        .help(help);
    match key.shape {
        Shape::Single => arg.action(ArgAction::Set),
        Shape::List => arg.action(ArgAction::Append).value_delimiter(','),
        Shape::Switch => arg
            .action(ArgAction::Set)
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true"),
    }
}

/// A short word for the kind of value.
fn value_name(kind: &str) -> &'static str {
    for (part, name) in [
        ("route", "ROUTE"),
        ("prefix length", "PREFIX"),
        ("host with a port", "HOST:PORT"),
        ("address with a port", "ADDRESS:PORT"),
        ("interface", "INTERFACE"),
        ("address", "ADDRESS"),
        ("path", "PATH"),
        ("time", "TIME"),
        ("number", "NUMBER"),
        ("true or false", "BOOL"),
    ] {
        if kind.contains(part) {
            return name;
        }
    }
    "VALUE"
}
