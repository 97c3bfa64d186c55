//! Liveness and readiness, for probes and load balancers.

use std::sync::Arc;

use api::health::{Health, Ready};
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use http::StatusCode;
use http::header::{CACHE_CONTROL, HeaderValue};

use super::App;
use super::openapi::{self, Doc};

pub(super) static HEALTH: Doc = Doc::new("Tell that the process lives").answers(&[(
    200,
    "It lives",
    Some(openapi::json("Health")),
)]);

pub(super) async fn health() -> Json<Health> {
    Json(Health {
        status: "ok".into(),
    })
}

pub(super) static READY: Doc = Doc::new("Tell whether the node is ready").answers(&[
    (200, "Every check is ok", Some(openapi::json("Ready"))),
    (503, "A check is not ok", Some(openapi::json("Ready"))),
]);

pub(super) async fn ready(State(app): State<Arc<App>>) -> Response {
    answer(&app.ready())
}

pub(super) static READY_TRAFFIC: Doc =
    Doc::new("Tell whether the node enforces and forwards; a lost quorum does not change it")
        .answers(&[
            (200, "Every check is ok", Some(openapi::json("Ready"))),
            (503, "A check is not ok", Some(openapi::json("Ready"))),
        ]);

pub(super) async fn ready_traffic(State(app): State<Arc<App>>) -> Response {
    answer(&app.ready_traffic())
}

impl App {
    /// What `GET /ready` answers.
    pub fn ready(&self) -> Ready {
        self.readiness.ready(self.control_view().as_ref())
    }

    /// What `GET /ready/traffic` answers.
    pub fn ready_traffic(&self) -> Ready {
        self.readiness.ready_traffic()
    }
}

fn answer(ready: &Ready) -> Response {
    let status = if ready.ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let no_store = HeaderValue::from_static("no-store");
    (status, [(CACHE_CONTROL, no_store)], Json(ready)).into_response()
}
