//! Whose request it is.
//!
//! In this order: the header `X-Scope-OrgID`, the user of basic authentication, the path `/t/<tenant>/`,
//! the configured default. Credentials are not checked: put an authenticating proxy in front of listeners
//! that others can reach.

use std::sync::Arc;

use axum::extract::{FromRequestParts, RawPathParams};
use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use base64::Engine as _;
use saturn_model::TenantId;

use super::App;
use super::answer::ApiError;

const TENANT_HEADER: &str = "x-scope-orgid";

/// The tenant that a request speaks for.
pub(crate) struct Tenant(pub(crate) TenantId);

impl FromRequestParts<Arc<App>> for Tenant {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, ApiError> {
        let path = RawPathParams::from_request_parts(parts, app).await.ok();
        let from_path =
            path.as_ref().and_then(|p| p.iter().find(|(name, _)| *name == "tenant")).map(|(_, value)| value);
        let name = match from_header(&parts.headers)? {
            Some(name) => Some(name),
            None => match basic_auth_user(&parts.headers)? {
                Some(user) => Some(user),
                None => from_path.map(str::to_owned),
            },
        };
        match name {
            Some(name) => TenantId::new(&name).map(Tenant).map_err(|e| ApiError::bad_data(e.to_string())),
            None => Ok(Tenant(app.default_tenant.clone())),
        }
    }
}

fn from_header(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let mut values = headers.get_all(TENANT_HEADER).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(ApiError::bad_data("more than one X-Scope-OrgID header"));
    }
    let text = value.to_str().map_err(|_| ApiError::bad_data("X-Scope-OrgID is not plain text"))?;
    Ok(Some(text.to_owned()))
}

fn basic_auth_user(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let Some(value) = headers.get(AUTHORIZATION).and_then(|v| v.to_str().ok()) else { return Ok(None) };
    let Some((scheme, encoded)) = value.split_once(' ') else { return Ok(None) };
    if !scheme.eq_ignore_ascii_case("basic") {
        return Ok(None);
    }
    let broken = || ApiError::bad_data("the Authorization header is not valid basic authentication");
    let decoded = base64::engine::general_purpose::STANDARD.decode(encoded.trim()).map_err(|_| broken())?;
    let text = String::from_utf8(decoded).map_err(|_| broken())?;
    let (user, _password) = text.split_once(':').ok_or_else(broken)?;
    Ok(Some(user.to_owned()))
}
