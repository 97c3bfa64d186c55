//! One configuration key: where it stands in the file, the flag that is its twin, and what the reference page says
//! about it. Keys are declared once, beside the struct field that they fill (see [`section!`]); the file, the flags,
//! the validation and `docs/configuration.md` are all read off that declaration.

use std::ops::RangeInclusive;

/// A component that keys belong to, and whether this release has it.
///
/// Keys of a component that does not exist yet are read and validated all the same, so that a published configuration
/// starts; those that ask for something else than the default are named in one warning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// What every node has: interfaces, ports, runtimes, policy, dataplane.
    Node,
    /// The management API and the metrics listener.
    Management,
    /// Replication of control-plane state.
    Cluster,
    /// The DNS proxy.
    Dns,
    /// What clients may reach by the names that they resolved.
    Grants,
    /// The TLS service plane.
    Tls,
    /// How data ports get addresses by themselves, and whom they believe.
    Dhcp,
    /// VXLAN and GENEVE.
    Overlay,
    /// The DPDK backend: where it is not built in, its mode is refused.
    Dpdk,
    /// Kubernetes sources.
    Kubernetes,
    /// Cloud integrations.
    Cloud,
    /// Sign-on through other identity providers.
    SingleSignOn,
    /// Scheduled backups.
    Backup,
    /// Dataplane behaviour that the published system had and this one does not have, or not yet.
    DataplaneTuning,
    /// Moving a node's state into a cluster: not needed any more, a node's state is already a cluster of one.
    Migration,
}

impl Part {
    /// Whether this release contains it. The one place to change when a component lands.
    pub fn exists(self) -> bool {
        matches!(
            self,
            Part::Node
                | Part::Management
                | Part::Cluster
                | Part::Dns
                | Part::Grants
                | Part::Overlay
                | Part::Backup
                | Part::Dhcp
                | Part::Migration
                | Part::Dpdk
        )
    }
}

/// How a flag takes its values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// One value.
    Single,
    /// Any number: in the file a list, as a flag repeated or separated by commas.
    List,
    /// True or false; the bare flag means true.
    Switch,
}

/// A key's declaration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// Dotted path in the file.
    pub path: String,
    /// Flag name without the leading dashes.
    pub flag: String,
    /// Other published spellings of the flag.
    pub flag_aliases: Vec<&'static str>,
    /// Another published name of the last part of the path.
    pub file_alias: Option<String>,
    /// What it does, for the reference page and `--help`.
    pub doc: String,
    /// The type of the value, in words.
    pub kind: String,
    /// The default, as one would write it, or in words.
    pub default: String,
    /// The unit of a number.
    pub unit: Option<&'static str>,
    /// What a number may be, both ends included.
    pub range: Option<RangeInclusive<u64>>,
    /// The component that uses it.
    pub part: Part,
    /// How its flag takes values.
    pub shape: Shape,
    /// Whether there is no default.
    pub required: bool,
    /// Whether giving it turns cluster mode on.
    pub enables_cluster: bool,
}

impl Key {
    /// A key called `field` below `prefix`, with the flag that follows from its path.
    pub(super) fn new(prefix: &str, part: Part, field: &str, doc: &str) -> Key {
        let path = if prefix.is_empty() {
            field.to_owned()
        } else {
            format!("{prefix}.{field}")
        };
        Key {
            flag: path.replace(['.', '_'], "-"),
            path,
            flag_aliases: Vec::new(),
            file_alias: None,
            doc: doc
                .lines()
                .map(str::trim)
                .collect::<Vec<_>>()
                .join(" ")
                .trim()
                .to_owned(),
            kind: String::new(),
            default: String::new(),
            unit: None,
            range: None,
            part,
            shape: Shape::Single,
            required: false,
            enables_cluster: false,
        }
    }

    /// The published flag name, where it is not the dotted path.
    pub(super) fn flag(mut self, name: &str) -> Key {
        self.flag = name.to_owned();
        self
    }

    /// A second published name of the flag.
    pub(super) fn flag_alias(mut self, name: &'static str) -> Key {
        self.flag_aliases.push(name);
        self
    }

    /// A second published name in the file.
    pub(super) fn file_alias(mut self, name: &str) -> Key {
        let parent = self.path.rsplit_once('.').map_or("", |(parent, _)| parent);
        self.file_alias = Some(format!("{parent}.{name}"));
        self
    }

    /// The unit of the number.
    pub(super) fn unit(mut self, unit: &'static str) -> Key {
        self.unit = Some(unit);
        self
    }

    /// What the number may be.
    pub(super) fn range(mut self, range: RangeInclusive<u64>) -> Key {
        self.range = Some(range);
        self
    }

    /// The component, where it is not that of the section.
    pub(super) fn part(mut self, part: Part) -> Key {
        self.part = part;
        self
    }

    /// The default in words, where it follows from something else.
    pub(super) fn default_is(mut self, words: &str) -> Key {
        self.default = words.to_owned();
        self
    }

    /// There is no default.
    pub(super) fn required(mut self) -> Key {
        self.required = true;
        self
    }

    /// Giving it turns cluster mode on.
    pub(super) fn enables_cluster(mut self) -> Key {
        self.enables_cluster = true;
        self
    }

    /// The range as a reader sees it.
    pub(super) fn range_in_words(&self) -> Option<String> {
        let range = self.range.as_ref()?;
        Some(match (*range.start(), *range.end()) {
            // The largest that the type holds says nothing to a reader.
            (low, high) if high >= u64::from(u32::MAX) => format!("at least {low}"),
            (low, high) => format!("{low} to {high}"),
        })
    }
}

/// Declares one section of the configuration: a struct, and for each field the key that fills it.
///
/// Reading *is* the declaration: [`super::read::Reader`] learns of a key when the section asks for it, so there is no
/// second list. Run over empty input, it yields all keys and their defaults. Groups (`group name: Type;`) come last.
macro_rules! section {
    (
        $(#[doc = $section_doc:literal])+
        $name:ident, $part:expr;
        $(
            $(#[doc = $doc:literal])+
            $field:ident: $type:ty = $default:expr $(, $attribute:ident($($argument:expr),*))*;
        )*
        $(group $group:ident: $group_type:ty;)*
    ) => {
        $(#[doc = $section_doc])+
        #[derive(Debug, Clone, PartialEq)]
        pub struct $name {
            $($(#[doc = $doc])+ pub $field: $type,)*
            $(
                #[doc = concat!("The `", stringify!($group), "` group.")]
                pub $group: $group_type,
            )*
        }

        impl $crate::config::read::Section for $name {
            const DOC: &'static str = concat!($($section_doc, "\n"),+);

            fn read(reader: &mut $crate::config::read::Reader, prefix: &str) -> Self {
                $name {
                    $($field: {
                        let key = $crate::config::key::Key::new(
                            prefix, $part, stringify!($field), concat!($($doc, "\n"),+),
                        )$(.$attribute($($argument),*))*;
                        reader.take::<$type>(key, $default)
                    },)*
                    $($group: reader.section(prefix, stringify!($group)),)*
                }
            }
        }
    };
}
pub(super) use section;
