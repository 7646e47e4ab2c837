//! All routes, and what every request passes on its way to them.

use std::net::IpAddr;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use axum::extract::{DefaultBodyLimit, MatchedPath, Request, State};
use axum::http::header::{AUTHORIZATION, CACHE_CONTROL, HOST, HeaderName};
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use axum::{Json, Router};
use serde::Serialize;
use tower_http::catch_panic::CatchPanicLayer;
use tracing::Instrument;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use utoipa_swagger_ui::SwaggerUi;

use crate::app::{Client, Shared};
use crate::error::{ApiError, Problem};
use crate::ids::unique;
use crate::listen::Peer;
use crate::{cohere, openai, studio};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Strata",
        description = "Language models of this machine, for the clients of Cohere and OpenAI. Give Cohere's SDK this \
                       server's address, and OpenAI's the same with /v1."
    ),
    paths(openai::models::show_model),
    modifiers(&BearerKey),
    security(("key" = [])),
    tags(
        (name = "OpenAI", description = "As OpenAI's clients call it"),
        (name = "Cohere", description = "As Cohere's clients call it"),
        (name = "Models", description = "Which models there are, for clients of either"),
        (name = "Operation", description = "For those who run the server"),
    )
)]
struct Document;

struct BearerKey;

impl Modify for BearerKey {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let scheme = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .description(Some("A key that `strata keys create` made; needed once there is one"));
        let components = document.components.get_or_insert_with(Default::default);
        components.add_security_scheme("key", SecurityScheme::Http(scheme.build()));
    }
}

/// The whole server: APIs, studio, their description.
pub fn router(app: Shared) -> Router {
    let api = OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(openai::chat::chat_completions))
        .routes(routes!(openai::completions::completions))
        .routes(routes!(openai::models::list_models))
        .routes(routes!(cohere::chat_v2::chat))
        .routes(routes!(cohere::chat_v1::chat))
        .routes(routes!(cohere::generate::generate))
        .routes(routes!(cohere::tokens::tokenize))
        .routes(routes!(cohere::tokens::detokenize))
        .routes(routes!(cohere::tokens::check_api_key));
    let (api, document) = api.split_for_parts();
    let api = api
        // Names of other servers' models may hold slashes.
        .route("/v1/models/{*model}", get(openai::models::show_model))
        .route_layer(from_fn_with_state(app.clone(), authenticate))
        .layer(DefaultBodyLimit::max(app.bounds.body_bytes));
    let operation =
        OpenApiRouter::new().routes(routes!(health)).routes(routes!(ready)).routes(routes!(metrics));
    let (operation, described) = operation.split_for_parts();
    let mut document = document;
    document.merge(described);
    let reading = Router::new()
        .merge(SwaggerUi::new("/docs").url("/openapi.json", document))
        .layer(from_fn(docs_headers));
    let mut all = api.merge(operation).merge(reading).merge(studio::routes());
    for path in [
        "/v1/embed",
        "/v2/embed",
        "/v1/embeddings",
        "/v1/rerank",
        "/v2/rerank",
        "/v1/classify",
        "/v1/summarize",
        "/v1/responses",
        "/v1/moderations",
    ] {
        all = all.route(path, any(not_yet));
    }
    all.fallback(not_found)
        .method_not_allowed_fallback(wrong_method)
        .layer(from_fn_with_state(app.clone(), only_this_machine))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(from_fn_with_state(app.clone(), observe))
        .with_state(app)
}

async fn not_yet(uri: Uri) -> ApiError {
    ApiError::not_found(format!("{} is not served by this version", uri.path()))
}

async fn not_found(uri: Uri) -> ApiError {
    ApiError::not_found(format!("there is nothing at {}; /docs lists what there is", uri.path()))
}

async fn wrong_method(uri: Uri) -> ApiError {
    let problem = format!("{} is asked with another method; see /docs", uri.path());
    ApiError::request(StatusCode::METHOD_NOT_ALLOWED, problem)
}

fn panicked(cause: Box<dyn std::any::Any + Send + 'static>) -> Response {
    let text = cause.downcast_ref::<String>().map(String::as_str);
    let text = text.or(cause.downcast_ref::<&str>().copied()).unwrap_or("unknown");
    ApiError::internal(format!("a handler panicked: {text}")).into_response()
}

/// Whether this request needs a key: asked of the database once.
#[derive(Debug, Clone, Copy)]
struct NeedsKey(bool);

/// Finds out who asks, and lets nobody in who needs a key and has none.
async fn authenticate(
    State(app): State<Shared>,
    mut request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let NeedsKey(needed) = request.extensions().get().copied().unwrap_or(NeedsKey(true));
    let client = match needed {
        // Clients that cannot do without a key send any.
        false => Client::default(),
        true => {
            let secret = bearer(request.headers()).ok_or_else(|| {
                ApiError::unauthorized("no api key; send the header Authorization: Bearer KEY")
            })?;
            let key = app.keys.find(secret).map_err(ApiError::internal)?;
            Client { key: Some(key.ok_or_else(|| ApiError::unauthorized("invalid api token"))?) }
        }
    };
    request.extensions_mut().insert(client.clone());
    let mut response = next.run(request).await;
    response.extensions_mut().insert(client);
    Ok(response)
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, secret) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(secret.trim())
}

/// Without keys, a page of another origin that resolves its own name to this machine must not be answered.
async fn only_this_machine(
    State(app): State<Shared>,
    mut request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let needs_key = app.needs_key().map_err(ApiError::internal)?;
    request.extensions_mut().insert(NeedsKey(needs_key));
    if !needs_key {
        let host = request.headers().get(HOST).and_then(|value| value.to_str().ok()).unwrap_or("");
        let name = host
            .rsplit_once(':')
            .filter(|(_, port)| port.parse::<u16>().is_ok())
            .map_or(host, |(name, _)| name);
        if !is_this_machine(name) {
            let problem = format!(
                "without keys this server answers to localhost only, and not to {name:?}; see strata keys"
            );
            return Err(ApiError::request(StatusCode::FORBIDDEN, problem));
        }
        // A proxy on this machine calls it by such a name too, for people who are somewhere else.
        if PROXIES.iter().any(|name| request.headers().contains_key(*name)) {
            let problem = "without keys this server answers to this machine only, and a proxy sent this; see strata keys";
            return Err(ApiError::request(StatusCode::FORBIDDEN, problem));
        }
    }
    Ok(next.run(request).await)
}

/// Headers that a proxy adds.
const PROXIES: [&str; 6] =
    ["forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip"];

/// Whether a host's name can only mean this machine, whoever resolves it.
fn is_this_machine(name: &str) -> bool {
    let address = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    name.trim_end_matches('.').eq_ignore_ascii_case("localhost")
        || address.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

async fn docs_headers(request: Request, next: Next) -> Response {
    let path = request.uri().path().to_string();
    let mut response = next.run(request).await;
    if response.status() == StatusCode::NOT_FOUND {
        return ApiError::not_found(format!("there is no page {path:?}")).into_response();
    }
    let policy =
        "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'";
    response.headers_mut().insert("content-security-policy", HeaderValue::from_static(policy));
    response
}

/// The name that a proxy gave a request, where it can stand in a log.
fn named(headers: &HeaderMap) -> Option<String> {
    let name = headers.get("x-request-id")?.to_str().ok()?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    ((1..=64).contains(&name.len()) && name.bytes().all(plain)).then(|| name.to_string())
}

/// Whom a proxy says a request comes from, where it can stand in a log: addresses.
fn forwarded(headers: &HeaderMap) -> Option<String> {
    let from = headers.get("x-forwarded-for")?.to_str().ok()?;
    let plain = |byte: u8| byte.is_ascii_hexdigit() || b".:, ".contains(&byte);
    (from.len() <= 200 && from.bytes().all(plain)).then(|| from.to_string())
}

/// Gives every request a name, and writes and counts what became of it.
async fn observe(State(app): State<Shared>, request: Request, next: Next) -> Response {
    let since = Instant::now();
    let id = named(request.headers()).unwrap_or_else(|| unique("req_"));
    let peer = request.extensions().get::<Peer>().map(|Peer(peer)| tracing::field::display(*peer));
    let forwarded = forwarded(request.headers());
    let method = request.method().clone();
    let route = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_string());
    let span = tracing::info_span!("request", id);
    let mut response = next.run(request).instrument(span.clone()).await;
    let status = response.status().as_u16();
    let route = route.as_deref().unwrap_or("other");
    app.metrics.http(route, status);
    let milliseconds = since.elapsed().as_millis() as u64;
    let problem = response.extensions().get().map(|Problem(code)| *code);
    let key = response.extensions().get().map_or("-", Client::name);
    span.in_scope(|| {
        tracing::info!(%method, route, status, problem, key, peer, forwarded, ms = milliseconds, "request");
    });
    let headers = response.headers_mut();
    if let Ok(id) = HeaderValue::from_str(&id) {
        headers.insert(HeaderName::from_static("x-request-id"), id);
    }
    headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    headers.insert("referrer-policy", HeaderValue::from_static("no-referrer"));
    headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

/// How the server is.
#[derive(Debug, Serialize, ToSchema)]
struct Health {
    status: &'static str,
}

/// Whether the process lives.
#[utoipa::path(get, path = "/health", tag = "Operation", security(()), responses((status = 200, description = "It does", body = Health)))]
async fn health() -> Json<Health> {
    Json(Health { status: "ok" })
}

/// Whether requests are answered at once: the default model was loaded, and the server is not being stopped.
#[utoipa::path(get, path = "/ready", tag = "Operation", security(()), responses((status = 200, description = "They are", body = Health), (status = 503, description = "Not now", body = Health)))]
async fn ready(State(app): State<Shared>) -> (StatusCode, Json<Health>) {
    let (status, word) = match (app.stopping.load(Relaxed), app.ready.load(Relaxed)) {
        (true, _) => (StatusCode::SERVICE_UNAVAILABLE, "stopping"),
        (false, true) => (StatusCode::OK, "ready"),
        (false, false) => (StatusCode::SERVICE_UNAVAILABLE, "not ready"),
    };
    (status, Json(Health { status: word }))
}

/// What is measured, for Prometheus.
#[utoipa::path(get, path = "/metrics", tag = "Operation", security(()), responses((status = 200, description = "In Prometheus' text format", body = String, content_type = "application/openmetrics-text")))]
async fn metrics(State(app): State<Shared>) -> Result<Response, ApiError> {
    let text = app.metrics.text().map_err(ApiError::internal)?;
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(axum::http::header::CONTENT_TYPE, kind)], text).into_response())
}
