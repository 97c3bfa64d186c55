//! The OpenAPI document: paths from the route table, schemas from the `api` crate.
//!
//! `docs/openapi.json` is a copy of it; a test keeps the copy fresh.

use axum::Json;
use serde::de::DeserializeOwned;
use utoipa::OpenApi as _;
use utoipa::openapi::content::{Content, ContentBuilder};
use utoipa::openapi::path::{
    HttpMethod, OperationBuilder, ParameterBuilder, ParameterIn, PathsBuilder,
};
use utoipa::openapi::request_body::RequestBodyBuilder;
use utoipa::openapi::schema::{ArrayBuilder, ObjectBuilder, Type};
use utoipa::openapi::security::{
    ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme,
};
use utoipa::openapi::{PathItem, Ref, RefOr, Required, ResponseBuilder, Schema};

use super::error::{Answer, Refused};
use super::route::{Access, Answered, ROUTES, Row};
use super::session::COOKIE_NAME;

/// What the document says of a route beyond its row.
#[derive(Clone, Copy, Debug)]
pub struct Doc {
    summary: &'static str,
    takes: Option<Media>,
    params: &'static [Param],
    idempotent: bool,
    conditional: bool,
    answers: &'static [(u16, &'static str, Option<Media>)],
}

/// A query parameter.
#[derive(Clone, Copy, Debug)]
pub struct Param {
    /// Its name.
    pub name: &'static str,
    /// What it means.
    pub description: &'static str,
}

/// A body: its schema, and the media types that it comes in.
#[derive(Clone, Copy, Debug)]
pub struct Media {
    schema: &'static str,
    is_list: bool,
    types: &'static [&'static str],
}

const JSON: &[&str] = &["application/json"];

/// The error body.
pub(super) const ERROR: Media = json("ErrorBody");
/// A file.
pub(super) const BINARY: Media = Media {
    schema: "",
    is_list: false,
    types: &["application/octet-stream"],
};
/// The policy document.
pub(super) const POLICY: Media = Media {
    schema: "PolicyConfig",
    is_list: false,
    types: &["application/json", "application/yaml"],
};

/// A compressed tar.
pub(super) const GZIP: Media = Media {
    schema: "",
    is_list: false,
    types: &["application/gzip"],
};

/// A line of JSON for each packet.
pub(super) const NDJSON: Media = Media {
    schema: "TraceLine",
    is_list: false,
    types: &["application/x-ndjson"],
};

/// One object of this schema.
pub(super) const fn json(schema: &'static str) -> Media {
    Media {
        schema,
        is_list: false,
        types: JSON,
    }
}

/// A list of objects of this schema.
pub(super) const fn list(schema: &'static str) -> Media {
    Media {
        schema,
        is_list: true,
        types: JSON,
    }
}

impl Doc {
    /// A route that does what `summary` says.
    pub(super) const fn new(summary: &'static str) -> Self {
        Self {
            summary,
            takes: None,
            params: &[],
            idempotent: false,
            conditional: false,
            answers: &[],
        }
    }

    pub(super) const fn takes(mut self, media: Media) -> Self {
        self.takes = Some(media);
        self
    }

    pub(super) const fn params(mut self, params: &'static [Param]) -> Self {
        self.params = params;
        self
    }

    /// It honours `Idempotency-Key`.
    pub(super) const fn idempotent(mut self) -> Self {
        self.idempotent = true;
        self
    }

    /// Whether a retry under the same key changes nothing further.
    pub(super) const fn is_idempotent(&self) -> bool {
        self.idempotent
    }

    /// It honours `If-Match`.
    pub(super) const fn conditional(mut self) -> Self {
        self.conditional = true;
        self
    }

    pub(super) const fn answers(
        mut self,
        answers: &'static [(u16, &'static str, Option<Media>)],
    ) -> Self {
        self.answers = answers;
        self
    }
}

pub(super) static SERVE: Doc = Doc::new("Read this document").answers(&[(
    200,
    "The OpenAPI document",
    Some(Media {
        schema: "",
        is_list: false,
        types: JSON,
    }),
)]);

pub(super) async fn serve() -> Json<utoipa::openapi::OpenApi> {
    Json(document())
}

/// Reads a JSON body strictly.
pub(super) fn parse<T: DeserializeOwned>(body: &[u8]) -> Answer<T> {
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let parsed = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let problem = api::error::Problem {
            path: Some(error.path().to_string())
                .filter(|path| path != ".")
                .unwrap_or_default(),
            reason: error.inner().to_string(),
            suggestion: None,
        };
        Refused::invalid(
            format!("the body is not valid: {}", error.inner()),
            vec![problem],
        )
    })?;
    deserializer
        .end()
        .map_err(|error| Refused::bad_request(format!("the body is not valid: {error}")))?;
    Ok(parsed)
}

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "Neuwerk management API",
        description = "Any node answers any request; changes go to the leader by themselves. Every answer has an `x-request-id`.",
        license(name = "Apache-2.0"),
        contact(),
    ),
    components(schemas(
        api::ErrorBody,
        api::error::Reason,
        api::error::Problem,
        api::health::Health,
        api::health::Ready,
        api::health::Check,
        api::auth::AuthUser,
        api::auth::TokenLoginRequest,
        api::auth::MintRequest,
        api::auth::Minted,
        api::auth::SigningKeyView,
        api::auth::SigningKeyStatus,
        api::policy::PolicyHistory,
        api::policy::PolicyRevision,
        api::changes::ChangeLog,
        api::changes::ChangeView,
        api::account::ServiceAccount,
        api::account::ServiceAccountRole,
        api::account::ServiceAccountStatus,
        api::account::ServiceAccountCreateRequest,
        api::account::ServiceAccountUpdateRequest,
        api::account::ServiceAccountTokenCreateRequest,
        api::account::ServiceAccountTokenResponse,
        api::account::TokenMeta,
        api::account::TokenStatus,
        api::cluster::ClusterMembersResponse,
        api::cluster::ClusterMemberView,
        api::joining::JoinTokenCreateRequest,
        api::joining::JoinTokenResponse,
        api::joining::JoinTokenStatus,
        api::joining::JoinTokenMeta,
        api::joining::JoinApprovalMode,
        api::joining::JoinSettings,
        api::joining::JoinSettingsRequest,
        api::joining::BootstrapSecretResponse,
        api::joining::CaRotationPhase,
        api::joining::CaRotationView,
        api::joining::ClusterCaView,
        api::recovery::BackupRequest,
        api::recovery::BackupStats,
        api::recovery::RejoinRequest,
        api::recovery::Rejoining,
        api::cluster::ClusterVotersResponse,
        api::cluster::RemoveClusterMemberRequest,
        api::cluster::PromoteClusterMemberRequest,
        api::cluster::ReplaceClusterVotersRequest,
        api::cluster::TransferRequest,
        api::cluster::TransferResponse,
        api::cluster::PreflightRequest,
        api::cluster::PreflightResponse,
        api::cluster::Reached,
        api::dataplane::FlowList,
        api::dataplane::FlowEntry,
        api::dataplane::KilledFlows,
        api::dataplane::NatUse,
        api::dataplane::NatAddress,
        api::audit::FindingList,
        api::audit::AuditFinding,
        api::dataplane::Explanation,
        api::dns::DnsCacheResponse,
        api::dns::DnsCacheEntry,
        api::dns::GrantList,
        api::dns::GrantEntry,
        api::dns::NameExplanation,
        api::dataplane::Stage,
        api::dataplane::TraceLine,
        api::dataplane::TracedPacket,
        api::dataplane::TraceEnd,
        api::stats::StatsSnapshot,
        api::stats::DataplaneStats,
        api::stats::DecisionCounters,
        api::stats::DnsStats,
        api::stats::TlsStats,
        api::stats::DhcpStats,
        api::stats::PortAddresses,
        api::stats::ClusterStats,
        api::stats::ClusterNodeCatchup,
        api::policy::Pending,
        api::policy::PendingMember,
        api::policy::Lint,
        api::policy::DryRun,
        api::document::PolicyConfig,
        api::document::PolicyValue,
        api::document::MatchModeValue,
        api::document::OnDenyValue,
        api::document::GrantScopeValue,
        api::document::SourceGroupConfig,
        api::document::SourcesConfig,
        api::document::KubernetesSourceConfig,
        api::document::KubernetesPodSelectorConfig,
        api::document::KubernetesNodeSelectorConfig,
        api::document::RuleConfig,
        api::document::RuleMatchConfig,
        api::document::ProtoValue,
        api::document::PortSpec,
        api::document::TlsMatchConfig,
        api::document::TlsModeValue,
        api::document::Tls13UninspectableValue,
        api::document::TlsNameMatchConfig,
        api::document::HttpStringMatcherConfig,
        api::document::HttpPolicyConfig,
        api::document::HttpRequestPolicyConfig,
        api::document::HttpResponsePolicyConfig,
        api::document::HttpPathMatcherConfig,
        api::document::HttpQueryMatcherConfig,
        api::document::HttpHeadersMatcherConfig,
    ))
)]
struct Schemas;

/// The whole document.
pub fn document() -> utoipa::openapi::OpenApi {
    let mut document = Schemas::openapi();
    document.info.version = env!("CARGO_PKG_VERSION").into();
    let mut paths = PathsBuilder::new();
    for row in ROUTES {
        paths = paths.path(row.path, PathItem::new(method(row), operation(row)));
    }
    document.paths = paths.build();
    let components = document.components.get_or_insert_default();
    let bearer = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .bearer_format("JWT")
        .build();
    components.add_security_scheme("bearer", SecurityScheme::Http(bearer));
    let cookie = ApiKey::Cookie(ApiKeyValue::new(COOKIE_NAME));
    components.add_security_scheme("cookie", SecurityScheme::ApiKey(cookie));
    document
}

/// The document as the file in `docs/` holds it.
pub fn document_text() -> String {
    let mut text = document().to_pretty_json().expect("a document of strings");
    text.push('\n');
    text
}

fn method(row: &Row) -> HttpMethod {
    match row.method.as_str() {
        "GET" => HttpMethod::Get,
        "PUT" => HttpMethod::Put,
        "POST" => HttpMethod::Post,
        "DELETE" => HttpMethod::Delete,
        other => unreachable!("no route has the method {other}"),
    }
}

fn operation(row: &Row) -> utoipa::openapi::path::Operation {
    let doc = row.doc;
    let mut operation = OperationBuilder::new()
        .operation_id(Some(row.name))
        .summary(Some(doc.summary));
    operation = operation.description(Some(access_sentence(row.access)));
    if matches!(row.access, Access::Any | Access::Admin) {
        for scheme in ["bearer", "cookie"] {
            let none: [&str; 0] = [];
            operation = operation.security(SecurityRequirement::new(scheme, none));
        }
    }
    for name in path_parameters(row.path) {
        let description = match name {
            "kid" => "key id",
            "node_id" => "16 hexadecimal digits",
            _ => "UUID",
        };
        operation = operation.parameter(parameter(name, ParameterIn::Path, description));
    }
    for param in doc.params {
        operation =
            operation.parameter(parameter(param.name, ParameterIn::Query, param.description));
    }
    if row.answered == Answered::Named {
        let description = "the member that answers, by its id; default the node that is asked";
        operation = operation.parameter(parameter("node", ParameterIn::Query, description));
    }
    if matches!(
        row.answered,
        Answered::LocalRead | Answered::LinearizableRead
    ) {
        let default = if row.answered == Answered::LocalRead {
            "local"
        } else {
            "linearizable"
        };
        let description = format!("`local` or `linearizable`; default `{default}`");
        operation = operation.parameter(parameter("consistency", ParameterIn::Query, &description));
    }
    if doc.idempotent {
        let description =
            "a retry under the same key changes nothing again; 1 to 128 visible ASCII characters";
        operation = operation.parameter(parameter(
            "Idempotency-Key",
            ParameterIn::Header,
            description,
        ));
    }
    if doc.conditional {
        let description =
            "the `ETag` that the change is based on; 412 if it is not the current one";
        operation = operation.parameter(parameter("If-Match", ParameterIn::Header, description));
    }
    if let Some(media) = doc.takes {
        let mut body = RequestBodyBuilder::new().required(Some(Required::True));
        for media_type in media.types {
            body = body.content(*media_type, content(media));
        }
        operation = operation.request_body(Some(body.build()));
    }
    for (status, description, media) in answers(row) {
        let mut response = ResponseBuilder::new().description(description);
        for media_type in media.map_or(&[][..], |media| media.types) {
            let media = media.expect("it has media types");
            response = response.content(*media_type, content(media));
        }
        operation = operation.response(status.to_string(), response.build());
    }
    operation.build()
}

/// The row's own answers, and those that its access and its place bring along.
fn answers(row: &Row) -> Vec<(u16, &'static str, Option<Media>)> {
    let mut answers = row.doc.answers.to_vec();
    if row.access != Access::Public {
        answers.push((401, "No credential, or none that is valid", Some(ERROR)));
    }
    if row.doc.conditional && answers.iter().all(|(status, ..)| *status != 412) {
        answers.push((412, "It was changed in between", Some(ERROR)));
    }
    if matches!(row.access, Access::Admin | Access::Node) {
        answers.push((403, "The credential may not do this", Some(ERROR)));
    }
    if row.doc.takes.is_some() {
        answers.push((400, "The request is not valid", Some(ERROR)));
        answers.push((413, "The body is too large", Some(ERROR)));
    }
    if row.doc.idempotent {
        answers.push((
            422,
            "The `Idempotency-Key` was used for another request",
            Some(ERROR),
        ));
    }
    if row.answered == Answered::Write {
        answers.push((
            507,
            "The leader's disk is full: nothing was done",
            Some(ERROR),
        ));
        answers.push((
            307,
            "With `Prefer: redirect`: the leader is elsewhere",
            None,
        ));
        answers.push((
            504,
            "The change may or may not have been made; retry with the key named",
            Some(ERROR),
        ));
    }
    if row.answered == Answered::Named {
        answers.push((404, "There is no such member", Some(ERROR)));
        answers.push((504, "The member has not answered", Some(ERROR)));
    }
    if row.access != Access::Public {
        answers.push((
            503,
            "No leader, no quorum, or the node is not up; `Retry-After`",
            Some(ERROR),
        ));
    }
    answers.sort_by_key(|(status, ..)| *status);
    // A row's own words go before the general ones; the sort is stable.
    answers.dedup_by_key(|(status, ..)| *status);
    answers
}

fn access_sentence(access: Access) -> &'static str {
    match access {
        Access::Public => "Open to anybody.",
        Access::Any => "Needs any valid credential.",
        Access::Admin => "Needs the role `admin`.",
        Access::Node => "Answered over the node's control socket only.",
    }
}

fn path_parameters(path: &'static str) -> impl Iterator<Item = &'static str> {
    path.split('/')
        .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
}

fn parameter(
    name: &str,
    place: ParameterIn,
    description: &str,
) -> utoipa::openapi::path::Parameter {
    let required = if place == ParameterIn::Path {
        Required::True
    } else {
        Required::False
    };
    let text = ObjectBuilder::new().schema_type(Type::String).build();
    ParameterBuilder::new()
        .name(name)
        .parameter_in(place)
        .required(required)
        .description(Some(description))
        .schema(Some(RefOr::T(Schema::Object(text))))
        .build()
}

fn content(media: Media) -> Content {
    if media.schema.is_empty() {
        let any = ObjectBuilder::new().build();
        return ContentBuilder::new()
            .schema(Some(RefOr::T(Schema::Object(any))))
            .build();
    }
    let one = Ref::from_schema_name(media.schema);
    if media.is_list {
        let list = ArrayBuilder::new().items(one).build();
        ContentBuilder::new()
            .schema(Some(RefOr::T(Schema::Array(list))))
            .build()
    } else {
        ContentBuilder::new().schema(Some(one)).build()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;

    #[test]
    fn the_file_is_fresh() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/openapi.json");
        let file = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            file == document_text(),
            "docs/openapi.json is stale; run: cargo run -p neuwerk -- reference openapi > docs/openapi.json"
        );
    }

    #[test]
    fn it_lists_exactly_the_routes() {
        let document = serde_json::to_value(document()).unwrap();
        let mut listed = BTreeSet::new();
        for (path, item) in document["paths"].as_object().unwrap() {
            for method in item.as_object().unwrap().keys() {
                listed.insert((path.clone(), method.to_uppercase()));
            }
        }
        let routes: BTreeSet<_> = ROUTES
            .iter()
            .map(|row| (row.path.to_owned(), row.method.to_string()))
            .collect();
        assert_eq!(listed, routes);
    }

    #[test]
    fn every_reference_resolves() {
        fn references(value: &Value, found: &mut BTreeSet<String>) {
            match value {
                Value::Object(fields) => {
                    if let Some(Value::String(target)) = fields.get("$ref") {
                        found.insert(target.clone());
                    }
                    fields.values().for_each(|field| references(field, found));
                }
                Value::Array(items) => items.iter().for_each(|item| references(item, found)),
                _ => {}
            }
        }
        let document = serde_json::to_value(document()).unwrap();
        let mut found = BTreeSet::new();
        references(&document, &mut found);
        assert!(found.len() > 40, "{found:?}");
        for target in found {
            let pointer = target.strip_prefix('#').unwrap();
            assert!(document.pointer(pointer).is_some(), "{target}");
        }
    }

    #[test]
    fn every_route_says_what_it_answers() {
        for row in ROUTES {
            assert!(!row.doc.answers.is_empty(), "{}", row.name);
        }
    }

    #[test]
    fn unknown_and_duplicate_keys_trailing_bytes_and_bad_utf8_are_refused() {
        type Request = api::account::ServiceAccountCreateRequest;
        assert!(parse::<Request>(br#"{"name":"a","role":"admin"}"#).is_ok());
        for body in [
            &b""[..],
            b"{",
            b"[]",
            b"\xff\xfe",
            br#"{"name":"a","role":"admin","rol":"admin"}"#,
            br#"{"name":"a","name":"b","role":"admin"}"#,
            br#"{"name":"a","role":"admin"} {}"#,
            b"{\"name\":\"\xff\",\"role\":\"admin\"}",
        ] {
            assert!(
                parse::<Request>(body).is_err(),
                "{}",
                String::from_utf8_lossy(body)
            );
        }
    }
}
