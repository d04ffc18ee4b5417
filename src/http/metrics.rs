//! The route `/metrics`, which answers in OpenMetrics, or in the text format of Prometheus if the
//! client prefers that.

use std::sync::Arc;

use axum::{
    Router,
    extract::State,
    http::{
        HeaderMap, HeaderValue, StatusCode,
        header::{ACCEPT, CONTENT_TYPE, VARY},
    },
    response::IntoResponse,
    routing::get,
};

use crate::metrics::{Format, Metrics};

/// The path of the metrics.
pub(super) const PATH: &str = "/metrics";

pub(super) fn routes(metrics: Arc<Metrics>) -> Router {
    Router::new().route(PATH, get(serve)).with_state(metrics)
}

async fn serve(
    State(metrics): State<Arc<Metrics>>,
    headers: HeaderMap,
) -> Result<impl IntoResponse, StatusCode> {
    let accept: Vec<_> =
        headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
    let format = preferred(&accept);
    let text = metrics.text(format).map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?;
    let varies = HeaderValue::from_static("accept");
    Ok(([(CONTENT_TYPE, HeaderValue::from_static(format.media_type())), (VARY, varies)], text))
}

/// Returns the format that a client prefers (RFC 9110, section 12.5.1). This is OpenMetrics if the
/// client has no preference or accepts neither format.
fn preferred(accept: &[&str]) -> Format {
    let quality = |format| quality(accept, format);
    if quality(Format::PlainText) > quality(Format::OpenMetrics) {
        Format::PlainText
    } else {
        Format::OpenMetrics
    }
}

/// Returns the quality that the values of `accept` give a format, in thousandths. Only the most
/// specific range counts.
fn quality(accept: &[&str], format: Format) -> u16 {
    let (ours, version) = match format {
        Format::OpenMetrics => ("application/openmetrics-text", "1.0.0"),
        Format::PlainText => ("text/plain", "0.0.4"),
    };
    let group = ours.split('/').next().unwrap_or_default();
    let ranges = accept.iter().flat_map(|value| value.split(',')).filter_map(|range| {
        let mut parts = range.split(';').map(str::trim);
        let range = parts.next()?.to_ascii_lowercase();
        let mut is_ours = true;
        let (mut quality, mut parameters) = (1000, 0);
        for (name, value) in parts.filter_map(|parameter| parameter.split_once('=')) {
            match name.trim().to_ascii_lowercase().as_str() {
                "q" => quality = thousandths(value.trim())?,
                "version" => {
                    is_ours = value.trim().trim_matches('"') == version;
                    parameters = 1;
                }
                _ => {}
            }
        }
        let specificity = match range.split_once('/')? {
            _ if range == ours && is_ours => 2 + parameters,
            (of, "*") if of == group => 1,
            ("*", "*") => 0,
            _ => return None,
        };
        Some((specificity, quality))
    });
    // If several ranges are equally specific, the highest quality counts.
    ranges.max().map_or(0, |(_, quality)| quality)
}

/// Reads a weight with at most three digits after the point (RFC 9110, section 12.4.2).
fn thousandths(weight: &str) -> Option<u16> {
    let weight: f64 = weight.parse().ok().filter(|weight| (0.0..=1.0).contains(weight))?;
    // The value is at most 1000.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    Some((weight * 1000.0) as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_clients_that_prefer_plain_text_get_plain_text() {
        // Prometheus 2.5x and 3 send this header.
        let scraper = "application/openmetrics-text;version=1.0.0;q=0.5,\
                       application/openmetrics-text;version=0.0.1;\
                       q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.1";
        let only_text = "text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        for (accept, format) in [
            (&[][..], Format::OpenMetrics),
            (&[""], Format::OpenMetrics),
            (&["*/*"], Format::OpenMetrics),
            (&["application/json"], Format::OpenMetrics),
            (&["text/html,application/xhtml+xml,*/*;q=0.8"], Format::OpenMetrics),
            (&[scraper], Format::OpenMetrics),
            (&["application/openmetrics-text"], Format::OpenMetrics),
            (&["text/plain, application/openmetrics-text"], Format::OpenMetrics),
            (&["text/plain;q=0"], Format::OpenMetrics),
            (&["text/plain;version=1.0.0"], Format::OpenMetrics),
            (&["text/plain;q=nonsense"], Format::OpenMetrics),
            (&["text/plain"], Format::PlainText),
            (&["Text/Plain; charset=utf-8"], Format::PlainText),
            (&["text/*"], Format::PlainText),
            (&[only_text], Format::PlainText),
            (&["application/openmetrics-text;q=0.2", "text/plain;q=0.3"], Format::PlainText),
            (
                &["application/openmetrics-text;version=0.0.1, text/plain;version=\"0.0.4\";q=0.5"],
                Format::PlainText,
            ),
            (&["*/*, application/openmetrics-text;q=0"], Format::PlainText),
        ] {
            assert_eq!(preferred(accept), format, "{accept:?}");
        }
    }
}
