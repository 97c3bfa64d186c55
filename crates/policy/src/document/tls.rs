//! The TLS part of a rule: what a handshake must show (`metadata`), or what the HTTP requests
//! inside an intercepted connection must look like (`intercept`).

use std::collections::BTreeMap;

use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};

use super::decode::{Decoder, Fields};
use super::scalar::{Refused, shown};
use crate::problem::Path;
use crate::tree::Value;

/// How a connection is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TlsMode {
    /// The handshake is read as it passes.
    Metadata,
    /// The connection is terminated and its requests are read.
    Intercept,
}

/// What happens when a certificate matcher meets TLS 1.3, which encrypts certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Uninspectable {
    /// It passes.
    Allow,
    /// It does not.
    Deny,
}

/// The TLS selectors of a rule; all that are set must hold.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct TlsMatch {
    /// Absent means metadata.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<TlsMode>,
    /// Server name indication (RFC 6066 section 3).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sni: Option<NameMatch>,
    /// Subject of the server's certificate, compared as a whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_dn: Option<String>,
    /// Any subject alternative name of the server's certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_san: Option<NameMatch>,
    /// Common name of the server's certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_cn: Option<NameMatch>,
    /// SHA-256 of the server's certificate: 64 lower case hexadecimal digits each.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub fingerprint_sha256: Vec<String>,
    /// PEM certificates that the server's chain must end in. Empty means the system's.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub trust_anchors_pem: Vec<String>,
    /// Absent means deny.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls13_uninspectable: Option<Uninspectable>,
    /// Requests and responses; set exactly if the mode is intercept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpPolicy>,
}

impl TlsMatch {
    /// The mode in force.
    #[must_use]
    pub fn mode(&self) -> TlsMode {
        self.mode.unwrap_or(TlsMode::Metadata)
    }
}

/// A name in a handshake: one of some exact names, or a regular expression found in it.
///
/// Written as a string (regular expression), a list (exact names) or an object with both.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct NameMatch {
    /// Exact names, in lower case.
    pub exact: Vec<String>,
    /// Regular expression, ASCII case ignored.
    pub regex: Option<String>,
}

impl Serialize for NameMatch {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.regex {
            Some(regex) if self.exact.is_empty() => serializer.serialize_str(regex),
            None => self.exact.serialize(serializer),
            Some(regex) => {
                let mut map = serializer.serialize_map(Some(2))?;
                map.serialize_entry("exact", &self.exact)?;
                map.serialize_entry("regex", regex)?;
                map.end()
            }
        }
    }
}

/// What intercepted HTTP must look like; at least one side is set.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct HttpPolicy {
    /// The request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request: Option<HttpRequest>,
    /// The response.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response: Option<HttpResponse>,
}

/// What a request must look like; all that is set must hold.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct HttpRequest {
    /// Host, in lower case.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<HttpString>,
    /// Methods, in upper case; empty holds for all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<String>,
    /// Path without the query, case matters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<HttpPath>,
    /// Query parameters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub query: Option<HttpQuery>,
    /// Headers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub headers: Option<HttpHeaders>,
}

/// What a response must look like.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct HttpResponse {
    /// Headers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub headers: Option<HttpHeaders>,
}

/// A string: one of some, or a regular expression found in it. At least one is set.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct HttpString {
    /// Exact strings.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub exact: Vec<String>,
    /// Regular expression.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub regex: Option<String>,
}

/// A path: one of some, below one of some, or a regular expression found in it. At least one is set.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct HttpPath {
    /// Exact paths.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub exact: Vec<String>,
    /// Beginnings.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub prefix: Vec<String>,
    /// Regular expression.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub regex: Option<String>,
}

/// Query parameters. At least one is set.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct HttpQuery {
    /// Keys that must be there.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub keys_present: Vec<String>,
    /// Keys whose value must be one of some.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub key_values_exact: BTreeMap<String, Vec<String>>,
    /// Keys whose value must match a regular expression.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub key_values_regex: BTreeMap<String, String>,
}

/// Headers, their names in lower case. At least one is set.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct HttpHeaders {
    /// Headers that must be there.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub require_present: Vec<String>,
    /// Headers that must not be there.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub deny_present: Vec<String>,
    /// Headers whose value must be one of some.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub exact: BTreeMap<String, Vec<String>>,
    /// Headers whose value must match a regular expression.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub regex: BTreeMap<String, String>,
}

const MODES: [(&str, TlsMode); 2] = [
    ("metadata", TlsMode::Metadata),
    ("intercept", TlsMode::Intercept),
];
const UNINSPECTABLE: [(&str, Uninspectable); 2] = [
    ("allow", Uninspectable::Allow),
    ("deny", Uninspectable::Deny),
];

pub(super) fn decode_tls(
    decoder: &mut Decoder,
    value: &Value<'_>,
    path: &Path<'_>,
) -> Option<TlsMatch> {
    let known = [
        "mode",
        "sni",
        "server_dn",
        "server_san",
        "server_cn",
        "fingerprint_sha256",
        "trust_anchors_pem",
        "tls13_uninspectable",
        "http",
    ];
    let fields = decoder.fields(value, path, &known)?;
    let mode = decoder.word(fields.get("mode"), &path.key("mode"), &MODES);
    let name = |decoder: &mut Decoder, key: &str| {
        fields
            .get(key)
            .and_then(|value| name_match(decoder, value, &path.key(key)))
    };
    let tls = TlsMatch {
        mode,
        sni: name(decoder, "sni"),
        server_dn: fields
            .get("server_dn")
            .and_then(|value| decoder.filled(value, &path.key("server_dn")))
            .and_then(|text| {
                let dn = normal_dn(text);
                decoder.accept(&path.key("server_dn"), dn)
            }),
        server_san: name(decoder, "server_san"),
        server_cn: name(decoder, "server_cn"),
        fingerprint_sha256: decoder.each_text(
            fields.get("fingerprint_sha256"),
            &path.key("fingerprint_sha256"),
            fingerprint,
        ),
        trust_anchors_pem: decoder.each_text(
            fields.get("trust_anchors_pem"),
            &path.key("trust_anchors_pem"),
            trust_anchor,
        ),
        tls13_uninspectable: decoder.word(
            fields.get("tls13_uninspectable"),
            &path.key("tls13_uninspectable"),
            &UNINSPECTABLE,
        ),
        http: fields
            .get("http")
            .and_then(|value| http_policy(decoder, value, &path.key("http"))),
    };
    match (tls.mode(), fields.get("http").is_some()) {
        (TlsMode::Intercept, false) => {
            decoder.add(path, "mode intercept needs the key `http`");
        }
        (TlsMode::Metadata, true) => {
            decoder.add(&path.key("http"), "HTTP is only seen in mode intercept");
        }
        _ => {}
    }
    if tls.mode() == TlsMode::Intercept {
        for key in &known[1..7] {
            if fields.get(key).is_some() {
                decoder.add(
                    &path.key(key),
                    "mode intercept cannot be combined with handshake selectors",
                );
            }
        }
    }
    Some(tls)
}

fn name_match(decoder: &mut Decoder, value: &Value<'_>, path: &Path<'_>) -> Option<NameMatch> {
    let mut matcher = NameMatch::default();
    match value {
        Value::Str(_) => matcher.regex = regex(decoder, Some(value), path),
        Value::List(items) => {
            if items.is_empty() {
                decoder.add(path, "must not be empty");
            }
            matcher.exact = lower_names(decoder, Some(value), path);
        }
        Value::Map(_) => {
            let fields = decoder.fields(value, path, &["exact", "regex"])?;
            some_of(decoder, fields, path, &["exact", "regex"]);
            matcher.exact = lower_names(decoder, fields.get("exact"), &path.key("exact"));
            matcher.regex = regex(decoder, fields.get("regex"), &path.key("regex"));
        }
        other => decoder.add(
            path,
            format!(
                "expected a regular expression, a list of names or a map of both, found {}",
                other.kind()
            ),
        ),
    }
    decoder.count_names(matcher.exact.len());
    Some(matcher)
}

fn lower_names(decoder: &mut Decoder, value: Option<&Value<'_>>, path: &Path<'_>) -> Vec<String> {
    decoder.each(value, path, |decoder, item, path| {
        let name = decoder.filled(item, path)?.trim();
        Some(name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase())
    })
}

fn regex(decoder: &mut Decoder, value: Option<&Value<'_>>, path: &Path<'_>) -> Option<String> {
    let pattern = decoder.filled(value?, path)?.trim();
    decoder.regex(pattern, path);
    Some(pattern.to_owned())
}

/// Reports a part with nothing in it. Parts of it that are empty maps report that themselves.
fn some_part_of(decoder: &mut Decoder, fields: Fields<'_, '_>, path: &Path<'_>, keys: &[&str]) {
    some(decoder, fields, path, keys, true);
}

/// Reports a matcher with nothing in it.
fn some_of(decoder: &mut Decoder, fields: Fields<'_, '_>, path: &Path<'_>, keys: &[&str]) {
    some(decoder, fields, path, keys, false);
}

fn some(
    decoder: &mut Decoder,
    fields: Fields<'_, '_>,
    path: &Path<'_>,
    keys: &[&str],
    empty_map_is_some: bool,
) {
    let given = |key: &&str| match fields.get(key) {
        Some(Value::List(items)) => !items.is_empty(),
        Some(Value::Map(entries)) => empty_map_is_some || !entries.is_empty(),
        other => other.is_some(),
    };
    if !keys.iter().any(given) {
        let keys = keys.join(", ");
        decoder.add(path, format!("empty: give at least one of {keys}"));
    }
}

/// A distinguished name in the order and form written, its attribute types in upper case and
/// without white space around `,`, `+` and `=` (RFC 4514 escapes stay).
fn normal_dn(text: &str) -> Result<String, Refused> {
    let mut out = String::with_capacity(text.len());
    for (i, part) in split_unescaped(text, &[',', '+']).into_iter().enumerate() {
        let (separator, attribute) = part;
        if i > 0 {
            out.extend(separator);
        }
        let Some((name, value)) = attribute.split_once('=') else {
            return Err(Refused::new(format!(
                "{} is no distinguished name: {} is not of the form TYPE=value",
                shown(text),
                shown(attribute.trim())
            )));
        };
        let (name, value) = (name.trim(), value.trim());
        let known_form = name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-'));
        if name.is_empty() || value.is_empty() || !known_form {
            return Err(Refused::new(format!(
                "{} is no distinguished name: {} is not of the form TYPE=value",
                shown(text),
                shown(attribute.trim())
            )));
        }
        out.push_str(&name.to_ascii_uppercase());
        out.push('=');
        out.push_str(value);
    }
    Ok(out)
}

/// Splits at separators that no backslash precedes; each part comes with the separator before it.
fn split_unescaped<'a>(text: &'a str, separators: &[char]) -> Vec<(Option<char>, &'a str)> {
    let (mut parts, mut start, mut before, mut escaped) = (Vec::new(), 0, None, false);
    for (i, c) in text.char_indices() {
        if !escaped && separators.contains(&c) {
            parts.push((before, &text[start..i]));
            (start, before) = (i + c.len_utf8(), Some(c));
        }
        escaped = c == '\\' && !escaped;
    }
    parts.push((before, &text[start..]));
    parts
}

fn fingerprint(text: &str) -> Result<String, Refused> {
    let digits: String = text
        .chars()
        .filter(|c| !c.is_whitespace() && *c != ':')
        .collect();
    if digits.len() == 64 && digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Ok(digits.to_ascii_lowercase());
    }
    Err(Refused::new(format!(
        "{} is not a SHA-256 fingerprint of 64 hexadecimal digits",
        shown(text)
    )))
}

/// One or more certificates and nothing else that PEM could carry.
fn trust_anchor(text: &str) -> Result<String, Refused> {
    let mut certificates = 0;
    for block in x509_parser::pem::Pem::iter_from_buffer(text.as_bytes()) {
        let block = block.map_err(|e| Refused::new(format!("not readable as PEM: {e}")))?;
        if block.label != "CERTIFICATE" {
            return Err(Refused::new(format!(
                "a PEM block of kind {}; only CERTIFICATE is taken",
                shown(&block.label)
            )));
        }
        block
            .parse_x509()
            .map_err(|_| Refused::new("a PEM block that holds no X.509 certificate"))?;
        certificates += 1;
    }
    if certificates == 0 {
        return Err(Refused::new("no PEM certificate in it"));
    }
    Ok(text.to_owned())
}

fn http_policy(decoder: &mut Decoder, value: &Value<'_>, path: &Path<'_>) -> Option<HttpPolicy> {
    let known = ["request", "response"];
    let fields = decoder.fields(value, path, &known)?;
    some_part_of(decoder, fields, path, &known);
    Some(HttpPolicy {
        request: fields
            .get("request")
            .and_then(|value| http_request(decoder, value, &path.key("request"))),
        response: fields
            .get("response")
            .and_then(|value| http_response(decoder, value, &path.key("response"))),
    })
}

fn http_request(decoder: &mut Decoder, value: &Value<'_>, path: &Path<'_>) -> Option<HttpRequest> {
    let known = ["host", "methods", "path", "query", "headers"];
    let fields = decoder.fields(value, path, &known)?;
    some_part_of(decoder, fields, path, &known);
    Some(HttpRequest {
        host: fields
            .get("host")
            .and_then(|value| http_host(decoder, value, &path.key("host"))),
        methods: decoder.each_text(fields.get("methods"), &path.key("methods"), |text| {
            token(text).map(str::to_ascii_uppercase)
        }),
        path: fields
            .get("path")
            .and_then(|value| http_path(decoder, value, &path.key("path"))),
        query: fields
            .get("query")
            .and_then(|value| http_query(decoder, value, &path.key("query"))),
        headers: fields
            .get("headers")
            .and_then(|value| http_headers(decoder, value, &path.key("headers"))),
    })
}

fn http_response(
    decoder: &mut Decoder,
    value: &Value<'_>,
    path: &Path<'_>,
) -> Option<HttpResponse> {
    let fields = decoder.fields(value, path, &["headers"])?;
    some_part_of(decoder, fields, path, &["headers"]);
    Some(HttpResponse {
        headers: fields
            .get("headers")
            .and_then(|value| http_headers(decoder, value, &path.key("headers"))),
    })
}

fn http_host(decoder: &mut Decoder, value: &Value<'_>, path: &Path<'_>) -> Option<HttpString> {
    let known = ["exact", "regex"];
    let fields = decoder.fields(value, path, &known)?;
    some_of(decoder, fields, path, &known);
    let exact = lower_names(decoder, fields.get("exact"), &path.key("exact"));
    decoder.count_names(exact.len());
    Some(HttpString {
        exact,
        regex: regex(decoder, fields.get("regex"), &path.key("regex")),
    })
}

fn http_path(decoder: &mut Decoder, value: &Value<'_>, path: &Path<'_>) -> Option<HttpPath> {
    let known = ["exact", "prefix", "regex"];
    let fields = decoder.fields(value, path, &known)?;
    some_of(decoder, fields, path, &known);
    Some(HttpPath {
        exact: decoder.each(fields.get("exact"), &path.key("exact"), filled),
        prefix: decoder.each(fields.get("prefix"), &path.key("prefix"), filled),
        regex: regex(decoder, fields.get("regex"), &path.key("regex")),
    })
}

fn http_query(decoder: &mut Decoder, value: &Value<'_>, path: &Path<'_>) -> Option<HttpQuery> {
    let known = ["keys_present", "key_values_exact", "key_values_regex"];
    let fields = decoder.fields(value, path, &known)?;
    some_of(decoder, fields, path, &known);
    let key = |key: &str| {
        if key.is_empty() {
            return Err(Refused::new("a query key must not be empty"));
        }
        Ok(key.to_owned())
    };
    Some(HttpQuery {
        keys_present: decoder.each_text(fields.get("keys_present"), &path.key("keys_present"), key),
        key_values_exact: exact_values(
            decoder,
            fields.get("key_values_exact"),
            &path.key("key_values_exact"),
            key,
        ),
        key_values_regex: regex_values(
            decoder,
            fields.get("key_values_regex"),
            &path.key("key_values_regex"),
            key,
        ),
    })
}

fn http_headers(decoder: &mut Decoder, value: &Value<'_>, path: &Path<'_>) -> Option<HttpHeaders> {
    let known = ["require_present", "deny_present", "exact", "regex"];
    let fields = decoder.fields(value, path, &known)?;
    some_of(decoder, fields, path, &known);
    let name = |text: &str| token(text).map(str::to_ascii_lowercase);
    let headers = HttpHeaders {
        require_present: decoder.each_text(
            fields.get("require_present"),
            &path.key("require_present"),
            name,
        ),
        deny_present: decoder.each_text(
            fields.get("deny_present"),
            &path.key("deny_present"),
            name,
        ),
        exact: exact_values(decoder, fields.get("exact"), &path.key("exact"), name),
        regex: regex_values(decoder, fields.get("regex"), &path.key("regex"), name),
    };
    for (i, denied) in headers.deny_present.iter().enumerate() {
        let wanted = headers.require_present.contains(denied)
            || headers.exact.contains_key(denied)
            || headers.regex.contains_key(denied);
        if wanted {
            decoder.add(
                &path.key("deny_present").index(i),
                format!("the header {} is both wanted and denied", shown(denied)),
            );
        }
    }
    Some(headers)
}

fn exact_values(
    decoder: &mut Decoder,
    value: Option<&Value<'_>>,
    path: &Path<'_>,
    read_key: fn(&str) -> Result<String, Refused>,
) -> BTreeMap<String, Vec<String>> {
    decoder.free_map(value, path, |decoder, key, value, path| {
        let key = decoder.accept(path, read_key(key))?;
        if matches!(value, Value::List(items) if items.is_empty()) {
            decoder.add(path, "must not be empty");
        }
        let values = decoder.each(Some(value), path, |decoder, item, path| {
            decoder.string(item, path).map(str::to_owned)
        });
        Some((key, values))
    })
}

fn regex_values(
    decoder: &mut Decoder,
    value: Option<&Value<'_>>,
    path: &Path<'_>,
    read_key: fn(&str) -> Result<String, Refused>,
) -> BTreeMap<String, String> {
    decoder.free_map(value, path, |decoder, key, value, path| {
        let key = decoder.accept(path, read_key(key))?;
        Some((key, regex(decoder, Some(value), path)?))
    })
}

fn filled(decoder: &mut Decoder, value: &Value<'_>, path: &Path<'_>) -> Option<String> {
    decoder.filled(value, path).map(str::to_owned)
}

/// A method or a header name (RFC 9110 section 5.6.2).
fn token(text: &str) -> Result<&str, Refused> {
    let text = text.trim();
    let valid = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    if text.is_empty() || !text.bytes().all(valid) {
        return Err(Refused::new(format!(
            "{} is not a token as HTTP methods and header names are",
            shown(text)
        )));
    }
    Ok(text)
}
