//! What a client is told when a request cannot be served: one body that both official SDKs understand.

use axum::http::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use strata_generate::engine::Refused;
use utoipa::ToSchema;

/// A request that was not served.
#[derive(Debug, Clone)]
pub struct ApiError {
    status: StatusCode,
    /// The kind of error, in the words of the OpenAI API.
    kind: &'static str,
    code: Option<&'static str>,
    /// The field of the request that is wrong, such as `messages[0].content`.
    field: Option<String>,
    message: String,
    retry_after: Option<u64>,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, code: Option<&'static str>, message: String) -> ApiError {
        ApiError { status, kind, code, field: None, message, retry_after: None }
    }

    /// A field of the request is wrong; `problem` says what was expected.
    pub fn field(field: impl Into<String>, problem: impl std::fmt::Display) -> ApiError {
        let field = field.into();
        let message = format!("{field}: {problem}");
        let kind = "invalid_request_error";
        ApiError {
            field: Some(field),
            ..ApiError::new(StatusCode::BAD_REQUEST, kind, Some("invalid_value"), message)
        }
    }

    /// The prompt does not fit into the model.
    pub fn context(field: &str, problem: impl std::fmt::Display) -> ApiError {
        ApiError { code: Some("context_length_exceeded"), ..ApiError::field(field, problem) }
    }

    /// The request as a whole is wrong.
    pub fn request(status: StatusCode, problem: impl std::fmt::Display) -> ApiError {
        ApiError::new(status, "invalid_request_error", None, problem.to_string())
    }

    /// No such model.
    pub fn model(name: &str, available: &[String]) -> ApiError {
        let known = match available {
            [] => "there are none yet; `strata demo` makes some".to_string(),
            names => format!("there are: {}", names.join(", ")),
        };
        let message = format!("model '{name}' not found; {known}");
        let kind = "invalid_request_error";
        ApiError {
            field: Some("model".into()),
            ..ApiError::new(StatusCode::NOT_FOUND, kind, Some("model_not_found"), message)
        }
    }

    /// No such path.
    pub fn not_found(problem: impl std::fmt::Display) -> ApiError {
        ApiError::new(StatusCode::NOT_FOUND, "invalid_request_error", Some("not_found"), problem.to_string())
    }

    /// The key is missing or wrong.
    pub fn unauthorized(problem: &str) -> ApiError {
        let kind = "authentication_error";
        ApiError::new(StatusCode::UNAUTHORIZED, kind, Some("invalid_api_key"), problem.to_string())
    }

    /// A key's limit is used up; `seconds` until it is worth trying again.
    pub fn limited(problem: impl std::fmt::Display, seconds: u64) -> ApiError {
        ApiError { code: Some("rate_limit_exceeded"), ..ApiError::busy(problem, seconds) }
    }

    /// Too many requests of everybody; `seconds` until it is worth trying again.
    pub fn busy(problem: impl std::fmt::Display, seconds: u64) -> ApiError {
        let (status, kind) = (StatusCode::TOO_MANY_REQUESTS, "rate_limit_error");
        ApiError {
            retry_after: Some(seconds.max(1)),
            ..ApiError::new(status, kind, Some("queue_full"), problem.to_string())
        }
    }

    /// The server cannot answer now.
    pub fn unavailable(problem: impl std::fmt::Display) -> ApiError {
        let status = StatusCode::SERVICE_UNAVAILABLE;
        ApiError::new(status, "server_error", Some("unavailable"), problem.to_string())
    }

    /// Time was over before anything of an answer was written.
    pub fn nothing_in_time() -> ApiError {
        ApiError::unavailable(
            "nothing could be written within the time that a request may take; the server is busy: try again later",
        )
    }

    /// The server failed, which is its fault. Why is for its log: paths and the like are nobody else's business.
    pub fn internal(cause: impl std::fmt::Display) -> ApiError {
        // As a string, whose line ends are escaped: it may hold a request's text.
        let cause = cause.to_string();
        tracing::error!(cause, "a defect");
        ApiError::failed("a defect of the server; its log says more")
    }

    /// The server failed at this, which the client may know.
    pub fn failed(problem: impl std::fmt::Display) -> ApiError {
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        ApiError::new(status, "server_error", Some("internal_error"), problem.to_string())
    }

    /// What it says.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The body: Cohere's SDK shows `message`, OpenAI's reads `error`.
    pub fn body(&self) -> ErrorBody {
        ErrorBody {
            message: self.message.clone(),
            error: ErrorDetail {
                message: self.message.clone(),
                kind: self.kind.into(),
                param: self.field.clone(),
                code: self.code.map(Into::into),
            },
        }
    }
}

/// The word for what was wrong, which goes with the answer to where the log is written. The message may repeat the request's text.
#[derive(Debug, Clone, Copy)]
pub struct Problem(pub &'static str);

/// The body of every error.
#[derive(Debug, Serialize, ToSchema)]
pub struct ErrorBody {
    /// What was expected, what came, and what to do.
    message: String,
    /// The same for clients of the OpenAI API.
    error: ErrorDetail,
}

/// An error as the OpenAI API describes it.
#[derive(Debug, Serialize, ToSchema)]
pub struct ErrorDetail {
    /// What was expected, what came, and what to do.
    message: String,
    /// The kind of error.
    #[serde(rename = "type")]
    kind: String,
    /// The field that is wrong.
    param: Option<String>,
    /// A word for programs.
    code: Option<String>,
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = serde_json::to_vec(&self.body()).unwrap_or_default();
        let mut response = (self.status, [(CONTENT_TYPE, "application/json")], body).into_response();
        response.extensions_mut().insert(Problem(self.code.unwrap_or(self.kind)));
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

impl From<Refused> for ApiError {
    fn from(refused: Refused) -> ApiError {
        match &refused {
            Refused::Full { retry_after, .. } => ApiError::busy(&refused, retry_after.as_secs()),
            Refused::Stopped => ApiError::unavailable(refused),
        }
    }
}
