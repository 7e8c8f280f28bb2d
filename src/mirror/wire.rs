//! The stores' requests over ureq, which the hub's client has already: object_store's own client would bring a second one.

use std::time::Duration;

use async_trait::async_trait;
use http_body_util::BodyExt;
use object_store::ClientOptions;
use object_store::client::{
    ClientConfigKey, HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse,
    HttpResponseBody, HttpService,
};
use ureq::Agent;
use ureq::http::Method;

use crate::error::Result;
use crate::net::tls;

#[derive(Clone, Debug)]
pub(super) struct Connector {
    agent: Agent,
}

impl Connector {
    /// `patience`: for an answer, and for each part of one.
    ///
    /// # Errors
    /// When SSL_CERT_FILE names no file with certificates.
    pub(super) fn new(patience: Duration) -> Result<Self> {
        let config = Agent::config_builder()
            .tls_config(tls()?)
            .user_agent(concat!("rlvr/", env!("CARGO_PKG_VERSION")))
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_connect(Some(patience.min(Duration::from_secs(15))))
            .timeout_send_body(Some(4 * patience))
            .timeout_recv_response(Some(patience))
            .timeout_recv_body(Some(4 * patience))
            .build();
        Ok(Self { agent: config.new_agent() })
    }
}

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let allows_http = options.get_config_value(&ClientConfigKey::AllowHttp);
        let wire = Wire { agent: self.agent.clone(), allows_http: allows_http.as_deref() == Some("true") };
        Ok(HttpClient::new(wire))
    }
}

#[derive(Debug)]
struct Wire {
    agent: Agent,
    allows_http: bool,
}

#[async_trait]
impl HttpService for Wire {
    async fn call(&self, request: HttpRequest) -> std::result::Result<HttpResponse, HttpError> {
        if !self.allows_http && request.uri().scheme_str() == Some("http") {
            let text = "http:// is not encrypted; AWS_ALLOW_HTTP=true allows it";
            return Err(HttpError::new(HttpErrorKind::Unknown, std::io::Error::other(text)));
        }
        let (parts, body) = request.into_parts();
        let body = body.collect().await?.to_bytes();
        let agent = self.agent.clone();
        let sent = tokio::task::spawn_blocking(move || {
            let has_body = !body.is_empty() || [Method::PUT, Method::POST].contains(&parts.method);
            let is_head = parts.method == Method::HEAD;
            let mut request = ureq::http::Request::from_parts(parts, ());
            request.extensions_mut().clear();
            let answer = match has_body {
                true => agent.run(request.map(|()| &*body)),
                false => agent.run(request),
            };
            let (parts, mut body) = answer.map_err(fault)?.into_parts();
            let length =
                parts.headers.get("content-length").and_then(|text| text.to_str().ok()?.parse().ok());
            let bytes = body.with_config().limit(u64::MAX).read_to_vec().map_err(fault)?;
            if let Some(length) = length.filter(|length: &usize| !is_head && *length != bytes.len()) {
                let text = format!("the answer broke off after {} of {length} bytes", bytes.len());
                return Err(HttpError::new(HttpErrorKind::Interrupted, std::io::Error::other(text)));
            }
            Ok(HttpResponse::from_parts(parts, HttpResponseBody::from(bytes)))
        });
        sent.await.unwrap_or_else(|error| Err(HttpError::new(HttpErrorKind::Unknown, error)))
    }
}

fn fault(error: ureq::Error) -> HttpError {
    let kind = match &error {
        ureq::Error::HostNotFound | ureq::Error::ConnectionFailed => HttpErrorKind::Connect,
        ureq::Error::Timeout(_) => HttpErrorKind::Timeout,
        ureq::Error::Io(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
            HttpErrorKind::Connect
        }
        ureq::Error::Io(_) | ureq::Error::Protocol(_) => HttpErrorKind::Interrupted,
        _ => HttpErrorKind::Unknown,
    };
    HttpError::new(kind, error)
}
