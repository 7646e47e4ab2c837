//! Reading a request's JSON, such that an error names the field.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use serde::de::DeserializeOwned;

use crate::error::ApiError;

/// How long a client may take to send a body.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// The JSON body of a request.
#[derive(Debug)]
pub struct JsonBody<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for JsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        // A page of another origin may post plain text without asking, but not JSON.
        let content = request.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
        let kind = content.split(';').next().unwrap_or("").trim();
        if !kind.eq_ignore_ascii_case("application/json") {
            let problem = format!("expected the header Content-Type: application/json, found {content:?}");
            return Err(ApiError::request(StatusCode::UNSUPPORTED_MEDIA_TYPE, problem));
        }
        let body =
            tokio::time::timeout(BODY_TIMEOUT, Bytes::from_request(request, state)).await.map_err(|_| {
                let problem = format!("the body did not come within {} s", BODY_TIMEOUT.as_secs());
                ApiError::request(StatusCode::REQUEST_TIMEOUT, problem)
            })?;
        let bytes = body.map_err(|rejection| match rejection.status() {
            // Cohere's SDK has a class of its own for 400 only.
            StatusCode::PAYLOAD_TOO_LARGE => {
                ApiError::request(StatusCode::BAD_REQUEST, "the body is larger than this server accepts")
            }
            _ => ApiError::request(StatusCode::BAD_REQUEST, "the body ended early"),
        })?;
        let mut deserializer = serde_json::Deserializer::from_slice(&bytes);
        let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
            let path = error.path().to_string();
            let problem = error.inner();
            if problem.is_data() {
                field_error(path, problem)
            } else {
                ApiError::request(StatusCode::BAD_REQUEST, format!("the body is not valid JSON: {problem}"))
            }
        })?;
        deserializer.end().map_err(|error| {
            let problem = format!("the body is not one JSON object: {error}");
            ApiError::request(StatusCode::BAD_REQUEST, problem)
        })?;
        Ok(JsonBody(value))
    }
}

/// What is wrong with the value at `path`, in the words of JSON and not of Rust.
fn field_error(path: String, error: &serde_json::Error) -> ApiError {
    let text = error.to_string();
    let text = text.rsplit_once(" at line ").map_or(text.as_str(), |(text, _)| text);
    if let Some(name) = text.strip_prefix("missing field `").and_then(|rest| rest.split('`').next()) {
        let field = if path == "." { name.to_string() } else { format!("{path}.{name}") };
        return ApiError::field(field, "expected a value, found none");
    }
    if text.starts_with("duplicate field `") {
        let name = text.split('`').nth(1).unwrap_or_default();
        let field = if path == "." { name.to_string() } else { format!("{path}.{name}") };
        return ApiError::field(field, "it comes twice");
    }
    let (found, expected) = match text.split_once(", expected ") {
        Some((found, expected)) => (found, expected),
        None => ("", text.strip_prefix("expected ").unwrap_or(text)),
    };
    let expected = match expected {
        "usize" | "u64" | "u32" => "a whole number, 0 or more",
        "i64" | "i32" => "a whole number",
        "f32" | "f64" => "a number",
        "a sequence" => "a list",
        other if other.starts_with("struct ") || other == "a map" => "an object",
        other => other,
    };
    let found = found.trim_start_matches("invalid type: ").trim_start_matches("invalid value: ");
    let found = match found {
        "sequence" => "a list",
        "map" => "an object",
        "unit" | "unit value" => "null",
        other => other,
    };
    let found = if found.is_empty() { String::new() } else { format!(", found {found}") };
    ApiError::field(path, format!("expected {expected}{found}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Deserialize)]
    #[expect(dead_code, reason = "only its reading matters")]
    struct Outer {
        inner: Vec<Inner>,
    }

    #[derive(Debug, Deserialize)]
    #[expect(dead_code, reason = "only its reading matters")]
    struct Inner {
        count: usize,
    }

    fn message(json: &str) -> String {
        let mut deserializer = serde_json::Deserializer::from_str(json);
        let error = serde_path_to_error::deserialize::<_, Outer>(&mut deserializer).unwrap_err();
        field_error(error.path().to_string(), error.inner()).message().to_string()
    }

    #[test]
    fn an_error_names_the_field_and_what_it_should_hold() {
        assert_eq!(message("{}"), "inner: expected a value, found none");
        assert_eq!(message(r#"{"inner": [{}]}"#), "inner[0].count: expected a value, found none");
        assert_eq!(
            message(r#"{"inner": [{"count": "x"}]}"#),
            "inner[0].count: expected a whole number, 0 or more, found string \"x\""
        );
        assert_eq!(
            message(r#"{"inner": [{"count": "roadmap"}]}"#),
            "inner[0].count: expected a whole number, 0 or more, found string \"roadmap\""
        );
        assert_eq!(
            message(r#"{"inner": [{"count": null}]}"#),
            "inner[0].count: expected a whole number, 0 or more, found null"
        );
        assert_eq!(
            message(r#"{"inner": [{"count": {}}]}"#),
            "inner[0].count: expected a whole number, 0 or more, found an object"
        );
        assert_eq!(message(r#"{"inner": 3}"#), "inner: expected a list, found integer `3`");
        assert_eq!(message(r#"{"inner": [], "inner": []}"#), "inner: it comes twice");
        assert_eq!(message(r#"{"inner": [3]}"#), "inner[0]: expected an object, found integer `3`");
    }
}
