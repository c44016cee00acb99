//! `http.matchers.protocol`

use l4_core::config::At;
use l4_core::{Provision, Rejected};
use schemars::JsonSchema;
use serde::Deserialize;

use super::{Request, RequestMatch};

/// The protocol of the request: `"http/1.0"`, `"http/1.1"`, `"http/2"` or `"http/3"`, each also with `+` behind it for
/// that version and later ones, `"grpc"` for a `Content-Type` that begins with `application/grpc`, `"http"` for a request
/// that came in the clear, or `"https"` for one that came through TLS which the handler `tls` has ended. Any other text
/// never matches.
#[derive(Deserialize, JsonSchema)]
#[serde(transparent)]
pub(crate) struct ProtocolConfig(At<String>);

enum MatchProtocol {
    Clear,
    Tls,
    Grpc,
    Exactly(u8, u8),
    Major(u8),
    AtLeast(u8, u8),
    Never,
}

impl MatchProtocol {
    fn new(text: &str) -> Self {
        match text {
            "http" => Self::Clear,
            "https" => Self::Tls,
            "grpc" => Self::Grpc,
            "http/1.0" => Self::Exactly(1, 0),
            "http/1.0+" => Self::AtLeast(1, 0),
            "http/1.1" => Self::Exactly(1, 1),
            "http/1.1+" => Self::AtLeast(1, 1),
            "http/2" => Self::Major(2),
            "http/2+" => Self::AtLeast(2, 0),
            "http/3" => Self::Major(3),
            "http/3+" => Self::AtLeast(3, 0),
            _ => Self::Never,
        }
    }
}

impl RequestMatch for MatchProtocol {
    fn matches(&self, request: &mut Request<'_, '_>) -> bool {
        let head = request.head();
        match *self {
            Self::Clear => !request.is_tls(),
            Self::Tls => request.is_tls(),
            // The first line, if there are several.
            Self::Grpc => head
                .values("content-type")
                .next()
                .is_some_and(|value| value.starts_with(b"application/grpc")),
            Self::Exactly(major, minor) => head.version() == (major, minor),
            Self::Major(major) => head.version().0 == major,
            Self::AtLeast(major, minor) => head.version() >= (major, minor),
            Self::Never => false,
        }
    }
}

pub(super) fn provision(
    config: ProtocolConfig,
    cx: &mut Provision<'_>,
) -> Result<Box<dyn RequestMatch>, Rejected> {
    let ProtocolConfig(text) = config;
    let protocol = MatchProtocol::new(&text);
    if let MatchProtocol::Never = protocol {
        cx.warn(
            text.node(),
            format!("{:?} is not a protocol known here and never matches", *text),
        );
    }
    Ok(Box::new(protocol))
}
